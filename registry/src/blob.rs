//! Blobs: whether they exist, some of their bytes, all of their bytes.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_proto::limits;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderValue, RANGE};
use reqwest::{Method, Response};

use crate::attempts::{Attempts, Purpose};
use crate::auth::Access;
use crate::authority::host_of;
use crate::client::Repository;
use crate::endpoint::Endpoint;
use crate::error::{Cause, RegistryError};
use crate::exchange::Call;
use crate::redirect::{Place, Target};

mod content_range;
mod partial;
mod whole;

use content_range::ContentRange;
#[cfg(any(test, fuzzing))]
pub(crate) use content_range::fuzzing;
pub use whole::{BlobBody, Senders};

/// Longest range that can be asked for at once, bytes: a stored index is fetched in one.
pub const RANGE_BYTES_MAX: u64 = limits::INDEX_STORED_BYTES_MAX;

/// Answers by which an object store says that a signed URL is no longer good.
const STALE: [u16; 5] = [400, 401, 403, 404, 410];

impl Repository {
    /// The blob's size in bytes if the registry (or a mirror) has it.
    pub async fn blob_exists(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        self.exists(digest, Purpose::Pull).await
    }

    /// As [`Repository::blob_exists`]; for a push, only the registry itself counts.
    pub(crate) async fn exists(
        &self,
        digest: &Digest,
        purpose: Purpose,
    ) -> Result<Option<u64>, RegistryError> {
        let access = if purpose == Purpose::Push {
            Access::Push
        } else {
            Access::Pull
        };
        let mut attempts = self
            .attempts(purpose, format!("look for blob {digest}"), 0)
            .await?;
        loop {
            let endpoint = attempts.endpoint();
            match attempts
                .run(self.try_size(&endpoint, digest, &access))
                .await
            {
                Ok(size) => {
                    attempts.succeeded();
                    return Ok(Some(size));
                }
                // A mirror may lack what the registry has, so absence is known at the end only.
                Err(cause) => match attempts.failed(cause).await {
                    Err(error) if error.is_not_found() => return Ok(None),
                    outcome => outcome?,
                },
            }
        }
    }

