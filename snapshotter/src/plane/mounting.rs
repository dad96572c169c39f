//! The real data plane behind the trait.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use larder_fuse::supervisor::{Handover, Takeovers};
use larder_fuse::{
    CachingStopped, Counts, DataPlane, DataPlaneConfig, DriverChoice, Elsewhere, ImpliedDirectory,
    Layer, LayerId, LayerSpec, LayerState, Observer, Recording, RegistrySource, Source, StartError,
    StoreUsage, Verdicts,
};
use larder_proto::access::Access;
use larder_proto::digest::Digest;
use larder_proto::erofs::FileType;

use super::attached;
use super::elsewhere::KnownToContainerd;
use super::{ChainLayer, Node, NodeKind, Plane, PlaneError, Progress, SourceProgress, Wanted};
use crate::config::{Config, ConfigError, Driver, Quarantine};
use crate::containerd::{Containerd, Lookup};
use crate::registries::Registries;
use crate::store::{ImpliedEntry, Origin, Owner};

/// Layers mounted by EROFS or FUSE, their bytes from registries.
#[derive(Debug)]
pub struct MountingPlane {
    plane: DataPlane,
    registries: Registries,
    /// containerd, for further places of a layer; `None` without containerd.
    lookup: Option<Arc<Lookup>>,
    /// The sources of layers that are being added, by index.
    adding: Adding,
}

/// Has a daemon do without the kernel's sending requests again, as before 6.9: for tests.
const NO_RESEND: &str = "LARDER_DEBUG_NO_RESEND";

/// Longest layer that comes whole with its index, bytes: over a link of 160 Mbit/s its bytes take 50 ms, as long as the
/// round trip they save over a long one. Start lists have layers below this whole, too.
pub(crate) const WHOLE_LAYER_MAX: u64 = 1 << 20;

type Adding = Mutex<HashMap<Digest, Vec<Arc<dyn Source>>>>;

/// A data plane that does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartPlaneError {
    /// The configuration does not allow it.
    #[error("{0}")]
    Config(#[source] ConfigError),
    /// It failed.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Forgets the sources of an index when its adding ends, however it ends.
struct Added<'a>(&'a Adding, Digest);

impl<'a> Added<'a> {
    fn note(adding: &'a Adding, spec: &LayerSpec) -> Self {
        let index = spec.index.digest;
        let mut noted = adding.lock().unwrap_or_else(PoisonError::into_inner);
        noted.insert(index, spec.sources.clone());
        Self(adding, index)
    }
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.1);
    }
}

