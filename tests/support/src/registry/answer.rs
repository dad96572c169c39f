//! From a request to an answer, with the fault in between.

use std::convert::Infallible;
use std::io;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::task::JoinHandle;

use super::fault::Fault;
use super::network::Network;
use super::state::{Asked, Seen, Shared, State};
use super::wire::Connection;
use super::{blobs, manifests, tokens, uploads, wire};

/// Largest request body, bytes; tests stay far below.
const BODY_BYTES_MAX: usize = 1 << 30;

/// An answer before faults.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// Whether the body is (part of) a blob.
    pub(super) blob: bool,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Bytes::new(),
            blob: false,
        }
    }

    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set(name, value.into());
        self
    }

    fn set(&mut self, name: &str, value: String) {
        self.headers
            .retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        if !value.is_empty() {
            self.headers.push((name.into(), value));
        }
    }

    pub(super) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// An error document as registries send them.
    pub(super) fn error(status: u16, code: &str) -> Self {
        let text = format!(r#"{{"errors":[{{"code":"{code}","message":"says the fake"}}]}}"#);
        Self::new(status)
            .header("content-type", "application/json")
            .body(text)
    }
}

pub(super) fn serve(
    listener: wire::Bound,
    network: Network,
    state: Shared,
    cdn: bool,
) -> JoinHandle<()> {
    let service = move |ConnectInfo(connection): ConnectInfo<Connection>, request: Request| {
        let state = Shared::clone(&state);
        async move { Ok::<_, Infallible>(answer(&state, &connection, cdn, request).await) }
    };
    let handler = move |connection, request| {
        let service = service.clone();
        async move {
            match service(connection, request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    };
    let router = Router::new().fallback(handler);
    let router = router.into_make_service_with_connect_info::<Connection>();
    wire::threads().spawn(async move {
        let listener = listener.listen(network);
        // Ends when the registry is dropped.
        let _ = axum::serve(listener, router).await;
    })
}

fn lock(state: &Shared) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(state: &Shared, connection: &Connection, cdn: bool, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let fault = lock(state).fault_for(parts.method.as_str(), &path, cdn);
    let cut = if let Some(Fault::CutUpload(after)) = &fault {
        Some(*after)
    } else {
        None
    };
    let mut asked = Asked {
        method: parts.method,
        path,
        query: parts.uri.query().unwrap_or_default().into(),
        headers: parts.headers,
        body: read(body, cut).await,
    };
    lock(state).seen.push(seen(&asked, cdn));
    if let Some(early) = before(fault.as_ref(), &mut asked, state).await {
        return finish(state, connection, &asked, early, fault.as_ref());
    }
    let reply = {
        let mut state = lock(state);
        if cdn {
            blobs::cdn(&mut state, &asked)
        } else {
            route(&mut state, &asked)
        }
    };
    if matches!(fault, Some(Fault::CutUpload(_) | Fault::DropAnswer)) {
        connection.reset();
        // Writing this answer fails, which ends the connection; waiting would not, as a server whose
        // request's body nobody reads does not look at the connection.
        return finish(state, connection, &asked, Reply::new(500), None);
    }
    finish(state, connection, &asked, reply, fault.as_ref())
}

/// Reads a body, or its first `cut` bytes.
async fn read(body: Body, cut: Option<usize>) -> Bytes {
    let limit = cut.unwrap_or(BODY_BYTES_MAX);
    let mut bytes = Vec::new();
    let mut frames = body.into_data_stream();
    while bytes.len() < limit {
        match frames.next().await {
            Some(Ok(frame)) => bytes.extend_from_slice(&frame),
            Some(Err(_)) | None => break,
        }
    }
    bytes.truncate(limit);
    bytes.into()
}

/// An error document that repeats a request.
fn echo(asked: &Asked, status: u16) -> Reply {
    // What is long and says nothing would use up what is quoted of an error.
    let headers = asked
        .headers
        .iter()
        .filter(|(name, _)| !name.as_str().starts_with("accept"));
    let headers = headers.map(|(_, value)| String::from_utf8_lossy(value.as_bytes()));
    let headers: Vec<_> = headers.collect();
    let (query, body) = (&asked.query, String::from_utf8_lossy(&asked.body));
    let message = format!("{query} {} {body}", headers.join(" "));
    let error = serde_json::json!({"errors": [{"code": "ECHO", "message": message}]});
    Reply::new(status)
        .header("content-type", "application/json")
        .body(error.to_string())
}

fn seen(asked: &Asked, cdn: bool) -> Seen {
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into();
    let headers = asked
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().into(), text(value)));
    Seen {
        method: asked.method.to_string(),
        path: asked.path.clone(),
        query: asked.query.clone(),
        range: asked.header("range").map(String::from),
        host: asked.header("host").unwrap_or_default().into(),
        authorized: asked.headers.contains_key("authorization"),
        cdn,
        body_bytes: asked.body.len() as u64,
        headers: headers.collect(),
    }
}