    /// The bytes `range` of the blob: exactly those, or an error.
    ///
    /// Their content is not checked, a part has no digest here; the status, the range the
    /// registry says it sends and the length are. A broken connection is resumed where it broke.
    pub async fn blob_range(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Bytes, RegistryError> {
        self.blob_range_from(digest, range, &())
            .await
            .map(|(bytes, _)| bytes)
    }

    /// As [`Repository::blob_range`], and says who sent the bytes, for a caller who can check
    /// them: see [`Origin::distrust`]. What has come so far is shown to `arrivals`.
    pub async fn blob_range_from(
        &self,
        digest: &Digest,
        range: Range<u64>,
        arrivals: &dyn Arrivals,
    ) -> Result<(Bytes, Origin), RegistryError> {
        let doing = format!("fetch bytes {}-{} of blob {digest}", range.start, range.end);
        let length = range.end.checked_sub(range.start).unwrap_or(u64::MAX);
        if length > RANGE_BYTES_MAX {
            let limit = RANGE_BYTES_MAX;
            let cause = Cause::TooLarge {
                what: "a range",
                bytes: length,
                limit,
            };
            return Err(self.error(&doing, cause));
        }
        let attempts = self.attempts(Purpose::Pull, doing, length).await?;
        let (bytes, endpoint) = if length == 0 {
            (Bytes::new(), attempts.endpoint())
        } else {
            partial::Partial::new(self, *digest, range, arrivals)
                .fetch(attempts)
                .await?
        };
        Ok((bytes, Origin::new(self, endpoint, *digest)))
    }

    /// The whole blob as a stream, resumed when its connection breaks.
    ///
    /// The size is what the registry announces, and exactly so many bytes come or an error; the
    /// digest is checked by [`BlobBody::verified`] or by the caller.
    pub async fn blob(&self, digest: &Digest) -> Result<BlobBody, RegistryError> {
        self.blob_from(digest, 0).await
    }

    /// The same from byte `offset` on, which must lie before the blob's end. Nothing checks its
    /// digest but the caller, who has the bytes before.
    pub async fn blob_from(&self, digest: &Digest, offset: u64) -> Result<BlobBody, RegistryError> {
        let attempts = self
            .attempts(Purpose::Pull, format!("fetch blob {digest}"), 0)
            .await?;
        BlobBody::open(self, *digest, offset, attempts).await
    }

    /// A whole small blob, such as a configuration, with its digest checked.
    pub async fn blob_bytes(&self, digest: &Digest, limit: u64) -> Result<Bytes, RegistryError> {
        let attempts = self
            .attempts(Purpose::Pull, format!("fetch blob {digest}"), limit)
            .await?;
        whole::small(self, *digest, limit, attempts).await
    }

    fn blob_call(
        &self,
        endpoint: &Endpoint,
        method: Method,
        digest: &Digest,
        access: Access,
    ) -> Result<Call, Cause> {
        let mut call = self.call(endpoint, method, &format!("blobs/{digest}"), access)?;
        // A proxy that compresses would change the bytes.
        call.headers
            .insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Ok(call)
    }

    async fn try_size(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        access: &Access,
    ) -> Result<u64, Cause> {
        let call = self.blob_call(endpoint, Method::HEAD, digest, access.clone())?;
        let (response, target) = self.read(endpoint, call).await?;
        let status = response.status().as_u16();
        let size = response
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|size| size.to_str().ok());
        match (status, size.and_then(|size| size.parse().ok())) {
            (200, Some(size)) => Ok(size),
            // HEAD is refused, or answered without the size: one byte tells it too.
            (200 | 400 | 405 | 501, _) => self.size_by_range(endpoint, digest, access).await,
            // HEAD was redirected to a URL that is signed for GET.
            _ if signed_in_vain(endpoint, target.as_ref(), status).is_some() => {
                self.size_by_range(endpoint, digest, access).await
            }
            _ => Err(self.refusal(endpoint, response).await),
        }
    }

    async fn size_by_range(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        access: &Access,
    ) -> Result<u64, Cause> {
        let mut call = self.blob_call(endpoint, Method::GET, digest, access.clone())?;
        call.headers
            .insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let (response, target) = self.read(endpoint, call).await?;
        let status = response.status().as_u16();
        if let Some(cause) = signed_in_vain(endpoint, target.as_ref(), status) {
            return Err(cause);
        }
        let malformed = |detail: &str| Cause::Malformed {
            host: endpoint.host.clone(),
            detail: detail.into(),
        };
        match status {
            206 => {
                let total = ContentRange::of(&response).and_then(|range| range.total);
                total.ok_or_else(|| malformed("it does not tell the size of the blob"))
            }
            200 => {
                let size = response.content_length();
                size.ok_or_else(|| malformed("it does not tell the size of the blob"))
            }
            // No first byte: the blob is empty.
            416 => Ok(0),
            _ => Err(self.refusal(endpoint, response).await),
        }
    }

    fn place(&self, endpoint: &Endpoint, digest: &Digest) -> Place {
        Place {
            base: endpoint.base.clone(),
            repository: self.name().into(),
            digest: *digest,
        }
    }

    /// Asks for a blob or for a range of it, by the remembered way if there is one.
    ///
    /// The answer may have any status, and comes with the host it came from.
    async fn fetch(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        range: Option<HeaderValue>,
    ) -> Result<(Response, String), Cause> {
        let mut call = self.blob_call(endpoint, Method::GET, digest, Access::Pull)?;
        if let Some(range) = range {
            call.headers.insert(RANGE, range);
        }
        let place = self.place(endpoint, digest);
        let targets = &self.shared().targets;
        if let Some(answer) = self.fetch_target(endpoint, &place, &call).await? {
            return Ok(answer);
        }
        // However many readers found the target expired, one asks for the next.
        let mut turn = targets.turn(&place).await;
        if turn.is_some() && targets.get(&place).is_some() {
            turn = None;
            if let Some(answer) = self.fetch_target(endpoint, &place, &call).await? {
                return Ok(answer);
            }
        }
        let (response, target) = self.read(endpoint, call).await?;
        let status = response.status().as_u16();
        if let Some(cause) = signed_in_vain(endpoint, target.as_ref(), status) {
            return Err(cause);
        }
        let Some(target) = target else {
            targets.forget(&place);
            return Ok((response, endpoint.host.clone()));
        };
        let host = host_of(&target.url).to_owned();
        if matches!(status, 200 | 206) {
            targets.remember(place, target);
        }
        drop(turn);
        Ok((response, host))
    }