impl MountingPlane {
    /// Starts the data plane below the root directory; needs no network. `containerd` is asked for
    /// further places of a layer when none delivers; `observer` hears what happens.
    pub async fn start(
        config: &Config,
        registries: Registries,
        containerd: Option<Containerd>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Self, StartPlaneError> {
        let plane = Self::open(config, None, observer).await?;
        Ok(Self::on(plane, config, registries, containerd))
    }

    /// Starts the data plane alone, or goes on with that of a daemon before: then mounts are served
    /// when this returns, from the store, and what is not there waits for [`MountingPlane::on`].
    pub async fn open(
        config: &Config,
        handover: Option<Arc<Handover>>,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<DataPlane, StartPlaneError> {
        config.check_disk().map_err(StartPlaneError::Config)?;
        let mut settings = DataPlaneConfig::new(&config.root);
        settings.driver = match config.fs_driver {
            Driver::Auto => DriverChoice::Auto,
            Driver::Erofs => DriverChoice::Erofs,
            Driver::Fuse => DriverChoice::Fuse,
        };
        settings.read_deadline = config.read_deadline;
        settings.min_free_percent = config.min_free_percent;
        settings.slow_read = config.slow_read;
        if let Some(observer) = observer {
            settings.observer = observer;
        }
        settings.store_bytes_max = config.store_bytes_max;
        settings.completion.enabled = config.complete_in_background;
        settings.whole_layer_max = WHOLE_LAYER_MAX;
        settings.background_bandwidth = NonZeroU64::new(config.background_bandwidth);
        settings.quarantine = match config.quarantine {
            Quarantine::Refuse => larder_fuse::Quarantine::Refuse,
            Quarantine::Eio => larder_fuse::Quarantine::Eio,
        };
        settings.handover = handover;
        settings.resend = std::env::var_os(NO_RESEND).is_none();
        Ok(DataPlane::start(settings).await?)
    }

    /// Loads layers for `plane` from `registries`.
    pub fn on(
        plane: DataPlane,
        config: &Config,
        registries: Registries,
        containerd: Option<Containerd>,
    ) -> Self {
        let ports = &config.registry.ports;
        let lookup = containerd.map(|one| Arc::new(Lookup::new(one, ports.clone())));
        let mounting = Self {
            plane,
            registries,
            lookup,
            adding: Mutex::default(),
        };
        mounting.attach_removed();
        mounting
    }

    /// Gives sources to layers that were removed by a daemon before and are still read.
    fn attach_removed(&self) {
        for layer in self.plane.removed_layers() {
            let facts = serde_json::from_slice(layer.origin()).ok();
            if let Some(wanted) = facts.as_ref().and_then(Wanted::from_facts) {
                layer.set_sources(self.sources(&wanted), self.elsewhere(&wanted));
            }
        }
    }

    /// Writes down what is in the store, and leaves all mounts to the next daemon.
    pub async fn hand_over(&self) {
        self.plane.clone().hand_over().await;
    }

    /// Writes down what is in the store, and unmounts everything.
    pub async fn shutdown(&self) {
        self.plane.clone().shutdown().await;
    }

    /// Has the sessions end when this process is killed; `watcher` is a program that watches it.
    pub fn watch(&self, watcher: Command) -> io::Result<Child> {
        self.plane.watch(watcher)
    }

    fn layer(&self, index: &Digest) -> Option<Layer> {
        self.plane.layer(&LayerId(*index))
    }

    fn elsewhere(&self, wanted: &Wanted) -> Option<Arc<dyn Elsewhere>> {
        let lookup = self.lookup.as_ref()?;
        let known = KnownToContainerd::new(lookup, &self.registries, wanted);
        Some(Arc::new(known))
    }

    fn sources(&self, wanted: &Wanted) -> Vec<Arc<dyn Source>> {
        let repositories = wanted
            .origins
            .iter()
            .filter_map(|origin| self.registries.origin(origin));
        repositories
            .map(|repository| Arc::new(RegistrySource::new(repository, wanted.blob)) as Arc<_>)
            .collect()
    }
}

fn directories(implied: &[ImpliedEntry]) -> Vec<ImpliedDirectory> {
    let directory = |entry: &ImpliedEntry| {
        let mut xattrs = entry.xattrs.clone();
        xattrs.sort();
        ImpliedDirectory {
            path: entry.path.clone(),
            mode: entry.mode,
            uid: entry.owner.uid,
            gid: entry.owner.gid,
            xattrs,
        }
    };
    implied.iter().map(directory).collect()
}

/// A chain in the words of the data plane.
fn in_plane(chain: &[ChainLayer]) -> Vec<larder_fuse::ChainLayer> {
    let layer = |one: &ChainLayer| larder_fuse::ChainLayer {
        layer: LayerId(one.index),
        implied: directories(&one.implied),
    };
    chain.iter().map(layer).collect()
}

fn refused(error: &dyn std::fmt::Display) -> PlaneError {
    PlaneError::Failed(error.to_string())
}

impl Plane for MountingPlane {
    fn add<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<(), PlaneError>> {
        let (blob, index) = (wanted.blob, wanted.index);
        let spec = LayerSpec {
            blob,
            index,
            sources: self.sources(wanted),
            elsewhere: self.elsewhere(wanted),
        };
        Box::pin(async move {
            let _added = Added::note(&self.adding, &spec);
            let added = self.plane.add_layer(spec).await;
            let layer = added.map_err(|error| {
                if error.is_disk_full() {
                    PlaneError::DiskFull(error.to_string())
                } else {
                    refused(&error)
                }
            })?;
            layer.set_origin(wanted.origin());
            Ok(())
        })
    }

    fn trouble(&self, index: &Digest) -> Option<String> {
        let adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
        let troubles = adding.get(index)?.iter().filter_map(|one| one.trouble());
        let troubles: Vec<_> = troubles.collect();
        (!troubles.is_empty()).then(|| troubles.join("; "))
    }

    fn attach(&self, wanted: &Wanted) -> bool {
        let Some(layer) = self.layer(&wanted.index.digest) else {
            return false;
        };
        layer.set_origin(wanted.origin());
        layer.set_sources(self.sources(wanted));
        layer.set_elsewhere(self.elsewhere(wanted));
        true
    }

    fn diff_id(&self, index: &Digest) -> Option<Digest> {
        self.layer(index).map(|layer| layer.diff_id())
    }

    fn implied(&self, index: &Digest) -> Vec<Vec<u8>> {
        self.layer(index)
            .map(|layer| layer.implied())
            .unwrap_or_default()
    }

    fn node(&self, index: &Digest, path: &[u8]) -> Option<Node> {
        let layer = self.layer(index)?;
        let found = layer.attributes(path)?;
        let kind = match found.file_type {
            FileType::Directory => NodeKind::Directory,
            FileType::Symlink => NodeKind::Symlink(layer.link_target(path)?),
            _ => NodeKind::Other,
        };
        let owner = Owner {
            uid: found.uid,
            gid: found.gid,
        };
        Some(Node {
            kind,
            mode: found.mode,
            owner,
            xattrs: found.xattrs,
        })
    }

    fn mount<'a>(
        &'a self,
        index: &'a Digest,
        target: &'a Path,
        implied: &'a [ImpliedEntry],
    ) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(async move {
            let layer = self
                .layer(index)
                .ok_or_else(|| refused(&"the store lost its index"))?;
            layer
                .mount(target, &directories(implied))
                .await
                .map_err(|error| refused(&error))
        })
    }

