//! All bytes of a blob.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt as _, TryStreamExt as _};
use larder_proto::digest::Digest;
use reqwest::header::HeaderValue;
use sha2::Digest as _;

use super::{ContentRange, Origin, check_encoding, settle};
use crate::attempts::Attempts;
use crate::body::{self, Paced};
use crate::client::Repository;
use crate::endpoint::Endpoint;
use crate::error::{Cause, RegistryError};
use crate::exchange;

/// A blob on its way: its size, and a stream of its bytes.
pub struct BlobBody {
    size: Option<u64>,
    expected: Digest,
    senders: Senders,
    stream: BoxStream<'static, Result<Bytes, RegistryError>>,
    describe: Arc<dyn Fn(Cause) -> RegistryError + Send + Sync>,
}

/// Who sent the bytes of a blob, as far as it has come.
#[derive(Debug, Clone, Default)]
pub struct Senders(Arc<Mutex<Vec<Origin>>>);

impl Senders {
    /// Reports that the bytes were wrong; any of the senders may be to blame. See
    /// [`Origin::distrust`].
    pub fn distrust(&self) {
        let senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        senders.iter().for_each(Origin::distrust);
    }

    fn add(&self, origin: Origin) {
        let mut senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // As many as there are mirrors, whatever breaks how often.
        if senders.iter().all(|known| known.host() != origin.host()) {
            senders.push(origin);
        }
    }
}

impl fmt::Debug for BlobBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobBody({}, {:?} bytes)", self.expected, self.size)
    }
}

impl Stream for BlobBody {
    type Item = Result<Bytes, RegistryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(context)
    }
}

impl BlobBody {
    /// The blob's size in bytes, if the registry tells it.
    pub const fn size(&self) -> Option<u64> {
        self.size
    }

    /// Who sends it, to be asked after the bytes turned out wrong.
    pub fn senders(&self) -> Senders {
        self.senders.clone()
    }

    /// The same stream, ending in an error if its bytes do not have the blob's digest.
    ///
    /// The bytes before that error have not been checked; act on them only after the end.
    #[must_use]
    pub fn verified(self) -> Self {
        let Self {
            size,
            expected,
            senders,
            stream,
            describe,
        } = self;
        let error = Arc::clone(&describe);
        let begin = (stream, sha2::Sha256::new(), error);
        let stream = stream::try_unfold(begin, move |(mut stream, mut hasher, error)| async move {
            if let Some(bytes) = stream.try_next().await? {
                hasher.update(&bytes);
                return Ok(Some((bytes, (stream, hasher, error))));
            }
            let found = Digest::from_bytes(hasher.finalize().into());
            if found == expected {
                return Ok(None);
            }
            let host = "the registry".into();
            Err(error(Cause::WrongDigest {
                host,
                expected,
                found,
            }))
        });
        Self {
            size,
            expected,
            senders,
            stream: stream.boxed(),
            describe,
        }
    }

    pub(super) async fn open(
        repository: &Repository,
        digest: Digest,
        offset: u64,
        attempts: Attempts,
    ) -> Result<Self, RegistryError> {
        let senders = Senders::default();
        let mut download = Download {
            repository: repository.clone(),
            digest,
            attempts,
            size: None,
            offset,
            senders: senders.clone(),
            skip: 0,
            body: None,
            progressed: false,
        };
        download.connect().await?;
        let size = download.size;
        let (named, doing) = (repository.clone(), format!("fetch blob {digest}"));
        let stream = stream::try_unfold(download, |mut download| async move {
            let bytes = download.next().await?;
            Ok(bytes.map(|bytes| (bytes, download)))
        });
        let describe = Arc::new(move |cause| named.error(&doing, cause));
        Ok(Self {
            size,
            expected: digest,
            senders,
            stream: stream.boxed(),
            describe,
        })
    }
}

/// A download, kept over the attempts.
struct Download {
    repository: Repository,
    digest: Digest,
    attempts: Attempts,
    size: Option<u64>,
    /// Place of the next byte.
    offset: u64,
    senders: Senders,
    /// Bytes to pass over: from a server that began anew instead of where it was asked to.
    skip: u64,
    body: Option<Paced>,
    /// Whether bytes have come since the last failure.
    progressed: bool,
}

