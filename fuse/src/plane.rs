//! The data plane: everything a node keeps, and the session it is served by.

mod add;
mod adopt;
mod complete;
mod decoding;
mod evict;
mod loss;
mod merged;
mod mounts;
mod places;
mod remove;
mod renew;
mod replay;
mod retired;
mod scrub;
mod start;
mod usage;
mod whole;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use crate::config::DataPlaneConfig;
use crate::counts::Counts;
use crate::driver::DriverReport;
use crate::fetch::{FetchContext, Replays};
use crate::layer::{Layer, LayerId, LayerSpec, Proofs, Verdicts};
use crate::mount::unmount_left;
use crate::session::{Sessions, Slots, Told};
use crate::store::{CachingStopped, PinError, StoreRoot};
use crate::supervisor::{Takeovers, watch};
use crate::sys::give_back_memory;

pub use add::AddLayerError;
use complete::Completion;
use decoding::Decoding;
pub use merged::{ChainLayer, MergeLayersError};
use mounts::Mounts;
pub use remove::{RemoveLayerError, UnmountError};
pub use retired::RemovedLayer;
use retired::Retired;
pub use start::StartError;
pub use usage::StoreUsage;

/// One node's data plane. Clones are the same; the last one to go unmounts everything.
#[derive(Debug, Clone)]
pub struct DataPlane(Arc<Plane>);

#[derive(Debug)]
pub(crate) struct Plane {
    config: DataPlaneConfig,
    store: StoreRoot,
    slots: Arc<Slots>,
    session: Sessions,
    driver: DriverReport,
    context: FetchContext,
    replays: Arc<Replays>,
    pub(crate) completion: Arc<Completion>,
    /// Files the process may have open.
    open_files: u64,
    layers: Mutex<HashMap<LayerId, Layer>>,
    adding: Mutex<HashMap<LayerId, Arc<tokio::sync::Mutex<()>>>>,
    decoding: Decoding,
    mounts: Mutex<Mounts>,
    /// Held while a chain is merged, which takes memory, and while one is let go.
    merging: tokio::sync::Mutex<()>,
    /// Removed layers that somebody has open, by slot.
    retired: Mutex<HashMap<u32, Retired>>,
    proofs: Arc<Proofs>,
    /// Turns at verifying what former runs proved.
    pub(crate) verifying: Arc<Semaphore>,
    /// Threads of its own, so that neither side delays the other. `None` once shut down.
    runtime: Mutex<Option<Runtime>>,
    told: Told,
    /// Whether the mounts are for the next daemon, whatever happens here.
    leaves: AtomicBool,
}

impl DataPlane {
    /// Locks the root, cleans up after a former run, mounts the session, and opens every layer of
    /// the store. Needs no network.
    pub async fn start(config: DataPlaneConfig) -> Result<Self, StartError> {
        let started = tokio::task::spawn_blocking(move || Plane::start(config)).await;
        started.unwrap_or(Err(StartError::Interrupted)).map(Self)
    }

    /// Which driver serves the layers, and why.
    pub fn driver(&self) -> &DriverReport {
        &self.0.driver
    }

    /// Why nothing that is fetched is kept now, if so; reads are served all the same.
    pub fn caching_stopped(&self) -> Option<CachingStopped> {
        self.0.store.caching_stopped()
    }

