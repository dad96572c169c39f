//! One upload, over all its attempts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use larder_proto::digest::Digest;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response};
use url::Url;

use super::{Progress, UploadSource, call_at, location};
use crate::attempts::Purpose;
use crate::auth::Access;
use crate::client::Repository;
use crate::endpoint::Endpoint;
use crate::error::Cause;
use crate::exchange::Payload;

/// Bytes read from the source at once: a system call's worth, and little enough that even a slow
/// link takes the next ones within [`STALL_WINDOWS`].
const READ_BYTES: u64 = 64 << 10;

/// Windows of [`crate::Timeouts::rate_window`] in which an upload must move at all. One is too
/// few: the bytes of one read leave only when the connection's buffers have room for all of them.
const STALL_WINDOWS: u32 = 3;

/// The smallest piece a registry may insist on that is believed, bytes: S3's limit is 5 MiB, and
/// registries that ask for more than a gigabyte would not get their pieces through a proxy.
const PIECE_BYTES_MAX: u64 = 1 << 30;

/// An upload and how far it has come.
pub(super) struct Session<'a> {
    repository: &'a Repository,
    digest: Digest,
    size: u64,
    source: Arc<dyn UploadSource>,
    progress: Progress,
    /// Where the upload goes on, while the registry has one of ours.
    location: Option<Url>,
    /// Bytes the registry has acknowledged.
    stored: u64,
    /// The smallest piece the registry takes, bytes.
    piece_min: u64,
    /// The last answer did not come, so ask where we are.
    unsure: bool,
    /// The registry does not take pieces.
    whole: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        digest: Digest,
        size: u64,
        source: Arc<dyn UploadSource>,
        progress: Progress,
    ) -> Self {
        Self {
            repository,
            digest,
            size,
            source,
            progress,
            location: None,
            stored: 0,
            piece_min: 0,
            unsure: false,
            whole: false,
        }
    }

    /// Bytes the registry is known to have.
    pub(super) const fn stored(&self) -> u64 {
        self.stored
    }

    /// Goes as far as it can; the whole way unless there is an error.
    pub(super) async fn advance(&mut self, endpoint: &Endpoint) -> Result<(), Cause> {
        if self.unsure && self.recover(endpoint).await? {
            return Ok(());
        }
        self.unsure = true;
        loop {
            let location = match self.location.clone() {
                Some(location) => location,
                None => self.begin(endpoint).await?,
            };
            if self.whole {
                return self.put(endpoint, location, self.size).await;
            }
            if self.stored == self.size {
                return self.put(endpoint, location, 0).await;
            }
            self.patch(endpoint, location).await?;
        }
    }

    /// Gives the upload up.
    pub(super) async fn cancel(&mut self, endpoint: &Endpoint) {
        if let Some(location) = self.location.take() {
            self.repository.cancel_upload(endpoint, location).await;
        }
    }

    async fn begin(&mut self, endpoint: &Endpoint) -> Result<Url, Cause> {
        let call = self
            .repository
            .call(endpoint, Method::POST, "blobs/uploads/", Access::Push)?;
        let response = self.repository.send(endpoint, &call).await?;
        if response.status() != 202 {
            return Err(self.repository.refusal(endpoint, response).await);
        }
        let location = location(endpoint, &call.url, &response)?;
        let min = header(response.headers(), "oci-chunk-min-length").and_then(|n| n.parse().ok());
        self.piece_min = min.unwrap_or(0).min(PIECE_BYTES_MAX);
        self.stored = 0;
        self.location = Some(location.clone());
        Ok(location)
    }

    /// Finds out where we are after an answer that did not come; `true` if all is done already.
    async fn recover(&mut self, endpoint: &Endpoint) -> Result<bool, Cause> {
        let Some(location) = self.location.clone() else {
            return Ok(false);
        };
        if self.whole {
            self.cancel(endpoint).await;
            return Ok(false);
        }
        let call = call_at(endpoint, Method::GET, location);
        let response = self.repository.send(endpoint, &call).await?;
        match response.status().as_u16() {
            204 | 202 | 200 => {
                let end = stored(response.headers()).filter(|end| *end <= self.size);
                match end {
                    // "0-0" is one byte to some and none to others: begin anew.
                    None | Some(0 | 1) => self.cancel(endpoint).await,
                    Some(end) => {
                        self.stored = end;
                        self.moved(endpoint, &call.url, &response)?;
                    }
                }
                Ok(false)
            }
            // The session is over, perhaps because the blob was completed.
            400 | 404 | 405 | 410 | 416 => {
                self.location = None;
                let size = self.repository.exists(&self.digest, Purpose::Push).await;
                Ok(size.ok().flatten() == Some(self.size))
            }
            _ => Err(self.repository.refusal(endpoint, response).await),
        }
    }

    /// Sends the next piece, or all that is left.
    async fn patch(&mut self, endpoint: &Endpoint, location: Url) -> Result<(), Cause> {
        let left = self.size - self.stored;
        let piece = self.repository.shared().options.upload_piece;
        let length = piece
            .map_or(left, |piece| piece.max(self.piece_min).max(1))
            .min(left);
        let mut call = call_at(endpoint, Method::PATCH, location);
        if self.stored > 0 || length < left {
            let range = format!("{}-{}", self.stored, self.stored + length - 1);
            let value = HeaderValue::try_from(range);
            call.headers.insert(
                CONTENT_RANGE,
                value.map_err(|e| Cause::Local(e.to_string()))?,
            );
        }
        let response = self
            .send_bytes(endpoint, call.clone(), self.stored, length)
            .await?;
        match response.status().as_u16() {
            200 | 201 | 202 | 204 => {
                let sent = self.stored + length;
                // Believe less than what was sent, never more.
                let end = stored(response.headers()).filter(|end| *end > 1 && *end < sent);
                if end.is_some_and(|end| end <= self.stored) {
                    let detail = "it takes none of the bytes it is sent".into();
                    return Err(Cause::Malformed {
                        host: endpoint.host.clone(),
                        detail,
                    });
                }
                self.stored = end.unwrap_or(sent);
                self.moved(endpoint, &call.url, &response)
            }
            // It has no such session (any more), or wants no pieces: all at once, in a new one.
            400 | 404 | 405 | 411 | 415 | 416 | 501 => {
                let refusal = self.repository.refusal(endpoint, response).await;
                tracing::debug!(host = endpoint.host, %refusal, "uploading in one request");
                self.cancel(endpoint).await;
                self.whole = true;
                Ok(())
            }
            _ => Err(self.repository.refusal(endpoint, response).await),
        }
    }

    /// Ends the upload, with the last `length` bytes of the blob.
    async fn put(&mut self, endpoint: &Endpoint, location: Url, length: u64) -> Result<(), Cause> {
        let mut call = call_at(endpoint, Method::PUT, location);
        call.url
            .query_pairs_mut()
            .append_pair("digest", &self.digest.to_string());
        let response = self
            .send_bytes(endpoint, call, self.size - length, length)
            .await?;
        let status = response.status().as_u16();
        if matches!(status, 200 | 201 | 204) {
            self.location = None;
            return Ok(());
        }
        let refusal = self.repository.refusal(endpoint, response).await;
        // A lost session is worth one more; the retries bound how many.
        if matches!(status, 404 | 416) {
            self.location = None;
            let (host, detail) = (
                endpoint.host.clone(),
                format!("the upload was lost: {refusal}"),
            );
            return Err(Cause::Connection { host, detail });
        }
        Err(refusal)
    }

    fn moved(&mut self, endpoint: &Endpoint, from: &Url, response: &Response) -> Result<(), Cause> {
        if response.headers().contains_key(reqwest::header::LOCATION) {
            self.location = Some(location(endpoint, from, response)?);
        }
        Ok(())
    }

    /// Sends `call` with `length` bytes from `offset` on, breaking it off when they stop moving.
    async fn send_bytes(
        &self,
        endpoint: &Endpoint,
        mut call: crate::exchange::Call,
        offset: u64,
        length: u64,
    ) -> Result<Response, Cause> {
        call.headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/octet-stream"),
        );
        // The stall watch bounds the sending; this bounds the wait after the last byte.
        let time = endpoint.timeouts.deadline(length) + endpoint.timeouts.commit;
        call.timeout = time;
        let flow = Arc::new(Flow::default());
        if length > 0 {
            call.payload = self.payload(Arc::clone(&flow), offset, length);
        } else {
            flow.done.store(true, Ordering::Release);
        }
        let sent = tokio::select! {
            sent = self.repository.send(endpoint, &call) => sent,
            stalled = flow.watch(endpoint) => Err(stalled),
        };
        match flow.failure() {
            Some(failure) => Err(Cause::Local(format!(
                "cannot read what is to be uploaded: {failure}"
            ))),
            None => sent,
        }
    }

    fn payload(&self, flow: Arc<Flow>, offset: u64, length: u64) -> Payload {
        let (source, progress) = (Arc::clone(&self.source), Arc::clone(&self.progress));
        let body = move || {
            let (source, progress) = (Arc::clone(&source), Arc::clone(&progress));
            let flow = Arc::clone(&flow);
            let end = offset + length;
            let bytes = stream::try_unfold(offset, move |at| {
                let (source, progress) = (Arc::clone(&source), Arc::clone(&progress));
                let flow = Arc::clone(&flow);
                async move {
                    progress(at);
                    if at == end {
                        flow.done.store(true, Ordering::Release);
                        return Ok(None);
                    }
                    let want = usize::try_from((end - at).min(READ_BYTES)).unwrap_or(1);
                    let read = source.read_at(at, want).await.and_then(|bytes| {
                        let enough = !bytes.is_empty() && bytes.len() <= want;
                        enough.then_some(bytes).ok_or_else(|| {
                            std::io::Error::other(format!("it ends at byte {at}, before {end}"))
                        })
                    });
                    let bytes = read.inspect_err(|error| flow.fail(error))?;
                    let at = at + bytes.len() as u64;
                    flow.moved.fetch_add(bytes.len() as u64, Ordering::AcqRel);
                    Ok::<_, std::io::Error>(Some((bytes, at)))
                }
            });
            reqwest::Body::wrap_stream(bytes)
        };
        Payload::Stream(Arc::new(body), length)
    }
}

