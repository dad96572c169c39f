//! Starting a data plane.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_proto::digest::Digest;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Semaphore;
use tracing::{info, warn};

use super::Plane;
use super::complete::{Completion, complete};
use super::decoding::Decoding;
use super::evict::keep_room;
use super::loss;
use super::mounts::Mounts;
use super::places::make_places;
use super::retired::free_retired;
use super::scrub::{expire_now_and_then, scrub_now_and_then};
use crate::config::DataPlaneConfig;
use crate::counts::Counts;
use crate::driver::{self, Driver, DriverReport, SelfTest, kernel_is_safe};
use crate::fetch::{Bandwidth, FetchContext, Fetcher, Lanes, Pace, Recent, Replays};
use crate::layer::{Layer, LayerId, Proofs, Trust};
use crate::mount::{mounts, unmount_stale};
use crate::observer::SlowReads;
use crate::session::{
    Content, FuseMount, Inherited, Manner, Sessions, Slots, TakeOverError, Told, Unopened,
    keeps_verified,
};
use crate::source::{Elsewhere, Source};
use crate::store::{
    Lies, Limits, OpenStoreError, Record, SELF_TEST_SLOTS, StoreRoot, StoredLayer, Vouched,
};
use crate::supervisor::Handover;
use crate::sys::{keep_large_blocks_apart, raise_open_files};

/// Threads that decompress, and that read what a fetch brought: a few per processor of a small
/// node, since some of them wait for the disk.
const BLOCKING_THREADS: usize = 8;

/// Proven layers that are verified at the same time after a start: one has the processors busy, and a second one
/// goes on while that waits for the network. With all at once none would be ready before the last.
const VERIFYING_MAX: usize = 2;

/// How often the store writes down which chunks it has. What a kill -9 loses of it is found in the
/// device files at the next start; what a power cut loses is fetched again.
const SYNC_EVERY: Duration = Duration::from_secs(10);

/// What the supervisor calls the lock of the root directory.
const LOCK: &str = "lock";

/// What it calls the memory of what was verified.
const VERIFIED: &str = "verified";

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
    /// The sessions of a daemon before cannot be gone on with. They are left as they are.
    #[error("cannot take over the mounts of the daemon before: {0}")]
    TakeOver(String),
    /// No threads.
    #[error("cannot start threads: {0}")]
    Threads(io::Error),
    /// The caller's runtime ended.
    #[error("interrupted while starting")]
    Interrupted,
}

impl Plane {
    pub(super) fn start(config: DataPlaneConfig) -> Result<Arc<Self>, StartError> {
        let config = on_this_kernel(config);
        let handover = config.handover.clone();
        let mut store = open_store(&config)?;
        keep_large_blocks_apart();
        let open_files = raise_open_files().unwrap_or_else(|error| {
            warn!(%error, "cannot raise the limit of open files");
            OPEN_FILES_USUAL
        });
        let predecessor = handover.as_ref().filter(|handover| handover.takes_over());
        let begun = match predecessor {
            Some(handover) => take_over(&config, &store, handover)?,
            None => begin(&config, &store)?,
        };
        let Begun {
            slots,
            session,
            driver,
            mut told,
        } = begun;
        if let Some(handover) = &handover {
            told.takeovers.add(handover.endings());
            told.verified = believe(&mut store, handover, told, config.verify_again_after);
        }
        let runtime = runtime().map_err(StartError::Threads)?;
        let handle = runtime.handle().clone();
        // Those of a daemon before are opened as they are asked for.
        let stored = match predecessor {
            Some(_) => Vec::new(),
            None => store.layers(),
        };
        let context = context(&config, &handle);
        let lies = Lies::new(store.root(), config.disk.clone());
        let proofs = Proofs::new(lies, config.quarantine);
        let completion = Arc::new(Completion::new(config.completion));
        let plane = Arc::new(Self {
            config,
            store,
            slots,
            session,
            driver,
            context,
            replays: Arc::new(Replays::new()),
            completion,
            open_files,
            layers: Mutex::new(HashMap::new()),
            adding: Mutex::default(),
            decoding: Decoding::default(),
            mounts: Mutex::new(Mounts::default()),
            merging: tokio::sync::Mutex::default(),
            retired: Mutex::default(),
            proofs: Arc::new(proofs),
            verifying: Arc::new(Semaphore::new(VERIFYING_MAX)),
            runtime: Mutex::new(Some(runtime)),
            told,
            leaves: AtomicBool::new(predecessor.is_some()),
        });
        for (id, layer) in stored {
            plane.register(LayerId(id), layer, Vec::new(), None);
        }
        if let Some(handover) = &handover {
            let held = plane
                .session
                .hold(handover, &plane.slots, &plane.driver, told);
            held.map_err(|error| StartError::TakeOver(error.to_string()))?;
        }
        match predecessor {
            Some(handover) => plane.resume(handover)?,
            None => plane.keep_held(),
        }
        plane.look_after_the_store();
        Ok(plane)
    }