/// Faults that take the place of the answer, or change the question.
async fn before(fault: Option<&Fault>, asked: &mut Asked, state: &Shared) -> Option<Reply> {
    match fault? {
        Fault::StallBeforeHeaders => std::future::pending().await,
        Fault::Delay(time) => tokio::time::sleep(*time).await,
        Fault::IgnoreRange => {
            asked.headers.remove("range");
        }
        Fault::Status(status, retry_after) => {
            let reply = Reply::error(*status, "FAULT");
            return Some(match retry_after {
                Some(text) => reply.header("retry-after", text),
                None => reply,
            });
        }
        Fault::Echo(status) => return Some(echo(asked, *status)),
        Fault::Challenge(text) => {
            return Some(Reply::error(401, "FAULT").header("www-authenticate", text));
        }
        Fault::RedirectLoop => {
            let number = lock(state).next();
            let place = format!("{}?loop={number}", asked.path);
            return Some(Reply::new(307).header("location", place));
        }
        Fault::Xml(status) => return Some(blobs::denied(*status)),
        Fault::RevokeTokens => lock(state).tokens.clear(),
        Fault::ExpireUrls => lock(state).expire_urls(),
        Fault::NoHead if asked.method == "HEAD" => return Some(Reply::new(405)),
        Fault::RedirectChain(statuses) => {
            let at = asked.parameter("chain").and_then(|text| text.parse().ok());
            let at: usize = at.unwrap_or_default();
            if let Some(status) = statuses.get(at) {
                let place = format!("?chain={}", at + 1);
                return Some(Reply::new(*status).header("location", place));
            }
        }
        Fault::RedirectTo(url) => return Some(Reply::new(307).header("location", url)),
        Fault::Portal => {
            let page = "<html><body>Please log in to the network</body></html>";
            return Some(
                Reply::new(200)
                    .header("content-type", "text/html")
                    .body(page),
            );
        }
        Fault::Body(bytes) => return Some(Reply::new(200).body(bytes.clone())),
        _ => {}
    }
    None
}

fn route(state: &mut State, asked: &Asked) -> Reply {
    if asked.path == "/token" {
        return tokens::give(state, asked);
    }
    let Some(rest) = asked.path.strip_prefix("/v2/") else {
        return Reply::error(404, "NO_API");
    };
    if let Some(refusal) = tokens::refuse(state, asked, rest) {
        return refusal;
    }
    if rest.is_empty() {
        return Reply::new(200);
    }
    if asked.method == "HEAD" && !state.settings.head {
        return Reply::new(405);
    }
    if let Some((repository, place)) = rest.split_once("/blobs/uploads/") {
        return uploads::answer(state, asked, repository, place);
    }
    if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
        return blobs::answer(state, asked, repository, digest);
    }
    if let Some((repository, name)) = rest.rsplit_once("/manifests/") {
        return manifests::answer(state, asked, repository, name);
    }
    match rest.rsplit_once("/referrers/") {
        Some((repository, subject)) => manifests::referrers(state, asked, repository, subject),
        None => Reply::error(404, "NO_API"),
    }
}