    /// Sends `call` to where `place` was last found; nothing if that is not known or no longer good.
    async fn fetch_target(
        &self,
        endpoint: &Endpoint,
        place: &Place,
        call: &Call,
    ) -> Result<Option<(Response, String)>, Cause> {
        let targets = &self.shared().targets;
        let Some(target) = targets.get(place) else {
            return Ok(None);
        };
        let host = host_of(&target.url).to_owned();
        let mut call = call.clone();
        call.url = target.url.clone();
        call.bare = !target.own;
        match self.send(endpoint, &call).await {
            // Back to the registry for a fresh target; this is not about credentials.
            Ok(answer) if STALE.contains(&answer.status().as_u16()) => {
                targets.expired(place, &target);
                Ok(None)
            }
            Ok(answer) if answer.status().is_redirection() => {
                targets.drop_target(place, &target);
                Ok(None)
            }
            Ok(answer) => Ok(Some((answer, host))),
            Err(cause) => {
                if cause.is_transient() {
                    targets.drop_target(place, &target);
                }
                Err(cause)
            }
        }
    }
}

/// The cause if a store refuses a URL that the registry has only just signed: the store's 401 or
/// 404 must not pass for the registry's.
fn signed_in_vain(endpoint: &Endpoint, target: Option<&Target>, status: u16) -> Option<Cause> {
    let target = target.filter(|target| !target.own && STALE.contains(&status))?;
    Some(Cause::Refused {
        host: host_of(&target.url).to_owned(),
        status,
        detail: format!(" (for a URL that {} has just signed)", endpoint.host),
    })
}

/// Watches the bytes of a range come, for who can use a part before the rest is there.
pub trait Arrivals: Send + Sync {
    /// `so_far` has come of the range, from its start on, and `origin` sends it. They may be fewer than
    /// at the call before: then what came was thrown away, since another one sends it again.
    fn arrived(&self, so_far: &[u8], origin: &Origin);
}

/// Watches nothing.
impl Arrivals for () {
    fn arrived(&self, _so_far: &[u8], _origin: &Origin) {}
}

/// Who sent some bytes of a blob.
#[derive(Debug, Clone)]
pub struct Origin {
    repository: Repository,
    endpoint: Arc<Endpoint>,
    digest: Digest,
}

impl Origin {
    fn new(repository: &Repository, endpoint: Arc<Endpoint>, digest: Digest) -> Self {
        let repository = repository.clone();
        Self {
            repository,
            endpoint,
            digest,
        }
    }

    /// The registry or mirror, as `host` or `host:port`.
    pub fn host(&self) -> &str {
        &self.endpoint.host
    }

    /// Reports that the bytes were wrong. A mirror is passed over for a while, so that asking
    /// again reaches the next one; a remembered redirect is forgotten.
    pub fn distrust(&self) {
        let place = self.repository.place(&self.endpoint, &self.digest);
        self.repository.shared().targets.forget(&place);
        self.endpoint.pass_over();
    }
}

/// Refuses an answer whose body is not the blob's bytes as they are.
fn check_encoding(response: &Response, host: &str) -> Result<(), Cause> {
    match response.headers().get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => Err(Cause::Malformed {
            host: host.into(),
            detail: "the blob was compressed on its way; is there a proxy in between?".into(),
        }),
        _ => Ok(()),
    }
}

/// Settles one failure of a call that had come further since the last one.
async fn settle(
    attempts: &mut Attempts,
    progressed: bool,
    cause: Cause,
) -> Result<(), RegistryError> {
    if progressed {
        attempts.progressed();
    }
    attempts.failed(cause).await
}