    /// Starts what goes on beside the readers until the plane is gone.
    fn look_after_the_store(self: &Arc<Self>) {
        let (handle, plane) = (&self.context.runtime, || Arc::downgrade(self));
        let (again, scrub) = (self.config.verify_again_after, self.config.scrub_every);
        handle.spawn(sync_now_and_then(plane()));
        handle.spawn(complete(plane()));
        handle.spawn(self.replays.clone().run());
        handle.spawn(keep_room(plane()));
        handle.spawn(free_retired(plane()));
        let first = again.saturating_sub(self.store.oldest_verified());
        handle.spawn(expire_now_and_then(plane(), first, again));
        handle.spawn(scrub_now_and_then(plane(), scrub));
    }

    /// Serves the sessions of the daemon before, and claims its mounts. Containers wait: what need not be
    /// done before is done after.
    fn resume(self: &Arc<Self>, handover: &Handover) -> Result<(), StartError> {
        let mut unopened: Vec<_> = self
            .store
            .records()
            .into_iter()
            .map(|(id, record)| self.unopened(id, &record))
            .collect();
        unopened.extend(self.take_up_retired());
        self.miss_the_lost();
        let failed = |error: io::Error| StartError::TakeOver(error.to_string());
        self.session.resume().map_err(failed)?;
        handover.serving();
        let after = handover.began().elapsed();
        // One at a time, beside those that are asked for.
        for layer in &unopened {
            layer.open();
        }
        self.context.runtime.spawn(wait_no_longer(
            Arc::downgrade(self),
            self.config.read_deadline,
        ));
        self.adopt(&mounts().map_err(StartError::Mounts)?);
        info!(driver = %self.driver.driver, ?after, "serving the mounts of the daemon before");
        Ok(())
    }

    /// Has the readers of what the daemon before served and the store does not have any more wait for it.
    fn miss_the_lost(&self) {
        let mut missed = BTreeSet::new();
        for (slot, owner) in self.store.former() {
            if !self.slots.has_place(slot) {
                self.slots.lose(slot);
                missed.insert(owner.layer);
            }
        }
        for layer in missed {
            warn!(
                %layer,
                "a layer is lost from the store; who reads its files waits until its index was fetched again"
            );
        }
    }

