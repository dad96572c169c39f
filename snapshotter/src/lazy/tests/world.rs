//! Snapshots on a data plane of the tests, and images for them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_proto::annotation::{self, IndexLocation};
use larder_proto::digest::Digest;

use super::plane::FakePlane;
use crate::config::{Config, Overrides};
use crate::containerd::chain_ids;
use crate::lazy::Lazy;
use crate::plane::Plane;
use crate::snapshots::{Labels, SnapshotError, Snapshots};
use crate::store::{REF_LABEL, Store, StoreError};

pub(super) struct World {
    dir: tempfile::TempDir,
    pub(super) plane: Arc<FakePlane>,
    pub(super) snapshots: Snapshots,
}

impl World {
    pub(super) async fn new(plane: FakePlane) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start(dir, Arc::new(plane)).await
    }

    async fn start(dir: tempfile::TempDir, plane: Arc<FakePlane>) -> Self {
        Self::configured(dir, plane, "").await
    }

    /// With `more` lines of configuration.
    pub(super) async fn configured(
        dir: tempfile::TempDir,
        plane: Arc<FakePlane>,
        more: &str,
    ) -> Self {
        let file = dir.path().join("config.toml");
        let containerd = dir.path().join("no-containerd.sock");
        let text = format!(
            "root = {:?}\nprepare_deadline_ms = 300\n{more}\n[containerd]\naddress = {:?}\n",
            dir.path().display(),
            containerd.display()
        );
        std::fs::write(&file, text).unwrap();
        let config = Config::load(Some(&file), &Overrides::default()).unwrap();
        let lazy = Lazy::new(Arc::clone(&plane) as Arc<dyn Plane>, &config);
        let store = reopened(dir.path()).await;
        let snapshots = Snapshots::start(store, Some(Arc::new(lazy))).await.unwrap();
        Self {
            dir,
            plane,
            snapshots,
        }
    }

    /// The same after a restart of the daemon.
    pub(super) async fn again(self) -> Self {
        let plane = Arc::clone(&self.plane);
        self.again_on(plane).await
    }

    /// The same after a restart, on another data plane.
    pub(super) async fn again_on(self, plane: Arc<FakePlane>) -> Self {
        let Self { dir, snapshots, .. } = self;
        drop_snapshots(snapshots).await;
        Self::start(dir, plane).await
    }

    /// Forgets what is mounted, as a kill of the data plane does.
    pub(super) fn unmount_all(&self) -> BTreeMap<PathBuf, Digest> {
        std::mem::take(&mut *self.plane.mounts.lock().unwrap())
    }

    /// Prepares as containerd's unpacker does; true for AlreadyExists.
    pub(super) async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> bool {
        match self
            .snapshots
            .prepare(key.to_owned(), parent.to_owned(), labels)
            .await
        {
            Ok(_) => false,
            Err(SnapshotError::Store(StoreError::Exists(_))) => true,
            Err(error) => panic!("{key}: {error}"),
        }
    }

    /// The committed snapshots containerd would adopt.
    pub(super) fn adoptable(&self, tars: &str, parent: &str) -> Vec<String> {
        let store = self.snapshots.store();
        let found = store.completing(&chain(tars), parent).unwrap();
        found.into_iter().map(|(name, _)| name).collect()
    }

    /// Why the committed layers of images are unpacked, with their chains.
    pub(super) fn eager(&self) -> Vec<(String, String)> {
        let committed = self.snapshots.store().committed().unwrap();
        let eager = committed.into_iter().filter_map(|(_, record)| record.eager);
        eager.map(|eager| (eager.chain, eager.reason)).collect()
    }

    pub(super) async fn commit(&self, name: &str, key: &str, labels: Labels) {
        let (name, key) = (name.to_owned(), key.to_owned());
        let commit = self.snapshots.commit(name, key, labels, String::new());
        commit.await.unwrap();
    }

    pub(super) fn mounted(&self) -> usize {
        self.plane.mounts.lock().unwrap().len()
    }

    /// Holds the data plane to the `before` fetches there were: a layer that is to be fetched again is
    /// asked for at once, and then every ten seconds.
    pub(super) async fn fetches_nothing(&self, before: usize) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(self.plane.added.load(Ordering::Relaxed), before);
    }

    pub(super) async fn settle(&self, done: impl Fn() -> bool) {
        let wait = async {
            while !done() {
                self.snapshots.cleanup();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), wait)
            .await
            .unwrap();
    }
}

pub(super) fn location(index: &str) -> IndexLocation {
    let digest = Digest::of(index.as_bytes());
    IndexLocation {
        offset: 1,
        stored_len: 2,
        len: 3,
        digest,
    }
}

/// The layer whose tar is the last of `tars`, which are separated by slashes, lowest first.
pub(super) fn layer(tars: &str) -> Digest {
    Digest::of(tars.rsplit('/').next().unwrap().as_bytes())
}

/// The chain that layer completes.
pub(super) fn chain(tars: &str) -> String {
    let tars: Vec<_> = tars.split('/').map(layer).collect();
    chain_ids(&tars).pop().unwrap()
}

/// Labels of the uppermost layer of a converted image, as CRI sends them.
pub(super) fn labels(tars: &str, index: &str) -> Labels {
    [
        (REF_LABEL, chain(tars)),
        (annotation::INDEX, location(index).to_string()),
        (annotation::LAYER, layer(tars).to_string()),
        (
            "containerd.io/snapshot/cri.image-ref",
            "registry.test:5000/app:1".to_owned(),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

pub(super) fn plain(tars: &str) -> Labels {
    [
        (REF_LABEL, chain(tars)),
        (
            "containerd.io/snapshot/cri.layer-digest",
            layer(tars).to_string(),
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

/// Opens the store, whose last owner may be closing the database still.
async fn reopened(root: &Path) -> Store {
    for _ in 0..12_000 {
        match Store::open(root) {
            Err(StoreError::InUse(_)) => tokio::time::sleep(Duration::from_millis(5)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("the store of {} is never closed", root.display());
}

/// Waits until the database is closed: the reaper's task may still hold it for a moment.
async fn drop_snapshots(snapshots: Snapshots) {
    let store = Arc::downgrade(snapshots.store());
    drop(snapshots);
    while store.strong_count() > 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