/// Faults of the answer's headers and body, and its way out.
fn finish(
    state: &Shared,
    connection: &Connection,
    asked: &Asked,
    mut reply: Reply,
    fault: Option<&Fault>,
) -> Response {
    let mut body = reply.body.to_vec();
    if asked.method == "HEAD" {
        body.clear();
    }
    let half = body.len() / 2;
    let mut announced = reply.body.len();
    let mut parts: Vec<Part> = Vec::new();
    match fault {
        Some(Fault::FlippedBit) if !body.is_empty() => body[half] ^= 1,
        Some(Fault::OtherBlob) => body
            .iter_mut()
            .for_each(|byte| *byte = byte.wrapping_add(17)),
        Some(Fault::LongBody) => {
            body.extend_from_slice(&[0xAA; 100]);
            announced = body.len();
        }
        Some(Fault::WrongContentRange) => shift_range(&mut reply),
        Some(Fault::Multipart) => {
            reply.set("content-type", "multipart/byteranges; boundary=x".into());
            reply.set("content-range", String::new());
        }
        Some(Fault::Gzip) => reply.set("content-encoding", "gzip".into()),
        Some(Fault::Header(name, value)) => reply.set(name, value.clone()),
        Some(Fault::StallMidBody) => {
            parts = vec![Part::Bytes(body.drain(..half).collect()), Part::Stall];
        }
        Some(Fault::ShortBody) => {
            parts = vec![Part::Bytes(body.drain(..half).collect()), Part::Close];
        }
        Some(Fault::Reset) => {
            parts = vec![Part::Bytes(body.drain(..half).collect()), Part::Reset];
        }
        Some(Fault::Drip(size, pause)) => {
            let pieces = body
                .chunks(*size)
                .map(|piece| Part::Slow(piece.to_vec(), *pause));
            parts = pieces.collect();
        }
        Some(Fault::Chunked) => announced = usize::MAX,
        _ => {}
    }
    if parts.is_empty() {
        parts.push(Part::Bytes(body));
    }
    respond(state, connection, &reply, parts, announced)
}

/// Claims the range one byte further on.
fn shift_range(reply: &mut Reply) {
    let range = reply
        .headers
        .iter()
        .find(|(name, _)| name == "content-range");
    let numbers = range.and_then(|(_, text)| {
        let (span, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        let number = |text: &str| text.parse::<u64>().ok();
        Some((number(first)?, number(last)?, number(total)?))
    });
    if let Some((first, last, total)) = numbers {
        let shifted = format!("bytes {}-{}/{}", first + 1, last + 1, total + 1);
        reply.set("content-range", shifted);
    }
}

/// A piece of a body, or what happens instead of one.
#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    Slow(Vec<u8>, Duration),
    Stall,
    Close,
    Reset,
}

fn respond(
    state: &Shared,
    connection: &Connection,
    reply: &Reply,
    parts: Vec<Part>,
    announced: usize,
) -> Response {
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(name, value);
    }
    if announced != usize::MAX
        && !reply
            .headers
            .iter()
            .any(|(name, _)| name == "content-length")
    {
        response = response.header("content-length", announced);
    }
    let (state, connection, blob) = (Shared::clone(state), connection.clone(), reply.blob);
    let bytes = stream::iter(parts).then(move |part| {
        let (state, connection) = (Shared::clone(&state), connection.clone());
        async move {
            let bytes = match part {
                Part::Bytes(bytes) => bytes,
                Part::Slow(bytes, pause) => {
                    tokio::time::sleep(pause).await;
                    bytes
                }
                Part::Stall => std::future::pending().await,
                Part::Close => return Err(pause_then("closed on purpose").await),
                Part::Reset => {
                    let error = pause_then("reset on purpose").await;
                    connection.reset();
                    return Err(error);
                }
            };
            if blob {
                lock(&state).blob_bytes_sent += bytes.len() as u64;
            }
            Ok::<_, io::Error>(bytes)
        }
    });
    let response = response.body(Body::from_stream(bytes));
    response.unwrap_or_else(|_| Response::new(Body::empty()))
}

/// Lets what was sent before reach the client, then fails.
async fn pause_then(why: &'static str) -> io::Error {
    tokio::time::sleep(Duration::from_millis(20)).await;
    io::Error::other(why)
}
