//! Converting one layer: the pipeline from source blob to Larder blob.
//!
//! ```text
//! read + inflate ─▶ hash + walk the tar + cut ─▶ workers: compress + digest ─▶ write in order
//!   (this thread)          (scan thread)            (shared by all layers)      (write thread)
//! ```
//!
//! What is in flight is bounded by [`Workers`]' budget, so memory does not grow with the layer.
//! Chunks are cut by the scan alone, so the blob is the same on any number of cores.

mod budget;
mod cutter;
mod flush;
mod options;
mod pipeline;
mod scanning;
mod tap;
#[cfg(test)]
mod tests;
mod workers;
mod writing;

use std::fs::File;
use std::io;
use std::io::Read;

use larder_proto::annotation::IndexLocation;
use larder_proto::digest::Digest;

pub use options::{LEVEL_DEFAULT, LayerOptions, Level, OptionError};
pub use pipeline::{Cancel, convert_layer};
pub use tap::{Tap, verified_copy};
pub use workers::Workers;

/// The blob of one source layer, and what must be true of it.
pub struct LayerInput {
    /// What the manifest says its digest is.
    pub digest: Digest,
    /// What the manifest says its length is, bytes.
    pub size: u64,
    /// What the image's config says the digest of its tar is.
    pub diff_id: Digest,
    /// Its bytes.
    pub blob: Box<dyn Read + Send>,
}

impl std::fmt::Debug for LayerInput {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerInput")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

/// Where a converted layer is written.
#[derive(Debug)]
pub struct LayerOutput {
    /// An empty file, which need not have a name.
    pub file: File,
    /// Whether the file itself will stay: then its bytes go to the disk while others are being
    /// compressed. A file that is only sent on need never reach the disk.
    pub stays: bool,
}

/// What became of a layer.
#[derive(Debug)]
pub enum Outcome {
    /// It is now in Larder's form.
    Converted(ConvertedLayer),
    /// It is intact, but Larder's form cannot represent it; the text says why.
    Unrepresentable(String),
}

/// A layer in Larder's form.
#[derive(Debug)]
pub struct ConvertedLayer {
    /// The blob, in a file that has no name yet.
    pub file: File,
    /// Digest of the blob.
    pub digest: Digest,
    /// Length of the blob, bytes.
    pub size: u64,
    /// Where its index lies.
    pub location: IndexLocation,
    /// Length of the tar, bytes.
    pub tar_len: u64,
    /// Chunks it was cut into.
    pub chunks: usize,
}

/// Why a layer could not be converted or copied.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The blob could not be read to its end.
    #[error("layer {layer} could not be read: {reason}")]
    Source {
        /// Digest of the source layer.
        layer: Digest,
        /// What the source said.
        reason: String,
    },
    /// The source gave other bytes than the manifest promises.
    #[error("layer {expected} is damaged: the source gave {size} bytes with digest {found}")]
    Digest {
        /// From the manifest.
        expected: Digest,
        /// Of the bytes that came.
        found: Digest,
        /// How many came.
        size: u64,
    },
    /// The blob is not what the manifest says it is long.
    #[error("layer {layer} has {found} bytes, but its manifest says {expected}")]
    Size {
        /// Digest of the source layer.
        layer: Digest,
        /// From the manifest.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// The blob has the right digest but does not decode.
    #[error("layer {layer} cannot be decoded: {reason}")]
    Encoding {
        /// Digest of the source layer.
        layer: Digest,
        /// What the decoder said.
        reason: String,
    },
    /// The tar is not the one the config names.
    #[error(
        "layer {layer} holds a tar with diffID {found}, but the image's config says {expected}"
    )]
    DiffId {
        /// Digest of the source layer.
        layer: Digest,
        /// From the config.
        expected: Digest,
        /// Of the tar.
        found: Digest,
    },
    /// The tar is malformed or hostile.
    #[error("layer {layer} is not a tar that can be converted: {reason}")]
    Malformed {
        /// Digest of the source layer.
        layer: Digest,
        /// The entry and what is wrong with it.
        reason: String,
    },
    /// The result could not be written.
    #[error("layer {layer} could not be written: {error}")]
    Write {
        /// Digest of the source layer.
        layer: Digest,
        /// What the file system said.
        error: io::Error,
    },
    /// The index this build wrote is not one this build accepts.
    #[error(
        "layer {layer} was given an index that does not read back ({reason}); this is a bug in Larder, please report it"
    )]
    Index {
        /// Digest of the source layer.
        layer: Digest,
        /// What the reader said.
        reason: String,
    },
    /// The conversion was interrupted.
    #[error("interrupted")]
    Cancelled,
}
