//! Why a chunk did not arrive.

use std::time::Duration;

use larder_proto::digest::Digest;

/// A chunk that could not be had. Readers get EIO; the log gets this.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// No source delivered it in time.
    #[error(
        "chunk {chunk} of layer {layer} did not arrive within {waited:?}; last from {source_name}: {reason}"
    )]
    Deadline {
        /// The layer.
        layer: Digest,
        /// Its row in the chunk table.
        chunk: usize,
        /// How long it was tried.
        waited: Duration,
        /// Who was asked last.
        source_name: String,
        /// What came of it.
        reason: String,
    },
    /// The data plane is being shut down.
    #[error("the data plane is shutting down")]
    ShutDown,
    /// Everything arrived, and not everything could be kept.
    #[error("layer {layer} cannot be completed: the store has no room; free some disk space")]
    NoRoom {
        /// The layer.
        layer: Digest,
    },
}
