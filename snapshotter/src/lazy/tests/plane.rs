//! A data plane that only remembers what it was told.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use larder_fuse::Trust;
use larder_proto::access::Access;
use larder_proto::digest::Digest;

use super::world::location;
use crate::plane::{ChainLayer, Node, NodeKind, Plane, PlaneError, Progress, Wanted};
use crate::store::{ImpliedEntry, Origin, Owner};

type Tree = BTreeMap<Vec<u8>, Node>;

/// Remembers layers and mounts; `delay` and `refuse` make it slow and unwilling.
#[derive(Debug, Default)]
pub(crate) struct FakePlane {
    pub(super) trees: Mutex<HashMap<Digest, Tree>>,
    /// Its layers are not compressed: the digest of each blob is that of the tar.
    pub(super) diff_ids: Mutex<HashMap<Digest, Digest>>,
    pub(super) proven: AtomicBool,
    pub(super) mounts: Mutex<BTreeMap<PathBuf, Digest>>,
    pub(super) added: AtomicUsize,
    /// What is known of single layers; `proven` holds for the others.
    pub(super) trust: Mutex<HashMap<Digest, Trust>>,
    /// What a proof comes to, when it is asked for; it takes `proof_takes`.
    pub(super) truth: Mutex<HashMap<Digest, Trust>>,
    pub(super) proof_takes: Duration,
    pub(super) proofs: Mutex<Vec<Digest>>,
    pub(super) delay: Option<Duration>,
    pub(super) refuse: Vec<Digest>,
    /// No index fits the disk.
    pub(super) is_full: AtomicBool,
    pub(super) trouble: Option<String>,
    /// Bytes each layer takes on the disk.
    pub(super) data_on_disk: AtomicUsize,
    pub(super) pins: Mutex<BTreeMap<Digest, String>>,
    /// How long each layer has been there.
    pub(super) age_seconds: AtomicUsize,
    /// Layers that somebody has mounted elsewhere: they cannot be removed.
    pub(super) held: Vec<Digest>,
    /// The places of chains that were merged.
    pub(super) merged: Mutex<BTreeSet<PathBuf>>,
    /// How long merging takes.
    pub(super) merging_takes: Duration,
    pub(super) merges: AtomicUsize,
    /// Layers with the chunks that were to be fetched ahead.
    pub(super) replayed: Mutex<Vec<(Digest, Vec<u32>)>>,
    /// What is attached to every image, or why that cannot be told.
    pub(super) attached: Mutex<Option<Result<Option<Bytes>, String>>>,
    /// How often somebody asked what is attached.
    pub(super) looked_up: AtomicUsize,
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

    /// Tells the truth of an index when it is asked to prove it.
    pub(super) fn will_prove(&self, index: &str, trust: Trust) {
        let mut truth = self.truth.lock().unwrap();
        truth.insert(location(index).digest, trust);
    }

    /// The same as if it had been proved just now.
    pub(super) fn settle(&self, index: &str, trust: Trust) {
        let mut known = self.trust.lock().unwrap();
        known.insert(location(index).digest, trust);
    }

    fn lie(&self, index: &Digest) -> Option<String> {
        match self.trust.lock().unwrap().get(index) {
            Some(Trust::Quarantined(lie)) => Some(lie.clone()),
            _ => None,
        }
    }
}