    fn merged_place(&self, chain: &[ChainLayer]) -> Option<PathBuf> {
        let is_possible = self.plane.driver().driver == larder_fuse::Driver::Erofs;
        is_possible.then(|| self.plane.merged_place(&in_plane(chain)))
    }

    fn merge(&self, chain: Vec<ChainLayer>) -> BoxFuture<'_, Result<(), PlaneError>> {
        Box::pin(async move {
            let merged = self.plane.mount_merged(in_plane(&chain)).await;
            merged.map_err(|error| refused(&error))?;
            Ok(())
        })
    }

    fn merged_places(&self) -> Vec<PathBuf> {
        self.plane.merged_places()
    }

    fn drop_merged<'a>(&'a self, place: &'a Path) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(async move {
            let dropped = self.plane.drop_merged(place).await;
            dropped.map_err(|error| refused(&error))
        })
    }

    fn asked_tree(&self, target: &Path) -> Option<PathBuf> {
        self.plane.asked_tree(target)
    }

    fn prove<'a>(&'a self, index: &'a Digest) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(layer) = self.layer(index) {
                layer.prove().await;
            }
        })
    }

    fn verdicts(&self) -> Verdicts {
        self.plane.verdicts()
    }

    fn unmount<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(async move {
            self.plane
                .unmount(target)
                .await
                .map_err(|error| refused(&error))
        })
    }

    fn remove<'a>(&'a self, index: &'a Digest) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(async move {
            self.plane
                .remove_layer(&LayerId(*index))
                .await
                .map_err(|error| refused(&error))
        })
    }

    fn layers(&self) -> Vec<Digest> {
        self.plane
            .layers()
            .iter()
            .map(|layer| layer.id().0)
            .collect()
    }

    fn progress(&self, index: &Digest) -> Option<Progress> {
        let status = self.layer(index)?.status();
        let sources = status.sources.into_iter().map(|source| SourceProgress {
            name: source.name,
            bytes_fetched: source.bytes,
            failure: source.last_failure.unwrap_or_default(),
            senders: source.hosts,
        });
        let last_used = status.last_used.duration_since(UNIX_EPOCH);
        Some(Progress {
            blob: Some(status.blob),
            bytes_total: status.bytes_total,
            bytes_present: status.bytes_present,
            complete: status.state == LayerState::Complete,
            proven: status.proven,
            quarantined: status.quarantined,
            data_on_disk: status.on_disk.device,
            beside_on_disk: status.on_disk.beside,
            in_use: status.in_use,
            last_used: last_used.unwrap_or_default().as_secs(),
            pins: status.pins,
            sources: sources.collect(),
        })
    }

    fn settle(&self, awaited: Vec<PathBuf>) -> BoxFuture<'_, ()> {
        Box::pin(self.plane.settle(awaited))
    }

    fn takeovers(&self) -> Takeovers {
        self.plane.takeovers()
    }

    fn lost(&self) -> Option<u64> {
        self.plane.lost()
    }

    fn caching_stopped(&self) -> Option<CachingStopped> {
        self.plane.caching_stopped()
    }

    fn counts(&self) -> Option<&Arc<Counts>> {
        Some(self.plane.counts())
    }

    fn usage(&self) -> StoreUsage {
        self.plane.usage()
    }

    fn pin(&self, indexes: &[Digest], name: &str) -> Result<(), PlaneError> {
        let layers: Vec<_> = indexes.iter().copied().map(LayerId).collect();
        let pinned = self.plane.pin(&layers, name);
        pinned.map_err(|error| refused(&error))
    }

    fn unpin(&self, name: &str) -> Result<Vec<Digest>, PlaneError> {
        let layers = self.plane.unpin(name).map_err(|error| refused(&error))?;
        Ok(layers.into_iter().map(|layer| layer.0).collect())
    }

    fn age(&self, index: &Digest) -> Duration {
        self.layer(index)
            .map_or(Duration::ZERO, |layer| layer.age())
    }

    fn complete(&self, index: &Digest) {
        if let Some(layer) = self.layer(index) {
            layer.complete();
        }
    }

    fn replay(&self, index: &Digest, reads: &[Access]) {
        if let Some(layer) = self.layer(index) {
            self.plane.replay(&layer, reads);
        }
    }

    fn attached_profile<'a>(
        &'a self,
        origins: &'a [Origin],
        manifest: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, PlaneError>> {
        Box::pin(async move {
            let first = origins.iter().find_map(|one| self.registries.origin(one));
            let Some(repository) = first else {
                return Ok(None);
            };
            let found = attached::profile(&repository, manifest).await;
            found.map_err(|error| refused(&error))
        })
    }

    fn record(&self, indexes: &[Digest]) -> Option<Recording> {
        let layers: Vec<_> = indexes.iter().filter_map(|one| self.layer(one)).collect();
        (layers.len() == indexes.len()).then(|| Recording::begin(&layers))
    }

    fn driver(&self) -> (String, String) {
        let report = self.plane.driver();
        (report.driver.to_string(), report.reason.clone())
    }
}
