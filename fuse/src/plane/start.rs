//! Starting a data plane.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};

use super::Plane;
use super::decoding::Decoding;
use super::mounts::Mounts;
use crate::config::DataPlaneConfig;
use crate::counts::Counts;
use crate::driver::{self, Driver, DriverReport, SelfTest, kernel_is_safe};
use crate::fetch::{FetchContext, Fetcher, Recent};
use crate::layer::{Layer, LayerId};
use crate::mount::unmount_stale;
use crate::observer::SlowReads;
use crate::session::{Content, FuseMount, Manner, Sessions, Slots};
use crate::source::{Elsewhere, Source};
use crate::store::{OpenStoreError, StoreRoot, StoredLayer};
use crate::sys::raise_open_files;

/// Threads that decompress, and that read what a fetch brought: a few per processor of a small
/// node, since some of them wait for the disk.
const BLOCKING_THREADS: usize = 8;

/// How often the store writes down which chunks it has. What a kill -9 loses of it is found in the
/// device files at the next start; what a power cut loses is fetched again.
const SYNC_EVERY: Duration = Duration::from_secs(10);

/// Files open apart from those of layers: connections to registries and from containerd, the
/// session, databases, logs.
const OPEN_FILES_APART: u64 = 256;

/// The soft limit most systems give a process.
const OPEN_FILES_USUAL: u64 = 1024;

/// Why a data plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The root directory cannot be used.
    #[error(transparent)]
    Store(#[from] OpenStoreError),
    /// No FUSE.
    #[error("cannot mount FUSE at {path}: {error}; is the kernel module fuse loaded, are we root?")]
    Session {
        /// Where.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The driver that was asked for does not work here.
    #[error("fs_driver \"erofs\" cannot be used: {0}; \"auto\" takes FUSE here")]
    Driver(String),
    /// The mounts of a former run cannot be found.
    #[error("cannot read the table of mounts: {0}")]
    Mounts(io::Error),
    /// No threads.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
    /// The caller's runtime ended.
    #[error("interrupted while starting")]
    Interrupted,
}

impl Plane {
    pub(super) fn start(config: DataPlaneConfig) -> Result<Arc<Self>, StartError> {
        let store = StoreRoot::open(&config.root, config.disk.clone(), config.min_free_percent)?;
        let open_files = raise_open_files().unwrap_or_else(|error| {
            warn!(%error, "cannot raise the limit of open files");
            OPEN_FILES_USUAL
        });
        let stale = unmount_stale(store.root()).map_err(StartError::Mounts)?;
        if stale > 0 {
            info!(mounts = stale, "unmounted what a former run left");
        }
        let slots = Arc::new(Slots::default());
        let (session, driver) = open_session(&config, &store, &slots)?;
        info!(driver = %driver.driver, reason = driver.reason, "serving layers");
        let runtime = runtime().map_err(StartError::Threads)?;
        let handle = runtime.handle().clone();
        let stored = store.layers();
        let context = FetchContext {
            deadline: config.read_deadline,
            recent: Arc::new(Recent::new()),
            runtime: handle.clone(),
            counts: Arc::new(Counts::default()),
            slow: Arc::new(SlowReads::new(config.slow_read)),
            observer: config.observer.clone(),
        };
        let plane = Arc::new(Self {
            config,
            store,
            slots,
            session,
            driver,
            context,
            open_files,
            layers: Mutex::new(HashMap::new()),
            adding: Mutex::default(),
            decoding: Decoding::default(),
            mounts: Mutex::new(Mounts::default()),
            proofs: Arc::default(),
            runtime: Mutex::new(Some(runtime)),
        });
        for (id, layer) in stored {
            plane.register(LayerId(id), layer, Vec::new(), None);
        }
        handle.spawn(sync_now_and_then(Arc::downgrade(&plane)));
        Ok(plane)
    }

    /// Makes a stored layer part of the plane, and serves its slot.
    pub(super) fn register(
        self: &Arc<Self>,
        id: LayerId,
        stored: StoredLayer,
        sources: Vec<Arc<dyn Source>>,
        elsewhere: Option<Arc<dyn Elsewhere>>,
    ) -> Layer {
        let stored = Arc::new(stored);
        let slot = stored.record().slot;
        let image = stored.image().clone();
        let fetcher = Arc::new(Fetcher::new(
            id.0,
            stored,
            sources,
            elsewhere,
            self.context.clone(),
        ));
        let content = Content::Layer {
            fetcher: fetcher.clone(),
            image,
        };
        self.slots.put(slot, content);
        let layer = Layer::new(id, slot, fetcher, Arc::downgrade(self), self.proofs.clone());
        let mut layers = self.lock_layers();
        layers.insert(id, layer.clone());
        let files = layers.len() as u64 + OPEN_FILES_APART;
        if files == self.open_files + 1 {
            warn!(
                layers = layers.len(),
                limit = self.open_files,
                "the limit of open files is too low for so many layers, each has one open: raise \
                 LimitNOFILE of the service, or `ulimit -Hn`"
            );
        }
        drop(layers);
        layer
    }
}

/// Mounts the sessions and settles the driver.
fn open_session(
    config: &DataPlaneConfig,
    store: &StoreRoot,
    slots: &Arc<Slots>,
) -> Result<(Sessions, DriverReport), StartError> {
    let path = store.root().join("session");
    let failed = |error| StartError::Session {
        path: path.clone(),
        error,
    };
    let of_trees = || Sessions::of_trees(&path, slots, config.device_reads).map_err(failed);
    let of_devices = || {
        let manner = Manner {
            reads: config.device_reads,
            without_opens: false,
            without_xattrs: false,
        };
        FuseMount::mount(path.clone(), slots.clone(), manner).map_err(failed)
    };
    // Without the file the release is unknown, and counts as old.
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let decided = driver::decide(config.driver, release.trim());
    if let Some(report) = decided.map_err(StartError::Driver)? {
        return Ok((of_trees()?, report));
    }
    let session = of_devices()?;
    match driver::after_self_test(config.driver, self_test(&session, store, slots)) {
        Ok(report) if report.driver == Driver::Erofs => Ok((Sessions::of_devices(session), report)),
        otherwise => {
            session.detach();
            let report = otherwise.map_err(StartError::Driver)?;
            Ok((of_trees()?, report))
        }
    }
}

fn self_test(session: &FuseMount, store: &StoreRoot, slots: &Slots) -> Result<(), String> {
    let slot = store
        .new_slot()
        .map_err(|error| format!("no slot for the self-test: {error}"))?;
    let test = SelfTest::new()?;
    slots.put(slot, Content::Faulty(SelfTest::device()));
    let device = device_path(session.path(), slot);
    let safe = kernel_is_safe(&test, &device, &store.root().join("selftest"));
    slots.retire(slot);
    safe
}

/// Where the device of a slot is served.
pub(super) fn device_path(session: &Path, slot: u32) -> PathBuf {
    session.join("dev").join(slot.to_string())
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("larder-data")
        .enable_all()
        .build()
}

async fn sync_now_and_then(plane: Weak<Plane>) {
    loop {
        tokio::time::sleep(SYNC_EVERY).await;
        let Some(plane) = plane.upgrade() else { return };
        let _ = tokio::task::spawn_blocking(move || plane.sync()).await;
    }
}