impl Plane for FakePlane {
    fn add<'a>(&'a self, wanted: &'a Wanted) -> BoxFuture<'a, Result<(), PlaneError>> {
        Box::pin(async move {
            tokio::time::sleep(self.delay.unwrap_or_default()).await;
            if self.refuse.contains(&wanted.index.digest) {
                return Err(PlaneError::Failed("the registry answers 503".to_owned()));
            }
            if self.is_full.load(Ordering::Relaxed) {
                let error = "4 bytes more than the disk has to give".to_owned();
                return Err(PlaneError::DiskFull(error));
            }
            if let Some(lie) = self.lie(&wanted.index.digest) {
                return Err(PlaneError::Failed(lie));
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
        if let Some(lie) = self.lie(index) {
            return Box::pin(async { Err(PlaneError::Failed(lie)) });
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
        if self.held.contains(index) {
            return Box::pin(async { Err(PlaneError::Failed("it is mounted".to_owned())) });
        }
        self.trees.lock().unwrap().remove(index);
        Box::pin(async { Ok(()) })
    }

    fn merged_place(&self, chain: &[ChainLayer]) -> Option<PathBuf> {
        let indexes: Vec<u8> = chain.iter().flat_map(|one| *one.index.as_bytes()).collect();
        let name = Digest::of(&indexes).hex();
        Some(Path::new("/merged").join(name))
    }

    fn merge(&self, chain: Vec<ChainLayer>) -> BoxFuture<'_, Result<(), PlaneError>> {
        Box::pin(async move {
            tokio::time::sleep(self.merging_takes).await;
            self.merges.fetch_add(1, Ordering::Relaxed);
            let place = self.merged_place(&chain);
            self.merged.lock().unwrap().extend(place);
            Ok(())
        })
    }

    fn merged_places(&self) -> Vec<PathBuf> {
        self.merged.lock().unwrap().iter().cloned().collect()
    }

    fn drop_merged<'a>(&'a self, place: &'a Path) -> BoxFuture<'a, Result<(), PlaneError>> {
        self.merged.lock().unwrap().remove(place);
        Box::pin(async { Ok(()) })
    }

    fn layers(&self) -> Vec<Digest> {
        self.trees.lock().unwrap().keys().copied().collect()
    }

    fn prove<'a>(&'a self, index: &'a Digest) -> BoxFuture<'a, ()> {
        self.proofs.lock().unwrap().push(*index);
        Box::pin(async move {
            let Some(trust) = self.truth.lock().unwrap().get(index).cloned() else {
                return std::future::pending().await;
            };
            tokio::time::sleep(self.proof_takes).await;
            self.trust.lock().unwrap().insert(*index, trust);
        })
    }

    fn progress(&self, index: &Digest) -> Option<Progress> {
        let trust = self.trust.lock().unwrap().get(index).cloned();
        let pins = self.pins.lock().unwrap().get(index).cloned();
        Some(Progress {
            data_on_disk: self.data_on_disk.load(Ordering::Relaxed) as u64,
            pins: pins.into_iter().collect(),
            proven: match trust {
                None => self.proven.load(Ordering::Relaxed),
                Some(trust) => trust == Trust::Proven,
            },
            quarantined: self.lie(index),
            ..Progress::default()
        })
    }

    fn pin(&self, indexes: &[Digest], name: &str) -> Result<(), PlaneError> {
        let mut pins = self.pins.lock().unwrap();
        pins.extend(indexes.iter().map(|index| (*index, name.to_owned())));
        Ok(())
    }

    fn unpin(&self, name: &str) -> Result<Vec<Digest>, PlaneError> {
        let mut pins = self.pins.lock().unwrap();
        let gone = pins.extract_if(.., |_, pin| pin == name);
        Ok(gone.map(|(layer, _)| layer).collect())
    }

    fn age(&self, _: &Digest) -> Duration {
        Duration::from_secs(self.age_seconds.load(Ordering::Relaxed) as u64)
    }

    fn attached_profile<'a>(
        &'a self,
        _: &'a [Origin],
        _: &'a Digest,
    ) -> BoxFuture<'a, Result<Option<Bytes>, PlaneError>> {
        self.looked_up.fetch_add(1, Ordering::Relaxed);
        let attached = self.attached.lock().unwrap().clone();
        let told = attached.unwrap_or(Ok(None)).map_err(PlaneError::Failed);
        Box::pin(async { told })
    }

    fn replay(&self, index: &Digest, reads: &[Access]) {
        let chunks = reads.iter().map(|read| read.chunk).collect();
        self.replayed.lock().unwrap().push((*index, chunks));
    }

    fn driver(&self) -> (String, String) {
        ("fake".to_owned(), "a test".to_owned())
    }
}
