//! Manifests and who refers to them.

use larder_proto::digest::Digest;
use serde_json::{Value, json};

use super::answer::Reply;
use super::state::{Asked, State};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub(super) fn answer(state: &mut State, asked: &Asked, repository: &str, name: &str) -> Reply {
    if asked.method == "PUT" {
        return put(state, asked, repository, name);
    }
    let Some((digest, (kind, bytes))) = state.manifest(repository, name) else {
        return Reply::error(404, "MANIFEST_UNKNOWN");
    };
    if asked.method == "DELETE" {
        state.manifests.remove(&(repository.to_owned(), digest));
        return Reply::new(202);
    }
    let accepted = asked.header("accept").unwrap_or("*/*");
    if !accepted.contains(&kind) && !accepted.contains("*/*") {
        return Reply::error(404, "MANIFEST_UNKNOWN");
    }
    let reply = Reply::new(200).header("content-type", kind);
    reply
        .header("docker-content-digest", digest.to_string())
        .body(bytes)
}

fn put(state: &mut State, asked: &Asked, repository: &str, name: &str) -> Reply {
    let digest = Digest::of(&asked.body);
    let Some(kind) = asked.header("content-type") else {
        return Reply::error(400, "MANIFEST_INVALID");
    };
    let document: Option<Value> = serde_json::from_slice(&asked.body).ok();
    let Some(document) = document else {
        return Reply::error(400, "MANIFEST_INVALID");
    };
    if name.contains(':') && name != digest.to_string() {
        return Reply::error(400, "DIGEST_INVALID");
    }
    // As a real registry does, insist that what a manifest names has been pushed before.
    let lists = ["layers", "manifests"].map(|name| document.get(name).and_then(Value::as_array));
    let listed = lists
        .into_iter()
        .flatten()
        .flatten()
        .chain(document.get("config"));
    for descriptor in listed {
        let named: Option<Digest> = descriptor
            .get("digest")
            .and_then(Value::as_str)
            .and_then(|text| text.parse().ok());
        let Some(named) = named else {
            return Reply::error(400, "MANIFEST_INVALID");
        };
        let known = state.blob(repository, &named).is_some()
            || state
                .manifests
                .contains_key(&(repository.to_owned(), named));
        if !known {
            return Reply::error(400, "MANIFEST_BLOB_UNKNOWN");
        }
    }
    let entry = (kind.to_owned(), asked.body.clone());
    state
        .manifests
        .insert((repository.to_owned(), digest), entry);
    if !name.contains(':') {
        state
            .tags
            .insert((repository.to_owned(), name.to_owned()), digest);
    }
    let place = format!("/v2/{repository}/manifests/{digest}");
    let reply = Reply::new(201).header("location", place);
    let reply = reply.header("docker-content-digest", digest.to_string());
    let subject = document
        .get("subject")
        .and_then(|s| s.get("digest"))
        .and_then(Value::as_str);
    match subject.filter(|_| state.settings.referrers) {
        Some(subject) => reply.header("oci-subject", subject),
        None => reply,
    }
}

/// Answers the referrers API, two referrers on a page so that clients must turn pages.
pub(super) fn referrers(state: &State, asked: &Asked, repository: &str, subject: &str) -> Reply {
    if !state.settings.referrers {
        return Reply::error(404, "NO_API");
    }
    let mut found: Vec<(Digest, Value)> = Vec::new();
    for ((owner, digest), (kind, bytes)) in &state.manifests {
        let document: Value = serde_json::from_slice(bytes).unwrap_or_default();
        if owner != repository || document["subject"]["digest"] != subject {
            continue;
        }
        let mut descriptor = json!({
            "mediaType": kind, "digest": digest.to_string(), "size": bytes.len(),
            "artifactType": document.get("artifactType").unwrap_or(&document["config"]["mediaType"]),
        });
        if let Some(annotations) = document.get("annotations") {
            descriptor["annotations"] = annotations.clone();
        }
        found.push((*digest, descriptor));
    }
    found.sort_by_key(|(digest, _)| *digest);
    let after = asked.parameter("after");
    let rest = found.into_iter().filter(|(digest, _)| {
        after
            .as_deref()
            .is_none_or(|after| digest.to_string().as_str() > after)
    });
    let rest: Vec<_> = rest.collect();
    let page: Vec<_> = rest
        .iter()
        .take(2)
        .map(|(_, descriptor)| descriptor.clone())
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": page});
    let reply = Reply::new(200)
        .header("content-type", INDEX)
        .body(index.to_string());
    match rest.get(1).filter(|_| rest.len() > 2) {
        Some((last, _)) => {
            let next = format!("<{}?after={last}>; rel=\"next\"", asked.path);
            reply.header("link", next)
        }
        None => reply,
    }
}
