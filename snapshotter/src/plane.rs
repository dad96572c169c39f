//! What the snapshotter needs of the data plane, so that its logic can be tested without a kernel.

mod attached;
mod elsewhere;
mod mounting;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use larder_fuse::supervisor::Takeovers;
use larder_fuse::{CachingStopped, Counts, Recording, StoreUsage, Verdicts};
use larder_proto::access::Access;
use larder_proto::annotation::{IndexLocation, StartList};
use larder_proto::digest::Digest;

use crate::store::{ImpliedEntry, LayerFacts, Origin, Owner};
pub(crate) use elsewhere::with_port;
pub(crate) use mounting::WHOLE_LAYER_MAX;
pub use mounting::{MountingPlane, StartPlaneError};

/// A layer that should be loaded lazily.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Digest of the layer's blob.
    pub blob: Digest,
    /// Where in the blob its index is.
    pub index: IndexLocation,
    /// Where the blob can be fetched, best first.
    pub origins: Vec<Origin>,
    /// containerd namespace whose images may name further places; empty for images mounted by
    /// hand.
    pub namespace: String,
    /// The chunks that a start is expected to read, by the image's account.
    pub start: Vec<Access>,
}

/// What the annotation `larder.start` of a layer lists. A list that cannot be read counts as none: it would
/// only have saved time.
pub(crate) fn start_list(blob: &Digest, annotation: Option<&str>) -> Vec<Access> {
    match annotation.map(str::parse::<StartList>) {
        Some(Ok(list)) => list.accesses().collect(),
        Some(Err(error)) => {
            tracing::info!(layer = %blob, %error, "what a start reads is not known");
            Vec::new()
        }
        None => Vec::new(),
    }
}

impl Wanted {
    /// The layer that stored facts describe; nothing if they are not ours.
    pub fn from_facts(facts: &LayerFacts) -> Option<Self> {
        Some(Self {
            blob: facts.blob.parse().ok()?,
            index: facts.location.parse().ok()?,
            origins: facts.origins.clone(),
            namespace: facts.namespace.clone(),
            start: Vec::new(),
        })
    }

    /// In the form in which facts are stored, to find the sources of a removed layer again.
    fn origin(&self) -> Vec<u8> {
        let facts = LayerFacts {
            blob: self.blob.to_string(),
            location: self.index.to_string(),
            origins: self.origins.clone(),
            namespace: self.namespace.clone(),
            implied: Vec::new(),
        };
        // Without it, what the store has is served.
        serde_json::to_vec(&facts).unwrap_or_default()
    }
}

/// A layer of a chain, with the attributes of its implied directories there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainLayer {
    /// Digest of its stored index.
    pub index: Digest,
    /// What its implied directories look like.
    pub implied: Vec<ImpliedEntry>,
}

/// One entry of a layer's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub owner: Owner,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is, as far as resolving paths cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// Anything else, whiteouts included.
    Other,
}

/// How a layer fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Digest of the layer's blob.
    pub blob: Option<Digest>,
    /// Bytes of the layer's tar.
    pub bytes_total: u64,
    /// Of those, bytes on this node.
    pub bytes_present: u64,
    /// Whether all of them are here.
    pub complete: bool,
    /// Whether the tree was proved to be that of the layer's tar.
    pub proven: bool,
    /// Why its index is not believed any more, if so.
    pub quarantined: Option<String>,
    /// Bytes its chunks take on the disk.
    pub data_on_disk: u64,
    /// Bytes its index, metadata images and record take on the disk.
    pub beside_on_disk: u64,
    /// Whether it is mounted or open.
    pub in_use: bool,
    /// When it was last read, seconds since 1970.
    pub last_used: u64,
    /// The names it is pinned by.
    pub pins: Vec<String>,
    /// Where missing bytes come from.
    pub sources: Vec<SourceProgress>,
}

/// How one source fares.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceProgress {
    /// Host and repository.
    pub name: String,
    /// Bytes fetched since the process started.
    pub bytes_fetched: u64,
    /// Last failure, or empty.
    pub failure: String,
    /// Which hosts sent these bytes, and how many: the registry, its mirrors.
    pub senders: Vec<(String, u64)>,
}

/// A failure of the data plane, in words for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// It did not work.
    #[error("{0}")]
    Failed(String),
    /// The disk has no room for as much as the index.
    #[error("{0}")]
    DiskFull(String),
}

/// The data plane. Layers are named by the digest of their stored index.
pub trait Plane: Send + Sync + Debug {
    /// Fetches and checks the index of a layer unless it is in the store. Idempotent; parallel
    /// calls for one layer share the work.
    fn add<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<(), PlaneError>>;

    /// What the sources of a layer that is being added last failed with, if they did.
    fn trouble(&self, _index: &Digest) -> Option<String> {
        None
    }

    /// Gives sources to a layer that is in the store; false if it is not. Never uses the network.
    fn attach(&self, wanted: &Wanted) -> bool;