impl Download {
    /// The next bytes; connects again when the connection breaks.
    async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            self.connect().await?;
            match self.read().await {
                Ok(Some(bytes)) if bytes.is_empty() => {}
                Ok(bytes) => return Ok(bytes),
                Err(cause) => self.failed(cause).await?,
            }
        }
    }

    async fn failed(&mut self, cause: Cause) -> Result<(), RegistryError> {
        self.body = None;
        let progressed = std::mem::take(&mut self.progressed);
        settle(&mut self.attempts, progressed, cause).await
    }

    /// Makes sure that there is a body to read from.
    async fn connect(&mut self) -> Result<(), RegistryError> {
        while self.body.is_none() {
            let endpoint = self.attempts.endpoint();
            let offset = self.offset;
            let opened = open(&self.repository, &endpoint, &self.digest, offset, self.size);
            match self.attempts.run(opened).await {
                Ok((body, size, skip)) => {
                    self.senders.add(Origin {
                        repository: self.repository.clone(),
                        endpoint,
                        digest: self.digest,
                    });
                    self.body = Some(body);
                    self.size = self.size.or(size);
                    self.skip = skip;
                }
                Err(cause) => self.failed(cause).await?,
            }
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Cause> {
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        let host = self.attempts.endpoint().host.clone();
        let Some(mut bytes) = body.next().await? else {
            return match self.size {
                Some(size) if self.offset < size => {
                    let detail = format!("the blob ended at byte {} of {size}", self.offset);
                    Err(Cause::Connection { host, detail })
                }
                _ => Ok(None),
            };
        };
        let skipped = self.skip.min(bytes.len() as u64);
        self.skip -= skipped;
        let bytes = bytes.split_off(usize::try_from(skipped).unwrap_or_default());
        let offset = self.offset + bytes.len() as u64;
        if self.size.is_some_and(|size| offset > size) {
            let detail = "it sends more bytes than the blob has".into();
            return Err(Cause::Malformed { host, detail });
        }
        self.offset = offset;
        self.progressed |= !bytes.is_empty();
        Ok(Some(bytes))
    }
}

/// Opens a blob at `offset`: a body, the size of the blob if it is told, and the bytes to skip.
async fn open(
    repository: &Repository,
    endpoint: &Endpoint,
    digest: &Digest,
    offset: u64,
    known: Option<u64>,
) -> Result<(Paced, Option<u64>, u64), Cause> {
    let range = (offset > 0).then(|| HeaderValue::try_from(format!("bytes={offset}-")));
    let range = range
        .transpose()
        .map_err(|error| Cause::Local(error.to_string()))?;
    let (response, host) = repository.fetch(endpoint, digest, range).await?;
    let status = response.status().as_u16();
    if matches!(status, 200 | 206) {
        check_encoding(&response, &host)?;
    }
    let malformed = |detail: String| Cause::Malformed {
        host: host.clone(),
        detail,
    };
    let (size, skip) = match status {
        // A server that ignores the range begins anew; what we have is passed over.
        200 => (response.content_length(), offset),
        206 => {
            let found = ContentRange::of(&response);
            let fits = |found: &ContentRange| {
                found.start == offset && found.total.is_none_or(|total| total == found.end)
            };
            let found = found.filter(fits);
            let found = found.ok_or_else(|| {
                malformed(format!(
                    "it was asked for all from byte {offset} and sends something else"
                ))
            })?;
            (found.total, 0)
        }
        _ => return Err(exchange::refusal(response, &host, &*endpoint.clock).await),
    };
    if let (Some(known), Some(size)) = (known, size)
        && known != size
    {
        return Err(malformed(format!(
            "the blob had {known} bytes and now has {size}"
        )));
    }
    Ok((Paced::new(response, host, &endpoint.timeouts), size, skip))
}

/// A whole blob of at most `limit` bytes, with its digest checked.
pub(super) async fn small(
    repository: &Repository,
    digest: Digest,
    limit: u64,
    mut attempts: Attempts,
) -> Result<Bytes, RegistryError> {
    loop {
        let endpoint = attempts.endpoint();
        let attempt = async {
            let (response, host) = repository.fetch(&endpoint, &digest, None).await?;
            if response.status() != 200 {
                return Err(exchange::refusal(response, &host, &*endpoint.clock).await);
            }
            check_encoding(&response, &host)?;
            let read = body::read_all(response, &host, "a blob", limit, &endpoint.timeouts);
            let bytes = read.await?;
            let found = Digest::of(&bytes);
            if found == digest {
                return Ok(bytes);
            }
            Err(Cause::WrongDigest {
                host,
                expected: digest,
                found,
            })
        };
        match attempts.run(attempt).await {
            Ok(bytes) => {
                attempts.succeeded();
                return Ok(bytes);
            }
            Err(cause) => attempts.failed(cause).await?,
        }
    }
}
