//! Who is told of what an operator should hear of.

mod limit;

use std::fmt::Debug;
use std::time::Duration;

use larder_proto::digest::Digest;

use crate::counts::{Delay, ReadFailure};
use crate::layer::LayerId;

pub(crate) use limit::SlowReads;

/// Hears of what happens in a data plane. Called on its threads: an observer must not wait.
pub trait Observer: Send + Sync + Debug {
    /// A read took longer than [`crate::DataPlaneConfig::slow_read`].
    fn slow_read(&self, read: &SlowRead) {
        read.log("");
    }

    /// The index of a layer was found to lie. It is logged already.
    fn quarantined(&self, _layer: LayerId, _blob: Digest, _reason: &str) {}
}

/// Logs, and does no more.
#[derive(Debug)]
pub(crate) struct Logged;

impl Observer for Logged {}

/// A read that took long.
#[derive(Debug, Clone)]
pub struct SlowRead {
    /// The layer.
    pub layer: LayerId,
    /// Digest of its blob.
    pub blob: Digest,
    /// The file whose bytes were waited for, from the root of the layer without a leading slash;
    /// `None` for bytes between files.
    pub path: Option<String>,
    /// Where in the file, bytes; without a file, where in the tar.
    pub offset: u64,
    /// Bytes asked for.
    pub bytes: usize,
    /// How long it took.
    pub took: Duration,
    /// What took most of that.
    pub cause: Delay,
    /// Who was asked for the bytes last, if anybody was.
    pub source: Option<String>,
    /// Why it failed, if it did.
    pub failed: Option<ReadFailure>,
    /// Slow reads since the last report that were counted and not reported.
    pub suppressed: u64,
}

impl SlowRead {
    /// Writes the one line for it; `image` is what people call the image, or empty.
    pub fn log(&self, image: &str) {
        tracing::warn!(
            image,
            layer = %self.blob,
            path = self.path.as_deref().unwrap_or_default(),
            offset = self.offset,
            bytes = self.bytes,
            seconds = self.took.as_secs_f64(),
            cause = self.cause.name(),
            source = self.source.as_deref().unwrap_or_default(),
            failed = self.failed.map_or("", ReadFailure::name),
            suppressed = self.suppressed,
            "a read was slow"
        );
    }
}
