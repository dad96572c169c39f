//! Where the bytes of a layer blob come from.

mod registry;

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

pub use registry::RegistrySource;

/// A future that can be put into a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A place that may have the bytes of one layer blob: a peer, a mirror, a registry.
///
/// Nothing a source says is believed before its digest was checked.
pub trait Source: Send + Sync + fmt::Debug {
    /// What to call it in messages: host and repository.
    fn name(&self) -> &str;

    /// The bytes `range` of the blob. The caller drops the future when it takes too long.
    fn get(&self, range: Range<u64>) -> BoxFuture<'_, Answer>;
}

/// What a source says.
#[derive(Debug, Clone)]
pub enum Answer {
    /// The bytes, not yet verified.
    Bytes(Bytes),
    /// It does not have the blob.
    Miss,
    /// It may have it, but did not deliver.
    Failed(SourceFailure),
}

/// Why a source did not deliver.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub struct SourceFailure {
    /// For the log.
    pub reason: String,
    /// When the source asks to be asked again.
    pub retry_after: Option<Duration>,
}