    /// What was counted since the start.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.0.context.counts
    }

    /// What proofs of layers came to since the start.
    pub fn verdicts(&self) -> Verdicts {
        self.0.proofs.verdicts()
    }

    /// The root directory, by its canonical path.
    pub fn root(&self) -> &Path {
        self.0.store.root()
    }

    /// Adds a layer: fetches its index and verifies it, unless the store has it. Adding a layer
    /// again gives the same layer, with the new sources if there are any.
    pub async fn add_layer(&self, spec: LayerSpec) -> Result<Layer, AddLayerError> {
        self.0.clone().add(spec).await
    }

    /// The layer of that name.
    pub fn layer(&self, id: &LayerId) -> Option<Layer> {
        self.0.lock_layers().get(id).cloned()
    }

    /// All layers, by name.
    pub fn layers(&self) -> Vec<Layer> {
        let mut layers: Vec<_> = self.0.lock_layers().values().cloned().collect();
        layers.sort_by_key(Layer::id);
        layers
    }

    /// Layers that were removed and are still open somewhere.
    pub fn removed_layers(&self) -> Vec<RemovedLayer> {
        self.0.removed()
    }

    /// What the store takes. Looks at every file of it.
    pub fn usage(&self) -> StoreUsage {
        self.0.usage()
    }

    /// Keeps the bytes of these layers until [`DataPlane::unpin`] is called with the same name. A
    /// layer may have several names, also while it is not in the store.
    pub fn pin(&self, layers: &[LayerId], name: &str) -> Result<(), PinError> {
        let layers: Vec<_> = layers.iter().map(|layer| layer.0).collect();
        self.0.store.pins().pin(&layers, name)
    }

    /// Takes away the pins called `name`, 1 to 1024 bytes; the layers that had one.
    pub fn unpin(&self, name: &str) -> Result<Vec<LayerId>, PinError> {
        let layers = self.0.store.pins().unpin(name)?;
        Ok(layers.into_iter().map(LayerId).collect())
    }

    /// Removes a layer that is not mounted, and frees its place on the disk as soon as nobody has
    /// it open. Removing what is not there is no error.
    pub async fn remove_layer(&self, id: &LayerId) -> Result<(), RemoveLayerError> {
        let (plane, id) = (self.0.clone(), *id);
        tokio::task::spawn_blocking(move || plane.remove(&id))
            .await
            .unwrap_or(Err(RemoveLayerError::ShutDown))
    }

    /// Unmounts what [`Layer::mount`] mounted at `target`, lazily if it is in use.
    pub async fn unmount(&self, target: &Path) -> Result<(), UnmountError> {
        let (plane, target) = (self.0.clone(), target.to_owned());
        tokio::task::spawn_blocking(move || plane.unmount(&target))
            .await
            .unwrap_or(Err(UnmountError::ShutDown))
    }

    /// Where else the tree mounted at `target` can be seen, if an attribute that a file has not got is
    /// answered by EOPNOTSUPP there: here it is ENODATA, as on any other file system, at the price of a
    /// request for each.
    pub fn asked_tree(&self, target: &Path) -> Option<PathBuf> {
        self.0.asked_tree(target)
    }

    /// The restored layers are those that are wanted, and those of the `awaited` places once they were fetched
    /// again: what else a daemon before left mounted goes away. Nothing to do without a takeover.
    pub async fn settle(&self, awaited: Vec<PathBuf>) {
        let plane = self.0.clone();
        let _ = tokio::task::spawn_blocking(move || plane.unmount_unclaimed(&awaited)).await;
    }

    /// That containers lost their mounts when the sessions began, because the daemon before and its
    /// supervisor had both died: seconds since 1970.
    pub fn lost(&self) -> Option<u64> {
        self.0.told.lost
    }

    /// How often a daemon took over from another since the sessions began.
    pub fn takeovers(&self) -> Takeovers {
        self.0.told.takeovers
    }

    /// Has the sessions end when this process is killed, whatever a thread of it waits for: `watcher` is a program
    /// that does [`crate::supervisor::watch`]. For a process without a supervisor.
    pub fn watch(&self, watcher: Command) -> io::Result<Child> {
        watch::start(&self.0.session.all_paths(), watcher)
    }

    /// Ends a round as the clock does every ten seconds. For tests.
    #[doc(hidden)]
    pub async fn end_round(&self) {
        let plane = self.0.clone();
        let _ = tokio::task::spawn_blocking(move || plane.end_round()).await;
    }

    /// Writes down what is in the store, and leaves all mounts to the next daemon. The caller ends the
    /// process: until then, reads are answered.
    pub async fn hand_over(self) {
        let plane = self.0;
        let _ = tokio::task::spawn_blocking(move || plane.leave()).await;
    }

    /// Writes down what is in the store, and unmounts everything. Mounts in use stay visible to
    /// their users and fail.
    pub async fn shutdown(self) {
        let plane = self.0;
        let _ = tokio::task::spawn_blocking(move || plane.close()).await;
    }
}

impl Plane {
    fn lock_layers(&self) -> MutexGuard<'_, HashMap<LayerId, Layer>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes durable what arrived since the last time; whether that was possible.
    fn sync(&self) -> bool {
        let layers: Vec<_> = self.lock_layers().values().cloned().collect();
        let mut written = true;
        for layer in layers {
            if let Err(error) = layer.stored().sync() {
                tracing::warn!(index = %layer.id(), %error, "cannot write down what is there");
                written = false;
            }
        }
        written
    }

    /// What is done every now and then with what was fetched and read.
    fn end_round(&self) {
        self.sync();
        self.give_back_pages();
        self.store.rules().kept.rest();
        give_back_memory();
    }

    /// Gives back the pages of what the kernel was given and nobody asked for since: it has them twice. After a
    /// [`Plane::sync`], since what is not on the disk stays in memory.
    fn give_back_pages(&self) {
        let layers: Vec<_> = self.lock_layers().values().cloned().collect();
        for layer in layers {
            let given = layer.stored().give_back_pages();
            self.session.give_back_pages(layer.0.slot, given);
        }
    }

    fn leave(&self) {
        self.leaves.store(true, Ordering::Release);
        // The proofs go on: what they would write is written by the next daemon's.
        self.proofs.close();
        self.sync();
    }

    fn take_runtime(&self) -> Option<Runtime> {
        let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.take()
    }

    fn close(&self) {
        let Some(runtime) = self.take_runtime() else {
            return;
        };
        self.proofs.close();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        loss::tell_of_a_stop(self.store.root(), now.unwrap_or_default().as_secs());
        for layer in self.lock_layers().values() {
            layer.rest();
        }
        if self.sync() {
            self.store.end();
        }
        self.slots.wait_no_longer();
        self.unmount_all();
        self.session.detach();
        unmount_left(self.store.root());
        runtime.shutdown_background();
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        if self.leaves.load(Ordering::Acquire) {
            // With the runtime, replies would be dropped, and thereby answered with errors. A request
            // that was merely read is sent again to the next daemon.
            std::mem::forget(self.take_runtime());
        } else {
            self.close();
        }
    }
}