/// How the bytes of a request move.
#[derive(Debug, Default)]
struct Flow {
    moved: AtomicU64,
    done: AtomicBool,
    failed: Mutex<Option<String>>,
}

impl Flow {
    fn fail(&self, error: &std::io::Error) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed = Some(error.to_string());
    }

    fn failure(&self) -> Option<String> {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Returns when too few bytes move, or when the answer to all of them is overdue.
    async fn watch(&self, endpoint: &Endpoint) -> Cause {
        let timeouts = &endpoint.timeouts;
        let mut before = 0;
        let mut still = 0;
        let mut silent = Duration::ZERO;
        loop {
            tokio::time::sleep(timeouts.rate_window).await;
            let moved = self.moved.load(Ordering::Acquire);
            still = if moved == before { still + 1 } else { 0 };
            before = moved;
            let host = endpoint.host.clone();
            if self.done.load(Ordering::Acquire) {
                silent += timeouts.rate_window;
                if silent >= timeouts.commit {
                    let detail = format!("no answer {silent:?} after the upload");
                    return Cause::Connection { host, detail };
                }
            } else if still == STALL_WINDOWS {
                let seconds = timeouts.rate_window.as_secs() * u64::from(STALL_WINDOWS);
                return Cause::Stalled {
                    host,
                    bytes: 0,
                    seconds,
                };
            }
        }
    }
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// The number of bytes the registry says it has: `Range: 0-<last>`.
fn stored(headers: &HeaderMap) -> Option<u64> {
    let text = header(headers, RANGE.as_str())?;
    let text = text.strip_prefix("bytes=").unwrap_or(text);
    let (first, last) = text.split_once('-')?;
    if first != "0" {
        return None;
    }
    last.parse::<u64>().ok()?.checked_add(1)
}
