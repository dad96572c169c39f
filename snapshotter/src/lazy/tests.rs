//! The remote protocol against a data plane that only remembers what it was told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use larder_proto::annotation::{self, IndexLocation};

use super::*;
use crate::config::Overrides;
use crate::containerd::chain_ids;
use crate::plane::{Node, NodeKind, Progress};
use crate::snapshots::{SnapshotError, Snapshots};
use crate::store::{ImpliedEntry, REF_LABEL};

type Tree = BTreeMap<Vec<u8>, Node>;

/// Remembers layers and mounts; `delay` and `refuse` make it slow and unwilling.
#[derive(Debug, Default)]
pub(crate) struct FakePlane {
    trees: Mutex<HashMap<Digest, Tree>>,
    /// Its layers are not compressed: the digest of each blob is that of the tar.
    diff_ids: Mutex<HashMap<Digest, Digest>>,
    proven: AtomicBool,
    mounts: Mutex<BTreeMap<PathBuf, Digest>>,
    added: AtomicUsize,
    /// Why none of its layers is mounted any more.
    quarantined: Mutex<Option<String>>,
    delay: Option<Duration>,
    refuse: Vec<Digest>,
    trouble: Option<String>,
    /// Bytes each layer takes on the disk.
    data_on_disk: AtomicUsize,
    pins: Mutex<BTreeMap<Digest, String>>,
}

impl FakePlane {
    pub(crate) fn add_directory(&self, index: Digest, path: &[u8], mode: u16) {
        let node = Node {
            kind: NodeKind::Directory,
            mode,
            owner: Owner::ROOT,
            xattrs: Vec::new(),
        };
        let mut trees = self.trees.lock().unwrap();
        trees.entry(index).or_default().insert(path.to_vec(), node);
    }
}

impl Plane for FakePlane {
    fn add<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(async move {
            tokio::time::sleep(self.delay.unwrap_or_default()).await;
            if self.refuse.contains(&wanted.index.digest) {
                return Err(PlaneError("the registry answers 503".to_owned()));
            }
            self.added.fetch_add(1, Ordering::Relaxed);
            self.add_directory(wanted.index.digest, b"", 0o755);
            let mut diff_ids = self.diff_ids.lock().unwrap();
            diff_ids.insert(wanted.index.digest, wanted.blob);
            Ok(())
        })
    }

    fn trouble(&self, _: &Digest) -> Option<String> {
        self.trouble.clone()
    }

    fn attach(&self, wanted: &Wanted) -> bool {
        self.trees
            .lock()
            .unwrap()
            .contains_key(&wanted.index.digest)
    }

    fn diff_id(&self, index: &Digest) -> Option<Digest> {
        self.diff_ids.lock().unwrap().get(index).copied()
    }

    fn implied(&self, _: &Digest) -> Vec<Vec<u8>> {
        Vec::new()
    }

    fn node(&self, index: &Digest, path: &[u8]) -> Option<Node> {
        self.trees.lock().unwrap().get(index)?.get(path).cloned()
    }

    fn mount<'a>(
        &'a self,
        index: &'a Digest,
        target: &'a Path,
        _: &'a [ImpliedEntry],
    ) -> BoxFuture<'a, Result<(), PlaneError>> {
        if let Some(lie) = self.quarantined.lock().unwrap().clone() {
            return Box::pin(async { Err(PlaneError(lie)) });
        }
        let taken = self
            .mounts
            .lock()
            .unwrap()
            .insert(target.to_owned(), *index);
        assert_eq!(taken, None, "mounted twice at {}", target.display());
        Box::pin(async { Ok(()) })
    }

    fn unmount<'a>(&'a self, target: &'a Path) -> BoxFuture<'a, Result<(), PlaneError>> {
        self.mounts.lock().unwrap().remove(target);
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, index: &'a Digest) -> BoxFuture<'a, Result<(), PlaneError>> {
        self.trees.lock().unwrap().remove(index);
        Box::pin(async { Ok(()) })
    }

    fn layers(&self) -> Vec<Digest> {
        self.trees.lock().unwrap().keys().copied().collect()
    }

    fn progress(&self, index: &Digest) -> Option<Progress> {
        let pins = self.pins.lock().unwrap().get(index).cloned();
        Some(Progress {
            data_on_disk: self.data_on_disk.load(Ordering::Relaxed) as u64,
            pins: pins.into_iter().collect(),
            proven: self.proven.load(Ordering::Relaxed),
            quarantined: self.quarantined.lock().unwrap().clone(),
            ..Progress::default()
        })
    }

    fn pin(&self, indexes: &[Digest], name: &str) -> Result<(), PlaneError> {
        let mut pins = self.pins.lock().unwrap();
        pins.extend(indexes.iter().map(|index| (*index, name.to_owned())));
        Ok(())
    }

    fn unpin(&self, name: &str) -> Result<usize, PlaneError> {
        let mut pins = self.pins.lock().unwrap();
        let before = pins.len();
        pins.retain(|_, pin| pin != name);
        Ok(before - pins.len())
    }

    fn driver(&self) -> (String, String) {
        ("fake".to_owned(), "a test".to_owned())
    }
}

