//! Some bytes of a blob.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use larder_proto::digest::Digest;
use reqwest::Response;
use reqwest::header::{CONTENT_TYPE, HeaderValue};

use super::{Arrivals, ContentRange, Origin, check_encoding};
use crate::attempts::Attempts;
use crate::body::{self, Paced};
use crate::client::Repository;
use crate::endpoint::Endpoint;
use crate::error::{Cause, RegistryError};
use crate::exchange;

/// Largest blob taken whole from a registry that ignores ranges, bytes: two of the largest chunks, which
/// a read may cost anyway. Above it, every small read would cost the layer.
const WHOLE_BYTES_MAX: u64 = 8 << 20;

/// Memory taken before the first byte has come, bytes; the rest is taken as bytes come.
const RESERVED_BYTES_MAX: u64 = 1 << 20;

/// A range on its way, kept over the attempts.
pub(super) struct Partial<'a> {
    repository: &'a Repository,
    digest: Digest,
    range: Range<u64>,
    got: BytesMut,
    arrivals: &'a dyn Arrivals,
}

impl<'a> Partial<'a> {
    pub(super) fn new(
        repository: &'a Repository,
        digest: Digest,
        range: Range<u64>,
        arrivals: &'a dyn Arrivals,
    ) -> Self {
        let reserved = (range.end - range.start).min(RESERVED_BYTES_MAX);
        let got = BytesMut::with_capacity(usize::try_from(reserved).unwrap_or_default());
        Self {
            repository,
            digest,
            range,
            got,
            arrivals,
        }
    }

    /// The bytes, and the endpoint that all of them came from.
    pub(super) async fn fetch(
        mut self,
        mut attempts: Attempts,
    ) -> Result<(Bytes, Arc<Endpoint>), RegistryError> {
        loop {
            let endpoint = attempts.endpoint();
            match attempts.run(self.attempt(&endpoint)).await {
                Ok(()) => {
                    attempts.succeeded();
                    return Ok((self.got.freeze(), endpoint));
                }
                Err(cause) => {
                    let honest = cause.is_transient();
                    attempts.failed(cause).await?;
                    // Bytes of two endpoints are not mixed: if they turn out wrong, somebody has
                    // to be blamed. Nor are those kept that came before a wrong answer.
                    if !honest || !Arc::ptr_eq(&endpoint, &attempts.endpoint()) {
                        self.got.clear();
                    }
                }
            }
        }
    }

    /// Asks for what is missing, and takes it if it is exactly that.
    async fn attempt(&mut self, endpoint: &Arc<Endpoint>) -> Result<(), Cause> {
        let start = self.range.start + self.got.len() as u64;
        let end = self.range.end;
        let header = HeaderValue::try_from(format!("bytes={start}-{}", end - 1));
        let header = header.map_err(|error| Cause::Local(error.to_string()))?;
        let (response, host) = self
            .repository
            .fetch(endpoint, &self.digest, Some(header))
            .await?;
        match response.status().as_u16() {
            206 => {
                check_encoding(&response, &host)?;
                let found = ContentRange::of(&response);
                if !found.is_some_and(|found| found.start == start && found.end == end) {
                    let detail = format!(
                        "it was asked for bytes {start}-{} and sends {}",
                        end - 1,
                        said(&response)
                    );
                    return Err(Cause::Malformed { host, detail });
                }
                self.take(response, host, endpoint).await
            }
            200 => {
                check_encoding(&response, &host)?;
                self.take_whole(response, &host, endpoint).await
            }
            _ => Err(exchange::refusal(response, &host, &*endpoint.clock).await),
        }
    }

    async fn take(
        &mut self,
        response: Response,
        host: String,
        endpoint: &Arc<Endpoint>,
    ) -> Result<(), Cause> {
        let length = self.range.end - self.range.start;
        let origin = Origin::new(self.repository, endpoint.clone(), self.digest);
        let mut body = Paced::new(response, host.clone(), &endpoint.timeouts);
        while let Some(bytes) = body.next().await? {
            if (self.got.len() + bytes.len()) as u64 > length {
                let detail = "it sends more bytes than it was asked for".into();
                return Err(Cause::Malformed { host, detail });
            }
            self.got.extend_from_slice(&bytes);
            self.arrivals.arrived(&self.got, &origin);
        }
        if (self.got.len() as u64) < length {
            let detail = "the answer ended before all bytes had come".into();
            return Err(Cause::Connection { host, detail });
        }
        Ok(())
    }

    /// Takes the range out of a small blob that came whole; its digest can be checked then.
    async fn take_whole(
        &mut self,
        response: Response,
        host: &str,
        endpoint: &Endpoint,
    ) -> Result<(), Cause> {
        let kind = response.headers().get(CONTENT_TYPE);
        let is_page = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        let read = body::read_all(
            response,
            host,
            "a blob from a server that ignores ranges",
            WHOLE_BYTES_MAX,
            &endpoint.timeouts,
        );
        let whole = read.await?;
        let found = Digest::of(&whole);
        if found != self.digest && is_page {
            let detail = "this is a web page; is there a login page or a proxy in between?".into();
            return Err(Cause::Malformed {
                host: host.into(),
                detail,
            });
        }
        if found != self.digest {
            return Err(Cause::WrongDigest {
                host: host.into(),
                expected: self.digest,
                found,
            });
        }
        let span = usize::try_from(self.range.start)
            .ok()
            .zip(usize::try_from(self.range.end).ok());
        let part = span.and_then(|(start, end)| whole.get(start..end));
        let Some(part) = part else {
            let detail = format!("the blob has only {} bytes", whole.len());
            return Err(Cause::Malformed {
                host: host.into(),
                detail,
            });
        };
        self.got.clear();
        self.got.extend_from_slice(part);
        Ok(())
    }
}

/// What an answer says it holds, for the error.
fn said(response: &Response) -> String {
    let value = response.headers().get(reqwest::header::CONTENT_RANGE);
    match value.and_then(|value| value.to_str().ok()) {
        Some(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
        None => "something else without saying what".into(),
    }
}
