//! Uploads: begun, fed, asked about, completed, cancelled, or saved by a mount.

use larder_proto::digest::Digest;

use super::answer::Reply;
use super::state::{Asked, State, Upload};

pub(super) fn answer(state: &mut State, asked: &Asked, repository: &str, place: &str) -> Reply {
    if asked.method == "POST" {
        return begin(state, asked, repository);
    }
    let known = state
        .uploads
        .get(place)
        .filter(|upload| upload.repository == repository);
    let Some(upload) = known else {
        return Reply::error(404, "BLOB_UPLOAD_UNKNOWN");
    };
    let sends = asked.method == "PATCH" || asked.method == "PUT";
    if sends && asked.parameter("_state") != Some(upload.turn.to_string()) {
        // A client that makes its own URLs instead of following the location.
        return Reply::error(400, "BLOB_UPLOAD_INVALID");
    }
    match asked.method.as_str() {
        "GET" => here(state, place, 204),
        "PATCH" if state.settings.patch => patch(state, asked, place),
        "PUT" => put(state, asked, repository, place),
        "DELETE" => {
            state.uploads.remove(place);
            Reply::new(204)
        }
        _ => Reply::error(405, "UNSUPPORTED"),
    }
}

fn begin(state: &mut State, asked: &Asked, repository: &str) -> Reply {
    if let (Some(digest), Some(from)) = (asked.parameter("mount"), asked.parameter("from")) {
        let digest: Option<Digest> = digest.parse().ok();
        let found = digest.and_then(|digest| Some((digest, state.blob(&from, &digest)?)));
        if let Some((digest, bytes)) = found.filter(|_| state.settings.mount) {
            state.blobs.insert((Some(repository.into()), digest), bytes);
            let place = format!("/v2/{repository}/blobs/{digest}");
            return Reply::new(201).header("location", place);
        }
    }
    let id = format!("upload-{}", state.next());
    let upload = Upload {
        repository: repository.into(),
        bytes: Vec::new(),
        turn: 0,
    };
    state.uploads.insert(id.clone(), upload);
    let reply = here(state, &id, 202);
    match state.settings.piece_min {
        Some(bytes) => reply.header("oci-chunk-min-length", bytes.to_string()),
        None => reply,
    }
}

/// Where an upload stands.
fn here(state: &mut State, id: &str, status: u16) -> Reply {
    let origin = if state.settings.absolute_locations {
        state.origin.clone()
    } else {
        String::new()
    };
    let Some(upload) = state.uploads.get_mut(id) else {
        return Reply::new(404);
    };
    // Asking does not change the state, so a lost answer does not lose the upload.
    if status != 204 {
        upload.turn += 1;
    }
    let place = format!(
        "{origin}/v2/{}/blobs/uploads/{id}?_state={}",
        upload.repository, upload.turn
    );
    let last = upload.bytes.len().saturating_sub(1);
    Reply::new(status)
        .header("location", place)
        .header("range", format!("0-{last}"))
}

fn patch(state: &mut State, asked: &Asked, id: &str) -> Reply {
    let Some(upload) = state.uploads.get_mut(id) else {
        return Reply::new(404);
    };
    if let Some(range) = asked.header("content-range") {
        let start = range
            .split_once('-')
            .and_then(|(start, _)| start.parse().ok());
        if start != Some(upload.bytes.len()) {
            return Reply::error(416, "RANGE_INVALID");
        }
    }
    upload.bytes.extend_from_slice(&asked.body);
    here(state, id, 202)
}

fn put(state: &mut State, asked: &Asked, repository: &str, id: &str) -> Reply {
    let digest: Option<Digest> = asked.parameter("digest").and_then(|text| text.parse().ok());
    let Some(upload) = state.uploads.get_mut(id) else {
        return Reply::new(404);
    };
    let mut bytes = upload.bytes.clone();
    bytes.extend_from_slice(&asked.body);
    if digest != Some(Digest::of(&bytes)) {
        return Reply::error(400, "DIGEST_INVALID");
    }
    state.uploads.remove(id);
    let digest = Digest::of(&bytes);
    state
        .blobs
        .insert((Some(repository.into()), digest), bytes.into());
    let place = format!("/v2/{repository}/blobs/{digest}");
    let reply = Reply::new(201).header("location", place);
    reply.header("docker-content-digest", digest.to_string())
}