struct World {
    dir: tempfile::TempDir,
    plane: Arc<FakePlane>,
    snapshots: Snapshots,
}

impl World {
    async fn new(plane: FakePlane) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start(dir, Arc::new(plane)).await
    }

    async fn start(dir: tempfile::TempDir, plane: Arc<FakePlane>) -> Self {
        Self::configured(dir, plane, "").await
    }

    async fn configured(dir: tempfile::TempDir, plane: Arc<FakePlane>, more: &str) -> Self {
        let file = dir.path().join("config.toml");
        let containerd = dir.path().join("no-containerd.sock");
        let text = format!(
            "prepare_deadline_ms = 300\n{more}\n[containerd]\naddress = {:?}\n",
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
    async fn again(self) -> Self {
        let plane = Arc::clone(&self.plane);
        self.again_on(plane).await
    }

    /// The same after a restart, on another data plane.
    async fn again_on(self, plane: Arc<FakePlane>) -> Self {
        let Self { dir, snapshots, .. } = self;
        drop_snapshots(snapshots).await;
        Self::start(dir, plane).await
    }

    /// Forgets what is mounted, as a kill of the data plane does.
    fn unmount_all(&self) -> BTreeMap<PathBuf, Digest> {
        std::mem::take(&mut *self.plane.mounts.lock().unwrap())
    }

    /// Prepares as containerd's unpacker does; true for AlreadyExists.
    async fn prepare(&self, key: &str, parent: &str, labels: Labels) -> bool {
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
    fn adoptable(&self, tars: &str, parent: &str) -> Vec<String> {
        let store = self.snapshots.store();
        let found = store.completing(&chain(tars), parent).unwrap();
        found.into_iter().map(|(name, _)| name).collect()
    }

    /// Why the committed layers of images are unpacked, with their chains.
    fn eager(&self) -> Vec<(String, String)> {
        let committed = self.snapshots.store().committed().unwrap();
        let eager = committed.into_iter().filter_map(|(_, record)| record.eager);
        eager.map(|eager| (eager.chain, eager.reason)).collect()
    }

    async fn commit(&self, name: &str, key: &str, labels: Labels) {
        let (name, key) = (name.to_owned(), key.to_owned());
        let commit = self.snapshots.commit(name, key, labels, String::new());
        commit.await.unwrap();
    }

    fn mounted(&self) -> usize {
        self.plane.mounts.lock().unwrap().len()
    }

    /// Holds the data plane to the `before` fetches there were: a layer that is to be fetched again is
    /// asked for at once, and then every ten seconds.
    async fn fetches_nothing(&self, before: usize) {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(self.plane.added.load(Ordering::Relaxed), before);
    }

    async fn settle(&self, done: impl Fn() -> bool) {
        let wait = async {
            while !done() {
                self.snapshots.cleanup();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .unwrap();
    }
}

fn location(index: &str) -> IndexLocation {
    let digest = Digest::of(index.as_bytes());
    IndexLocation {
        offset: 1,
        stored_len: 2,
        len: 3,
        digest,
    }
}

/// The layer whose tar is the last of `tars`, which are separated by slashes, lowest first.
fn layer(tars: &str) -> Digest {
    Digest::of(tars.rsplit('/').next().unwrap().as_bytes())
}

/// The chain that layer completes.
fn chain(tars: &str) -> String {
    let tars: Vec<_> = tars.split('/').map(layer).collect();
    chain_ids(&tars).pop().unwrap()
}

/// Labels of the uppermost layer of a converted image, as CRI sends them.
fn labels(tars: &str, index: &str) -> Labels {
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

fn plain(tars: &str) -> Labels {
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

/// Promise: after AlreadyExists, containerd finds exactly one snapshot with label and parent.
#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_layer_is_committed_where_containerd_looks_for_it() {
    let world = World::new(FakePlane::default()).await;
    assert!(
        world
            .prepare("k8s.io/1/extract-1 c1", "", labels("c1", "i1"))
            .await
    );
    let base = world.adoptable("c1", "");
    assert_eq!(base.len(), 1);
    assert!(base[0].starts_with("k8s.io/"), "{}", base[0]);
    let info = world.snapshots.stat(base[0].clone()).await.unwrap();
    assert_eq!(info.labels, labels("c1", "i1"), "all labels are kept");
    assert!(
        world
            .prepare("k8s.io/2/extract-2 c2", &base[0], labels("c1/c2", "i2"))
            .await
    );
    assert_eq!(world.adoptable("c1/c2", &base[0]).len(), 1);
    assert!(world.adoptable("c1/c2", "").is_empty());
    assert_eq!(world.mounted(), 2);
}

/// Promise: 32 parallel Prepare of one layer load it once, and each may adopt it.
#[tokio::test(flavor = "multi_thread")]
async fn of_32_parallel_prepares_of_one_layer_all_share_one_mount() {
    let plane = FakePlane {
        delay: Some(Duration::from_millis(50)),
        ..FakePlane::default()
    };
    let world = Arc::new(World::new(plane).await);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..32 {
        let world = Arc::clone(&world);
        calls.spawn(async move {
            world
                .prepare(&format!("ns{number}/1/x"), "", labels("c", "i"))
                .await
        });
    }
    assert!(calls.join_all().await.into_iter().all(|exists| exists));
    assert_eq!(world.adoptable("c", "").len(), 1);
    assert_eq!(
        (world.mounted(), world.plane.added.load(Ordering::Relaxed)),
        (1, 1)
    );
}

/// Promise: a layer that cannot be lazy in the middle of a lazy chain is unpacked, the next one
/// is lazy again on top of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_falls_back_in_the_middle_of_a_lazy_chain() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/a", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    assert!(!world.prepare("n/2/b", &base, plain("c1/c2")).await);
    let commit = world.snapshots.commit(
        "n/3/c2".into(),
        "n/2/b".into(),
        plain("c1/c2"),
        String::new(),
    );
    commit.await.unwrap();
    assert!(
        world
            .prepare("n/4/c", "n/3/c2", labels("c1/c2/c3", "i3"))
            .await
    );
    let top = world.adoptable("c1/c2/c3", "n/3/c2").remove(0);
    let mounts = world
        .snapshots
        .prepare("n/5/run".into(), top, Labels::new())
        .await
        .unwrap();
    let lowers = mounts[0].options.last().unwrap().split(':').count();
    assert_eq!(lowers, 3);
}

/// Promise: what containerd itself unpacked is shared with every namespace.
#[tokio::test(flavor = "multi_thread")]
async fn an_unpacked_layer_serves_a_second_namespace_at_once() {
    let world = World::new(FakePlane::default()).await;
    assert!(!world.prepare("a/1/x", "", plain("c1")).await);
    let commit =
        world
            .snapshots
            .commit("a/2/c1".into(), "a/1/x".into(), plain("c1"), String::new());
    commit.await.unwrap();
    assert!(world.prepare("b/1/x", "", plain("c1")).await);
    assert_eq!(world.adoptable("c1", ""), ["a/2/c1"]);
}

/// Promise: a lying index of one image cannot reach another image with the same chain.
#[tokio::test(flavor = "multi_thread")]
async fn an_unproved_layer_is_not_shared_with_an_image_that_did_not_name_its_index() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("a/1/x", "", labels("c1", "lying")).await);
    assert!(
        world.prepare("b/1/x", "", labels("c1", "lying")).await,
        "the same claim is shared"
    );
    assert!(!world.prepare("c/1/x", "", labels("c1", "honest")).await);
    assert!(!world.prepare("d/1/x", "", plain("c1")).await);
    assert_eq!(world.adoptable("c1", "").len(), 1);
}

/// What is proved of a layer is proved of the tar its index names: under the chain of another tar, as
/// a lying config has it, the index is not used, however honest it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_honest_index_under_the_chain_of_another_tar_is_not_used() {
    let world = World::new(FakePlane::default()).await;
    world.plane.proven.store(true, Ordering::Relaxed);
    let under = |tars: &str, mut labels: Labels| {
        labels.insert(REF_LABEL.to_owned(), chain(tars));
        labels
    };
    let foreign = under("harmless", labels("c1", "i1"));
    assert!(!world.prepare("n/1/x", "", foreign.clone()).await);
    world.commit("n/2/x", "n/1/x", foreign).await;
    let told = world.eager();
    for part in [layer("c1").to_string(), chain("harmless")] {
        assert!(told[0].1.contains(&part), "{told:?}");
    }
    // The right tar, on the wrong parent.
    assert!(world.prepare("n/3/x", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    let foreign = under("harmless/c2", labels("c1/c2", "i2"));
    assert!(!world.prepare("n/4/x", &base, foreign).await);
    assert!(!world.prepare("n/5/x", "", labels("c1/c2", "i2")).await);
    assert!(world.prepare("n/6/x", &base, labels("c1/c2", "i2")).await);
    assert_eq!(world.mounted(), 2);
}

/// A layer may lie on one that was unpacked without a label; on one of which nothing is known, it is
/// unpacked, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_lazy_only_where_the_chain_below_it_is_known() {
    let world = World::new(FakePlane::default()).await;
    let (key, c1) = (format!("n/1/extract-1 {}", chain("c1")), "n/2/c1");
    assert!(!world.prepare(&key, "", Labels::new()).await);
    world.commit(c1, &key, Labels::new()).await;
    assert!(world.prepare("n/3/x", c1, labels("c1/c2", "i2")).await);
    assert!(!world.prepare("n/4/x", "", Labels::new()).await);
    world.commit("n/5/odd", "n/4/x", Labels::new()).await;
    let on_it = labels("c1/c2", "i2");
    assert!(!world.prepare("n/6/x", "n/5/odd", on_it).await);
}

/// A record of an earlier build that took a foreign index for the chain's is not shared, and not
/// mounted again.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_of_an_earlier_build_is_neither_shared_nor_mounted_again() {
    let world = World::new(FakePlane::default()).await;
    world.plane.proven.store(true, Ordering::Relaxed);
    let store = world.snapshots.store();
    let wanted = Wanted {
        blob: layer("c1"),
        index: location("i1"),
        origins: Vec::new(),
        namespace: "n".to_owned(),
    };
    world.plane.add(&wanted).await.unwrap();
    let facts = LayerFacts {
        blob: wanted.blob.to_string(),
        location: wanted.index.to_string(),
        origins: Vec::new(),
        namespace: "n".to_owned(),
        implied: Vec::new(),
    };
    let content = Content::Layer {
        index: wanted.index.digest.to_string(),
        owner: Owner::ROOT,
    };
    let id = store.reserve().unwrap();
    let foreign = plain("harmless");
    let adopted = store.adopt(id, "n/1/lazy", "", foreign.clone(), content, &facts);
    adopted.unwrap();
    assert!(!world.prepare("other/2/x", "", foreign).await);
    let (view, base) = ("n/3/v".to_owned(), "n/1/lazy".to_owned());
    let snapshots = &world.snapshots;
    let viewed = snapshots.view(view.clone(), base, Labels::new()).await;
    assert!(viewed.is_ok());
    let world = world.again().await;
    assert_eq!(world.mounted(), 0);
    let refused = world.snapshots.mounts(view).await.unwrap_err();
    assert!(
        refused.to_string().contains(&chain("harmless")),
        "{refused}"
    );
    world.fetches_nothing(1).await;
}

/// Promise: a layer that was quarantined stays away after a restart, says so, and nothing is asked for
/// again and again: no index that could be fetched helps.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_layer_is_not_fetched_again() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    let (run, none) = ("n/2/run".to_owned(), Labels::new());
    let prepared = world.snapshots.prepare(run.clone(), base, none).await;
    assert!(prepared.is_ok());
    world.unmount_all();
    *world.plane.quarantined.lock().unwrap() = Some("other mode of /bin/sh".to_owned());
    let world = world.again().await;
    let refused = world.snapshots.mounts(run).await.unwrap_err().to_string();
    for part in ["other mode of /bin/sh", "remove the image"] {
        assert!(refused.contains(part), "{refused}");
    }
    world.fetches_nothing(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_or_failing_registry_means_an_ordinary_unpack_in_time() {
    let plane = FakePlane {
        delay: Some(Duration::from_millis(900)),
        ..FakePlane::default()
    };
    let world = World::new(plane).await;
    let begin = Instant::now();
    assert!(!world.prepare("n/1/x", "", labels("c1", "i1")).await);
    assert!(
        begin.elapsed() < Duration::from_millis(800),
        "{:?}",
        begin.elapsed()
    );
    world
        .settle(|| world.plane.added.load(Ordering::Relaxed) == 1)
        .await;
    assert_eq!(
        world.mounted(),
        0,
        "late work prepares the index and nothing else"
    );
    let refuse = vec![location("i1").digest];
    let world = World::new(FakePlane {
        refuse,
        ..FakePlane::default()
    })
    .await;
    assert!(!world.prepare("n/1/x", "", labels("c1", "i1")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_labels_mean_an_ordinary_unpack() {
    let world = World::new(FakePlane::default()).await;
    let mut contradicting = labels("c1", "i1");
    let other = Digest::of(b"other").to_string();
    contradicting.insert("containerd.io/snapshot/cri.layer-digest".to_owned(), other);
    let mut damaged = labels("c1", "i1");
    damaged.insert(annotation::INDEX.to_owned(), "1:2".to_owned());
    let mut nowhere = labels("c1", "i1");
    nowhere.remove("containerd.io/snapshot/cri.image-ref");
    let alone = Labels::from([(REF_LABEL.to_owned(), chain("c1"))]);
    for (number, labels) in [contradicting, damaged, nowhere, alone]
        .into_iter()
        .enumerate()
    {
        assert!(
            !world.prepare(&format!("n/{number}/x"), "", labels).await,
            "{number}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_unmounts_and_frees_the_layer() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
    let name = world.adoptable("c1", "").remove(0);
    let fs = world
        .snapshots
        .store()
        .fs(world.snapshots.stat(name.clone()).await.unwrap().id);
    world.snapshots.remove(name).await.unwrap();
    world
        .settle(|| !fs.exists() && world.plane.layers().is_empty())
        .await;
    assert_eq!(world.mounted(), 0);
}

/// Promise: with `keep_removed`, a layer outlives its last snapshot for as long as it has bytes; a
/// pinned one until it is unpinned.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_or_pinned_layer_outlives_its_last_snapshot() {
    for (keep, pinned) in [("keep_removed = true", false), ("", true)] {
        let plane = Arc::new(FakePlane::default());
        let dir = tempfile::tempdir().unwrap();
        let world = World::configured(dir, Arc::clone(&plane), keep).await;
        plane.data_on_disk.store(4096, Ordering::Relaxed);
        assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
        if pinned {
            plane.pin(&plane.layers(), "a pin").unwrap();
        }
        let name = world.adoptable("c1", "").remove(0);
        let fs = world.snapshots.store();
        let fs = fs.fs(world.snapshots.stat(name.clone()).await.unwrap().id);
        world.snapshots.remove(name).await.unwrap();
        world.settle(|| !fs.exists()).await;
        assert_eq!((world.mounted(), plane.layers().len()), (0, 1), "{keep}");
        if pinned {
            assert_eq!(plane.unpin("a pin").unwrap(), 1);
        } else {
            plane.data_on_disk.store(0, Ordering::Relaxed);
        }
        let lazy = world.snapshots.lazy().unwrap();
        lazy.free(world.snapshots.store(), &plane.layers())
            .await
            .unwrap();
        assert!(plane.layers().is_empty(), "{keep}");
    }
}

/// Promise: after a kill every layer is mounted again at the same path, without the network.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_mounts_every_layer_where_it_was() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    assert!(world.prepare("n/2/x", &base, labels("c1/c2", "i2")).await);
    let top = world.adoptable("c1/c2", &base).remove(0);
    let before = world
        .snapshots
        .prepare("n/3/run".into(), top, Labels::new())
        .await
        .unwrap();
    let mounts = world.unmount_all();
    let world = world.again().await;
    assert_eq!(*world.plane.mounts.lock().unwrap(), mounts);
    assert_eq!(
        world.snapshots.mounts("n/3/run".into()).await.unwrap(),
        before
    );
    assert_eq!(
        world.plane.added.load(Ordering::Relaxed),
        2,
        "nothing was fetched again"
    );
}

/// Promise: `ctr images pull` of containerd 1.x names neither chain nor layer; what it unpacks is
/// reported all the same, with what to do, and what containers write is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_unpacked_without_asking_is_told_with_what_to_do() {
    let world = World::new(FakePlane::default()).await;
    let key = "default/12/extract-165536-aB-9 sha256:1111";
    assert!(!world.prepare(key, "", Labels::new()).await);
    world
        .commit("default/13/sha256:1111", key, Labels::new())
        .await;
    let top = "default/13/sha256:1111";
    assert!(!world.prepare("default/14/run", top, Labels::new()).await);
    world
        .commit("default/15/mine", "default/14/run", Labels::new())
        .await;
    let told = world.eager();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "sha256:1111");
    assert!(told[0].1.contains("larder-snapshotter pull"), "{told:?}");
    assert!(
        world
            .snapshots
            .store()
            .completing("sha256:1111", "")
            .unwrap()
            .is_empty()
    );
}

/// Promise: why a layer is not lazy is still known after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_an_unpacked_layer_survives_a_restart() {
    let world = World::new(FakePlane::default()).await;
    assert!(!world.prepare("n/1/x", "", plain("c1")).await);
    world.commit("n/2/c1", "n/1/x", plain("c1")).await;
    let before = world.eager();
    assert!(before[0].1.contains("no index"), "{before:?}");
    let world = world.again().await;
    assert_eq!(world.eager(), before);
}

/// Promise: a layer that was not ready in time says what the registry answered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_layer_tells_what_went_wrong_meanwhile() {
    let world = World::new(FakePlane {
        delay: Some(Duration::from_secs(5)),
        trouble: Some("r.test answered 500".to_owned()),
        ..FakePlane::default()
    })
    .await;
    assert!(!world.prepare("n/1/x", "", labels("c1", "i1")).await);
    world.commit("n/2/c1", "n/1/x", labels("c1", "i1")).await;
    let told = world.eager();
    assert!(told[0].1.contains("r.test answered 500"), "{told:?}");
    assert!(told[0].1.contains("not ready within 300ms"), "{told:?}");
}

/// Promise: a layer whose index was lost makes its children unavailable until it is fetched.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_layer_is_unavailable_and_comes_back() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    world
        .snapshots
        .prepare("n/2/run".into(), base, Labels::new())
        .await
        .unwrap();
    let slow = FakePlane {
        delay: Some(Duration::from_millis(200)),
        ..FakePlane::default()
    };
    let world = world.again_on(Arc::new(slow)).await;
    let gone = world.snapshots.mounts("n/2/run".into()).await;
    assert!(
        matches!(gone, Err(SnapshotError::Unavailable { .. })),
        "{gone:?}"
    );
    world.settle(|| world.mounted() == 1).await;
    let mut back = world.snapshots.mounts("n/2/run".into()).await;
    for _ in 0..100 {
        if back.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        back = world.snapshots.mounts("n/2/run".into()).await;
    }
    assert!(back.is_ok(), "{back:?}");
}

/// Opens the store, whose last owner may be closing the database still.
async fn reopened(root: &Path) -> Store {
    for _ in 0..2000 {
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

#[test]
fn chain_ids_follow_the_image_specification() {
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    let chained = Digest::of(format!("{a} {b}").as_bytes()).to_string();
    assert_eq!(chain_ids(&[a, b]), [a.to_string(), chained]);
    assert!(chain_ids(&[]).is_empty());
}
