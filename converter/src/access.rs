//! What is needed to reach images, wherever they are, and what can go wrong on the way.

use larder_proto::digest::Digest;
use larder_registry::{Client, RegistryError};

use crate::containerd::{ContainerdError, Node};
use crate::docker::DockerError;
use crate::layout::LayoutError;
use crate::manifest::ManifestError;

/// What is needed to reach images.
#[derive(Debug, Clone)]
pub struct Access {
    /// The client for registries.
    pub client: Client,
    /// The containerd whose images `containerd:` names.
    pub node: Node,
}

impl AccessError {
    /// Whether the place has the image, but not this part of it: containerd pulls no more than it needs.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Containerd(ContainerdError::NoSuchBlob { .. }))
    }

    /// Whether the place says that it has no such blob.
    pub fn is_no_such_blob(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_not_found(),
            Self::Layout(LayoutError::NoSuchBlob { .. }) => true,
            other => other.is_absent(),
        }
    }
}

/// An image that cannot be reached, read or written.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The registry refused or could not be reached.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The OCI layout does not have it, or is damaged.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The archive of `docker save` does not have it, or is damaged.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// containerd does not have it, or refused.
    #[error(transparent)]
    Containerd(#[from] ContainerdError),
    /// A document is malformed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A blob or document is not what its descriptor says.
    #[error("{location} gave other bytes than asked for: expected {expected}, got {found}")]
    Digest {
        /// Where it came from.
        location: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// A document larger than anything honest.
    #[error("{location} has a document {digest} of {size} bytes, more than the limit of {limit}")]
    TooLarge {
        /// Where it came from.
        location: String,
        /// Which one.
        digest: Digest,
        /// Its size, bytes.
        size: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// Reading failed.
    #[error("cannot read {digest} from {location}: {error}")]
    Read {
        /// Where it is.
        location: String,
        /// Which blob.
        digest: Digest,
        /// What the system said.
        error: std::io::Error,
    },
    /// A destination that can hold no converted image.
    #[error("{location} cannot be a destination: {reason}")]
    NoDestination {
        /// The destination.
        location: String,
        /// Why.
        reason: &'static str,
    },
}
