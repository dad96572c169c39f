//! One layer, as the users of the data plane see it.

mod attributes;
mod owner;
mod patch;
mod settle;
mod status;
mod trust;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use larder_proto::annotation::IndexLocation;
use larder_proto::digest::Digest;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::fetch::{FetchError, Fetcher};
use crate::mount::MountFailed;
use crate::plane::Plane;
use crate::source::{Elsewhere, Source};
use crate::store::{ChunkState, LayerStoreError, StoredLayer};

pub use attributes::NodeAttributes;
pub(crate) use owner::owner;
pub use patch::ImpliedDirectory;
pub(crate) use patch::{View, key as patch_key};
pub(crate) use settle::Proofs;
pub use settle::Verdicts;
pub use status::{LayerState, LayerStatus, SourceStatus};
pub use trust::Trust;

/// Names a layer on a node: the SHA-256 of its stored index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(pub Digest);

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a layer is added with.
#[derive(Debug, Clone)]
pub struct LayerSpec {
    /// Digest of the layer blob.
    pub blob: Digest,
    /// Where in it the index lies, from the descriptor's annotation.
    pub index: IndexLocation,
    /// Where the blob may be had, the best first.
    pub sources: Vec<Arc<dyn Source>>,
    /// Who finds more of them when none delivers.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
}

/// A layer of a [`crate::DataPlane`]; clones are the same layer.
#[derive(Debug, Clone)]
pub struct Layer(pub(crate) Arc<LayerParts>);

#[derive(Debug)]
pub(crate) struct LayerParts {
    pub(crate) id: LayerId,
    pub(crate) slot: u32,
    pub(crate) fetcher: Arc<Fetcher>,
    pub(crate) plane: Weak<Plane>,
    /// Found true, and every chunk verified in this run: the store file may be mounted.
    pub(crate) proven: AtomicBool,
    /// Changes when the layer was proven or quarantined.
    settled: watch::Sender<()>,
    /// Ends the task that waits for the last chunk.
    watcher: AbortHandle,
    origin: Mutex<Vec<u8>>,
    /// What was filled in of the patched images that were mounted in this run, by their keys: as many as the
    /// record has.
    filled_in: Mutex<HashMap<String, Vec<ImpliedDirectory>>>,
    /// Whether all of it is being fetched for who asked for that.
    is_completing: AtomicBool,
}

