//! Blobs, at the registry and at its CDN.

use std::fmt::Write as _;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use larder_proto::digest::Digest;

use super::answer::Reply;
use super::state::{Asked, State};

pub(super) fn answer(state: &mut State, asked: &Asked, repository: &str, digest: &str) -> Reply {
    let found = digest
        .parse()
        .ok()
        .and_then(|digest: Digest| state.blob(repository, &digest));
    let Some(bytes) = found else {
        return Reply::error(404, "BLOB_UNKNOWN");
    };
    let redirects = state.settings.cdn.as_ref();
    if redirects.is_some_and(|cdn| cdn.head || asked.method == "GET") {
        return redirect(state, repository, digest);
    }
    send(asked, &bytes).header("docker-content-digest", digest)
}

/// A signed URL at the CDN.
fn redirect(state: &mut State, repository: &str, digest: &str) -> Reply {
    let Some(cdn) = state.settings.cdn.clone() else {
        return Reply::new(500);
    };
    state.last_signature += 1;
    let signature = state.last_signature;
    if let Some(lifetime) = cdn.lifetime {
        state.signed.insert(signature, Instant::now() + lifetime);
    }
    let hops = cdn.hops.max(1) - 1;
    let origin = &state.cdn_origin;
    let mut query = format!("sig={signature}&hops={hops}&{}", cdn.query);
    if let Some(lifetime) = cdn.lifetime.filter(|_| cdn.told) {
        // By an end in seconds, rounded down: earlier than the truth, as honest stores are.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let end = now.unwrap_or_default() + lifetime;
        let _ = write!(query, "&Expires={}", end.as_secs());
    }
    let url = format!("{origin}/cdn/{repository}/{digest}?{query}");
    let reply = Reply::new(307).header("location", url);
    match cdn.cache_control {
        Some(text) => reply.header("cache-control", text),
        None => reply,
    }
}

/// What the CDN answers: it knows signatures and nothing of log-ins.
pub(super) fn cdn(state: &mut State, asked: &Asked) -> Reply {
    let signature = asked
        .parameter("sig")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let expired = state
        .signed
        .get(&signature)
        .is_some_and(|end| *end <= Instant::now());
    if expired || asked.method == "HEAD" || signature < state.oldest_signature || signature == 0 {
        return denied(cdn_status(state));
    }
    let hops = asked
        .parameter("hops")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0_u32);
    if hops > 0 {
        let url = format!("{}?sig={signature}&hops={}", asked.path, hops - 1);
        return Reply::new(302).header("location", url);
    }
    let place = asked
        .path
        .strip_prefix("/cdn/")
        .and_then(|rest| rest.rsplit_once('/'));
    let found = place.and_then(|(repository, digest)| {
        digest
            .parse()
            .ok()
            .and_then(|digest: Digest| state.blob(repository, &digest))
    });
    match found {
        Some(bytes) => send(asked, &bytes),
        None => Reply::new(404),
    }
}

fn cdn_status(state: &State) -> u16 {
    let cdn = state.settings.cdn.as_ref();
    cdn.and_then(|cdn| cdn.expired_status).unwrap_or(403)
}

/// How an object store says that it does not accept a signature.
pub(super) fn denied(status: u16) -> Reply {
    let text = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>";
    Reply::new(status)
        .header("content-type", "application/xml")
        .body(text)
}

/// A blob, or the part of it that is asked for.
fn send(asked: &Asked, bytes: &Bytes) -> Reply {
    let size = bytes.len();
    let kind = "application/octet-stream";
    let range = asked.header("range").filter(|_| asked.method == "GET");
    let Some(range) = range.and_then(|text| text.strip_prefix("bytes=")) else {
        let mut reply = Reply::new(200)
            .header("content-type", kind)
            .body(bytes.clone());
        reply.blob = true;
        return reply;
    };
    let (first, last) = range.split_once('-').unwrap_or((range, ""));
    let start = first.parse().unwrap_or(size);
    let end = last
        .parse()
        .map_or(size, |last: usize| last.saturating_add(1))
        .min(size);
    if start >= end {
        return Reply::error(416, "RANGE_INVALID")
            .header("content-range", format!("bytes */{size}"));
    }
    let span = format!("bytes {start}-{}/{size}", end - 1);
    let reply = Reply::new(206)
        .header("content-type", kind)
        .header("content-range", span);
    let mut reply = reply.body(bytes.slice(start..end));
    reply.blob = true;
    reply
}