    /// SHA-256 of the layer's tar by the account of its index, if that is in the store.
    fn diff_id(&self, index: &Digest) -> Option<Digest>;

    /// Directories the layer implies, without a leading slash, parents first.
    fn implied(&self, index: &Digest) -> Vec<Vec<u8>>;

    /// The entry at `path`, without a leading slash; the root for the empty path.
    fn node(&self, index: &Digest, path: &[u8]) -> Option<Node>;

    /// Mounts a layer, its implied directories as `implied` says.
    fn mount<'a>(
        &'a self,
        index: &'a Digest,
        target: &'a Path,
        implied: &'a [ImpliedEntry],
    ) -> BoxFuture<'a, Result<(), PlaneError>>;

    /// Where [`Plane::merge`] mounts a chain of layers, the lowest first; `None` where chains are not merged.
    fn merged_place(&self, _chain: &[ChainLayer]) -> Option<PathBuf> {
        None
    }

    /// Mounts a chain of layers, the lowest first, as one. Takes as long as merging them, and does nothing for
    /// one that is.
    fn merge(&self, _chain: Vec<ChainLayer>) -> BoxFuture<'_, Result<(), PlaneError>> {
        Box::pin(async { Err(PlaneError::Failed("it merges no layers".to_owned())) })
    }

    /// The places of all merged chains there are, mounted or not.
    fn merged_places(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Undoes [`Plane::merge`], and forgets what was merged; nothing at `place` is no error.
    fn drop_merged<'a>(&'a self, _place: &'a Path) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(async { Ok(()) })
    }

    /// Where the tree mounted at `target` says ENODATA for an attribute that is not there, if it says
    /// EOPNOTSUPP at `target` itself.
    fn asked_tree(&self, _target: &Path) -> Option<PathBuf> {
        None
    }

    /// Completes and proves a layer before anything else that nobody reads; waits until that is settled.
    /// Whoever gives up the waiting does not end the work.
    fn prove<'a>(&'a self, index: &'a Digest) -> BoxFuture<'a, ()>;

    /// What proofs came to since the start.
    fn verdicts(&self) -> Verdicts {
        Verdicts::default()
    }

    /// Undoes [`Plane::mount`]; nothing mounted at `target` is no error.
    fn unmount<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<(), PlaneError>>;

    /// Frees a layer that is mounted nowhere any more; an unknown one is no error.
    fn remove<'a>(&'a self, index: &'a Digest) -> BoxFuture<'a, Result<(), PlaneError>>;

    /// All layers in the store.
    fn layers(&self) -> Vec<Digest>;

    /// How a layer fares, if it is in the store.
    fn progress(&self, index: &Digest) -> Option<Progress>;

    /// All recorded layers were mounted again, as far as they could be, or will be at the `awaited` places:
    /// what else is mounted goes away.
    fn settle(&self, _awaited: Vec<PathBuf>) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// How often a daemon took over from another.
    fn takeovers(&self) -> Takeovers {
        Takeovers::default()
    }

    /// That containers lost their mounts and must be restarted, seconds since 1970.
    fn lost(&self) -> Option<u64> {
        None
    }

    /// Why nothing that is fetched is kept now, if so.
    fn caching_stopped(&self) -> Option<CachingStopped> {
        None
    }

    /// What was counted since the start, if anything is.
    fn counts(&self) -> Option<&Arc<Counts>> {
        None
    }

    /// What the store takes on the disk; looks at every file of it.
    fn usage(&self) -> StoreUsage {
        StoreUsage::default()
    }

    /// Keeps the bytes of layers until they are unpinned by the same name.
    fn pin(&self, indexes: &[Digest], name: &str) -> Result<(), PlaneError>;

    /// Takes away the pins of that name; the layers that had one.
    fn unpin(&self, name: &str) -> Result<Vec<Digest>, PlaneError>;

    /// How long the index of a layer has been in the store.
    fn age(&self, _index: &Digest) -> Duration {
        Duration::ZERO
    }

    /// Fetches what is missing of a layer before any other work that nobody waits for. Returns at once; again
    /// and again is once.
    fn complete(&self, _index: &Digest) {}

    /// Fetches chunks of a layer before they are read, in the order of their time. Returns at once.
    fn replay(&self, _index: &Digest, _reads: &[Access]) {}

    /// The profile that is attached to a manifest in the first of these places, as it stands there. Nothing of
    /// it was looked at.
    fn attached_profile<'a>(
        &'a self,
        _origins: &'a [Origin],
        _manifest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, PlaneError>> {
        Box::pin(async { Ok(None) })
    }

    /// Records what is read of layers from now on, if they are served by this process.
    fn record(&self, _indexes: &[Digest]) -> Option<Recording> {
        None
    }

    /// The driver and why it was chosen.
    fn driver(&self) -> (String, String);
}