/// A layer that could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Its index lied.
    #[error(
        "the layer with index {layer} is quarantined: that does not describe its content: {reason}; pull the image the ordinary way"
    )]
    Quarantined {
        /// The layer.
        layer: LayerId,
        /// In which way.
        reason: String,
    },
    /// A layer can be in one place once.
    #[error("{0} is a mount of this data plane already")]
    InUse(PathBuf),
    /// The kernel refused.
    #[error(transparent)]
    Mount(#[from] MountFailed),
    /// A directory for the mount could not be made.
    #[error("cannot prepare {path}: {error}")]
    Prepare {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The image for this parent could not be made.
    #[error("cannot fill in the implied directories of the layer with index {layer}: {error}")]
    Patch {
        /// The layer.
        layer: LayerId,
        /// Why not.
        error: LayerStoreError,
    },
    /// The data plane was shut down.
    #[error("the data plane is shutting down")]
    ShutDown,
}

impl Layer {
    /// A layer whose slot is served already.
    pub(crate) fn new(
        id: LayerId,
        slot: u32,
        fetcher: Arc<Fetcher>,
        plane: Weak<Plane>,
        proofs: Arc<Proofs>,
    ) -> Self {
        Self(Arc::new_cyclic(|parts| {
            let watcher = settle::watch(parts.clone(), fetcher.clone(), proofs);
            LayerParts {
                id,
                slot,
                watcher: fetcher.runtime().spawn(watcher).abort_handle(),
                fetcher,
                plane,
                proven: AtomicBool::new(false),
                settled: watch::Sender::new(()),
                origin: Mutex::default(),
                filled_in: Mutex::default(),
                is_completing: AtomicBool::new(false),
            }
        }))
    }

    /// Its name.
    pub fn id(&self) -> LayerId {
        self.0.id
    }

    /// Digest of the layer blob.
    pub fn blob(&self) -> Digest {
        self.stored().record().blob
    }

    /// SHA-256 of the tar, by the index's account.
    pub fn diff_id(&self) -> Digest {
        self.stored().index().diff_id()
    }

    /// Paths of the directories no tar entry describes: their attributes come from the parent.
    pub fn implied(&self) -> Vec<Vec<u8>> {
        self.stored()
            .index()
            .implied()
            .map(<[u8]>::to_vec)
            .collect()
    }

    /// Mounts the layer's tree at `target`, an existing directory, read-only. `implied` gives the
    /// implied directories the attributes they have below this layer.
    ///
    /// Needs no network: bytes are fetched when they are read.
    pub async fn mount(
        &self,
        target: &Path,
        implied: &[ImpliedDirectory],
    ) -> Result<(), MountError> {
        if let Some(reason) = self.quarantine() {
            let layer = self.id();
            return Err(MountError::Quarantined { layer, reason });
        }
        let plane = self.0.plane.upgrade().ok_or(MountError::ShutDown)?;
        let (layer, target, implied) = (self.clone(), target.to_owned(), implied.to_vec());
        let mounted =
            tokio::task::spawn_blocking(move || plane.mount(&layer, &target, &implied)).await;
        self.verify_what_was_proven();
        mounted.map_err(|_| MountError::ShutDown)?
    }

    /// Replaces the sources, for instance when the network is known again after a restart.
    pub fn set_sources(&self, sources: Vec<Arc<dyn Source>>) {
        self.0.fetcher.set_sources(sources);
    }

    /// Says how its sources are found again, in the caller's own words: see [`crate::RemovedLayer`].
    pub fn set_origin(&self, origin: Vec<u8>) {
        let mut kept = self.0.origin.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = origin;
    }

    pub(crate) fn origin(&self) -> Vec<u8> {
        let kept = self.0.origin.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clone()
    }

    /// Says who finds more sources when none of them delivers.
    pub fn set_elsewhere(&self, elsewhere: Option<Arc<dyn Elsewhere>>) {
        self.0.fetcher.set_elsewhere(elsewhere);
    }

    /// Fetches every chunk that is not there; the proof of the whole layer follows by itself.
    pub async fn fetch_all(&self) -> Result<(), Arc<FetchError>> {
        let fetcher = self.0.fetcher.clone();
        let task = self
            .0
            .fetcher
            .runtime()
            .spawn(async move { fetcher.fetch_all().await });
        task.await
            .unwrap_or_else(|_| Err(Arc::new(FetchError::ShutDown)))
    }

    pub(crate) fn stored(&self) -> &Arc<StoredLayer> {
        self.0.fetcher.layer()
    }

    /// Whether this daemon saw that all of it is there and what its index says.
    pub(crate) fn is_proven_here(&self) -> bool {
        self.0.proven.load(Ordering::Acquire)
    }

    pub(crate) fn quarantine(&self) -> Option<String> {
        match self.trust() {
            Trust::Quarantined(reason) => Some(reason),
            Trust::Claimed | Trust::Proven => None,
        }
    }

    /// A former run proved the layer; its chunks are verified again before the store file is
    /// mounted directly. Not if some were evicted: they are fetched when they are read.
    fn verify_what_was_proven(&self) {
        let was_proven = self.trust() == Trust::Proven;
        let is_whole = || {
            let mut absent = self.stored().presence().rows(|s| s == ChunkState::Absent);
            absent.next().is_none()
        };
        if was_proven && !self.is_proven_here() && is_whole() {
            let fetcher = self.0.fetcher.clone();
            let Some(turns) = self.0.plane.upgrade().map(|plane| plane.verifying.clone()) else {
                return;
            };
            // What is missing by now stays lazy; the next mount tries again.
            self.0.fetcher.runtime().spawn(async move {
                let _turn = turns.acquire().await;
                let _ = fetcher.fetch_all().await;
            });
        }
    }
}

impl Drop for LayerParts {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}
