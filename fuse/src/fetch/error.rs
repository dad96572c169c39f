//! Why a chunk did not arrive.

use std::time::Duration;

use larder_proto::digest::Digest;

/// A chunk that could not be had. Readers get EIO; the log gets this.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// No source delivered it in time.
    #[error("chunk {chunk} of layer {layer} did not arrive within {waited:?}: {reasons}")]
    Deadline {
        /// The layer.
        layer: Digest,
        /// Its row in the chunk table.
        chunk: usize,
        /// How long it was tried.
        waited: Duration,
        /// Who was asked, and what came of it.
        reasons: String,
        /// Whether something came, and was wrong.
        is_wrong: bool,
    },
    /// It came, the store lost it before it was read, and it did not come again before the deadline.
    #[error("the store lost chunks of layer {layer}, and they did not come again in time")]
    Lost {
        /// The layer.
        layer: Digest,
    },
    /// No source will deliver it until somebody mends something.
    #[error("chunk {chunk} of layer {layer} cannot be had: {reasons}")]
    Refused {
        /// The layer.
        layer: Digest,
        /// Its row in the chunk table.
        chunk: usize,
        /// Who was asked, and what came of it.
        reasons: String,
    },
    /// The data plane is being shut down.
    #[error("the data plane is shutting down")]
    ShutDown,
    /// The layer is not kept any more: nothing is fetched for it but what is read.
    #[error("layer {layer} was removed")]
    Removed {
        /// The layer.
        layer: Digest,
    },
    /// Everything arrived, and not everything could be kept.
    #[error("layer {layer} cannot be completed: the store has no room; free some disk space")]
    NoRoom {
        /// The layer.
        layer: Digest,
    },
}

impl FetchError {
    /// Whether it says nothing of the chunk and all of who should deliver it: others fail for it, too.
    pub(super) const fn is_of_the_sources(&self) -> bool {
        matches!(
            self,
            Self::Deadline {
                is_wrong: false,
                ..
            }
        )
    }
}
