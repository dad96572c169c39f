//! Where the bytes of a layer blob come from.

mod registry;

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder_registry::Origin;

pub use registry::RegistrySource;

/// A future that can be put into a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A place that may have the bytes of one layer blob: a peer, a mirror, a registry.
///
/// Nothing a source says is believed before its digest was checked.
pub trait Source: Send + Sync + fmt::Debug {
    /// What to call it in messages: host and repository. Two sources of a layer with the same
    /// name are taken for the same.
    fn name(&self) -> &str;

    /// The bytes `range` of the blob. The caller drops the future when it takes too long. A source that
    /// has a part before the rest shows it to `arrivals`, so that who waits for that part goes on.
    fn get<'a>(&'a self, range: Range<u64>, arrivals: &'a dyn Arrivals) -> BoxFuture<'a, Answer>;

    /// The machine that the bytes come from, as far as is known beforehand: what is asked of it shares
    /// one link. The host of a registry, which may have mirrors.
    fn link(&self) -> &str {
        let name = self.name();
        name.split_once('/').map_or(name, |(host, _)| host)
    }

    /// What went wrong in a call that does not end, as far as the source knows: it may have asked
    /// several times behind the caller's back.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Watches the bytes of one request come.
pub trait Arrivals: Send + Sync {
    /// `so_far` has come of the range, from its start on, sent by `origin`. They may be fewer than at the
    /// call before: then those are thrown away, and sent again.
    fn arrived(&self, so_far: &[u8], origin: Option<&Origin>);
}

/// Watches nothing.
impl Arrivals for () {
    fn arrived(&self, _so_far: &[u8], _origin: Option<&Origin>) {}
}

/// Why `source` is not waited for any longer, after `waited`.
pub(crate) fn no_answer(source: &dyn Source, waited: Duration) -> String {
    match source.trouble() {
        Some(trouble) => format!("{trouble}; no other answer within {waited:?}"),
        None => format!("no answer within {waited:?}"),
    }
}

/// Finds further sources of one layer when none of the known ones delivers.
pub trait Elsewhere: Send + Sync + fmt::Debug {
    /// All places that may have the blob, the best first; known ones may be among them. Asked
    /// rarely, and dropped when it takes too long.
    fn find(&self) -> BoxFuture<'_, Vec<Arc<dyn Source>>>;
}

/// What a source says.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The bytes, not yet verified.
    Bytes(Delivery),
    /// It does not have the blob.
    Miss,
    /// It may have it, but did not deliver.
    Failed(SourceFailure),
}

impl From<Bytes> for Answer {
    fn from(bytes: Bytes) -> Self {
        let origin = None;
        Self::Bytes(Delivery { bytes, origin })
    }
}

/// Bytes of a blob as they came.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The bytes.
    pub bytes: Bytes,
    /// Which of a registry's mirrors sent them, to be blamed if they are wrong.
    pub origin: Option<Origin>,
}

impl Delivery {
    /// Tells the sender's side that the bytes were wrong, so that asking again asks another one.
    pub(crate) fn distrust(&self) {
        if let Some(origin) = &self.origin {
            origin.distrust();
        }
    }
}

/// Why a source did not deliver.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct SourceFailure {
    /// For the log.
    pub reason: String,
    /// Whether asking again may help.
    pub kind: FailureKind,
    /// When the source asks to be asked again.
    pub retry_after: Option<Duration>,
}

/// What can be expected of a source that did not deliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// It may pass by itself.
    Passing,
    /// Our credentials were refused: nothing comes before somebody changes them.
    Refused,
    /// It does not give it to us, whoever we say we are.
    Forbidden,
    /// It does not have the blob.
    Absent,
}

impl FailureKind {
    /// Whether asking again soon changes nothing, and is not to be done: the source says no.
    pub(crate) const fn is_lasting(self) -> bool {
        matches!(self, Self::Forbidden | Self::Absent)
    }
}

/// Asks `source` for `range`; exactly so many bytes, or why there are none.
pub(crate) async fn ask(
    source: &dyn Source,
    range: Range<u64>,
    arrivals: &dyn Arrivals,
) -> Result<Delivery, SourceFailure> {
    let asked = range.end - range.start;
    let failure = |kind, reason: String| SourceFailure {
        reason,
        kind,
        retry_after: None,
    };
    match source.get(range, arrivals).await {
        Answer::Bytes(delivery) if delivery.bytes.len() as u64 == asked => Ok(delivery),
        Answer::Bytes(delivery) => {
            delivery.distrust();
            let sent = delivery.bytes.len();
            let reason = format!("it sent {sent} bytes instead of {asked}");
            Err(failure(FailureKind::Passing, reason))
        }
        Answer::Miss => {
            let reason = "it does not have the blob".into();
            Err(failure(FailureKind::Absent, reason))
        }
        Answer::Failed(failure) => Err(failure),
    }
}