    /// A layer of the store that is opened when it is first asked for.
    fn unopened(self: &Arc<Self>, id: Digest, record: &Record) -> Arc<Unopened> {
        let plane = Arc::downgrade(self);
        let slots = record.slots();
        let unopened = Arc::new(Unopened::new(move || {
            let Some(plane) = plane.upgrade() else { return };
            match plane.store.open_one(&id) {
                Ok(layer) => {
                    let layer = plane.register(LayerId(id), layer, Vec::new(), None);
                    plane.serve_patches(&layer.0.fetcher);
                }
                Err(error) => {
                    warn!(
                        layer = %id, %error,
                        "the disk changed a layer; who reads its files waits until its index was fetched again"
                    );
                    for slot in &slots {
                        plane.slots.lose(*slot);
                    }
                }
            }
        }));
        for slot in record.slots() {
            self.slots.put_unopened(slot, unopened.clone());
        }
        unopened
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
        self.store.own(&id.0, &stored.record());
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
        if layer.stored().presence().all_verified() {
            // By a daemon before: no chunk will arrive and tell.
            layer.believe_proof();
            layer.0.fetcher.complete_again();
        }
        if let Trust::Quarantined(_) = layer.trust() {
            self.proofs.bar(&layer.0.fetcher);
        }
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

    /// Serves the layer's images for other parents, which the kernel may know by their numbers.
    pub(super) fn serve_patches(&self, fetcher: &Arc<Fetcher>) {
        for (slot, image) in fetcher.layer().patches() {
            let content = Content::Layer {
                fetcher: fetcher.clone(),
                image: Arc::new(image),
            };
            self.slots.put(slot, content);
        }
    }
}

/// Locks the root, or goes on with the lock of the daemon before.
fn open_store(config: &DataPlaneConfig) -> Result<StoreRoot, OpenStoreError> {
    let handover = config.handover.as_ref();
    let held = handover.and_then(|handover| handover.take(LOCK));
    let limits = Limits {
        bytes_max: config.store_bytes_max,
        min_free_percent: config.min_free_percent,
    };
    let store = StoreRoot::open(&config.root, config.disk.clone(), limits, held)?;
    if let Some(handover) = handover {
        handover.hold(LOCK, store.lock());
    }
    Ok(store)
}

/// What all layers of a data plane fetch with.
fn context(config: &DataPlaneConfig, runtime: &Handle) -> FetchContext {
    FetchContext {
        deadline: config.read_deadline,
        refusals_last: config.refusals_last,
        recent: Arc::new(Recent::new()),
        pace: Arc::new(Pace::new()),
        lanes: Arc::new(Lanes::new()),
        bandwidth: Arc::new(Bandwidth::new(config.background_bandwidth)),
        runtime: runtime.clone(),
        counts: Arc::new(Counts::default()),
        slow: Arc::new(SlowReads::new(config.slow_read)),
        observer: config.observer.clone(),
    }
}

/// What a data plane begins with.
struct Begun {
    slots: Arc<Slots>,
    session: Sessions,
    driver: DriverReport,
    told: Told,
}

/// Has layers believe what daemons before verified in this boot, if the one before kept that in order;
/// the name of the memory, for the next one.
fn believe(
    store: &mut StoreRoot,
    handover: &Handover,
    told: Told,
    age_max: Duration,
) -> Option<u64> {
    if !keeps_verified() {
        return None;
    }
    let held = handover.take(VERIFIED);
    let held = held.and_then(|memory| Vouched::of(memory, age_max));
    let held = held.filter(|vouched| told.verified == Some(vouched.name()));
    let vouched = match held.map_or_else(|| Vouched::new(age_max), Ok) {
        Ok(vouched) => vouched,
        Err(error) => {
            warn!(%error, "the next daemon will have to verify everything again");
            return None;
        }
    };
    handover.hold(VERIFIED, &vouched);
    let name = vouched.name();
    store.believe(vouched);
    Some(name)
}

/// Mounts new sessions, after what a former run left was cleared away.
fn begin(config: &DataPlaneConfig, store: &StoreRoot) -> Result<Begun, StartError> {
    let stale = unmount_stale(store.root()).map_err(StartError::Mounts)?;
    let mut told = Told::default();
    if stale > 0 {
        warn!(
            mounts = stale,
            "unmounted what a former run left, which had died with its supervisor: containers that \
             were running must be restarted"
        );
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        loss::remember(store.root(), now);
        told.lost = Some(now);
    } else {
        told.lost = loss::remembered(store.root());
    }
    // No session has lived until now, so nobody has any of them open, but for what the kernel reads past us.
    for (slot, _) in store.all_retired() {
        if !store.is_retired_held(slot) {
            store.free_retired(slot);
        }
    }
    let failed = |error| StartError::Session {
        path: store.root().join("session"),
        error,
    };
    let slots = Arc::new(Slots::new().map_err(failed)?);
    let (session, driver) = open_session(config, store, &slots)?;
    make_places(store.root(), driver.driver);
    info!(driver = %driver.driver, reason = driver.reason, "serving layers");
    Ok(Begun {
        slots,
        session,
        driver,
        told,
    })
}

/// Enters the sessions of the daemon before. Nothing below the root is looked into but the store:
/// whoever enters a session that nobody serves waits for ever.
fn take_over(
    config: &DataPlaneConfig,
    store: &StoreRoot,
    handover: &Handover,
) -> Result<Begun, StartError> {
    let failed = |error: TakeOverError| StartError::TakeOver(error.to_string());
    let inherited = Inherited::from(handover).map_err(failed)?;
    let (slots, driver, told) = (
        inherited.slots.clone(),
        inherited.driver.clone(),
        inherited.told,
    );
    info!(
        state = inherited.version,
        "taking over from the daemon before"
    );
    let path = store.root().join("session");
    let session = inherited.enter(&path, config.device_reads, config.resend);
    let session = session.map_err(|error| StartError::TakeOver(error.to_string()))?;
    Ok(Begun {
        slots,
        session,
        driver,
        told,
    })
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
    let of_trees = || {
        let (reads, resend) = (config.device_reads, config.resend);
        Sessions::of_trees(&path, slots, reads, resend).map_err(failed)
    };
    let of_devices = || {
        let manner = Manner {
            reads: config.device_reads,
            without_opens: false,
            without_xattrs: false,
            resend: config.resend,
        };
        FuseMount::mount(&path, slots, manner).map_err(failed)
    };
    // Without the file the release is unknown, and counts as old.
    let decided = driver::decide(config.driver, &driver::kernel_release());
    if let Some(report) = decided.map_err(StartError::Driver)? {
        return Ok((of_trees()?, report));
    }
    let session = of_devices()?;
    let direct_too = config.device_reads.is_direct_until_proven();
    match driver::after_self_test(config.driver, self_test(&session, slots, direct_too)) {
        Ok(report) if report.driver == Driver::Erofs => Ok((Sessions::of_devices(session), report)),
        otherwise => {
            session.detach();
            let report = otherwise.map_err(StartError::Driver)?;
            Ok((of_trees()?, report))
        }
    }
}

/// What the kernel may be asked for.
fn on_this_kernel(mut config: DataPlaneConfig) -> DataPlaneConfig {
    let may_read_directly = driver::may_read_directly(&driver::kernel_release());
    config.device_reads = config.device_reads.allowed(may_read_directly);
    config
}

fn self_test(session: &FuseMount, slots: &Slots, direct_too: bool) -> Result<(), String> {
    let files = [SelfTest::image()?, SelfTest::device()];
    for (slot, file) in SELF_TEST_SLOTS.into_iter().zip(files) {
        slots.put(slot, Content::Faulty(file));
    }
    let [image, device] = SELF_TEST_SLOTS.map(|slot| device_path(session.path(), slot));
    let safe = kernel_is_safe(&image, device, direct_too);
    for slot in SELF_TEST_SLOTS {
        slots.retire(slot);
    }
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

/// Fails the readers of lost layers when `deadline` has passed.
async fn wait_no_longer(plane: Weak<Plane>, deadline: Duration) {
    tokio::time::sleep(deadline).await;
    let Some(plane) = plane.upgrade() else { return };
    let _ = tokio::task::spawn_blocking(move || plane.slots.wait_no_longer()).await;
}

async fn sync_now_and_then(plane: Weak<Plane>) {
    loop {
        tokio::time::sleep(SYNC_EVERY).await;
        let Some(plane) = plane.upgrade() else { return };
        let _ = tokio::task::spawn_blocking(move || plane.end_round()).await;
    }
}
