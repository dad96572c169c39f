//! The snapshots as containerd sees them: ordinary ones in the store, lazy ones on top of it.
//!
//! Every change runs in a task of its own: when containerd gives up a request, its future is
//! dropped, and what it began must still end.

mod prepares;
mod reap;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use larder_proto::grpc::Mount;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio_stream::Stream;

use crate::filter::Filter;
use crate::lazy::{LayerRequest, Lazy, Reason, Unfit};
use crate::mounts::{OverlayOptions, mounts};
use crate::plane::PlaneError;
use crate::store::{Chain, Content, Eager, Kind, New, REF_LABEL, Record, Store, StoreError, Usage};
use crate::survey::Survey;
use crate::usage;
use prepares::Prepared;
pub use prepares::Prepares;

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store refused it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer is not mounted now; asking again later helps.
    #[error("layer {id} is not mounted: {reason}; it is fetched again, ask later")]
    Unavailable {
        /// Names its directory.
        id: u64,
        /// Why it is not.
        reason: String,
    },
    /// A layer below may not be used.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The disk has no room for a layer, neither lazily loaded nor unpacked.
    #[error("{0}")]
    DiskFull(Box<Reason>),
    /// Files could not be counted.
    #[error("count the files of snapshot {key:?}: {source}")]
    Usage {
        /// The snapshot.
        key: String,
        /// What went wrong.
        source: io::Error,
    },
    /// The state of before the start could not be read.
    #[error("restore the layers of this node: {0}")]
    Restore(Box<crate::lazy::Reason>),
    /// The process is ending.
    #[error("the snapshotter is shutting down")]
    Interrupted,
}

/// What is to be made instead of a lazily loaded layer.
#[derive(Debug)]
enum NotLazy {
    /// A snapshot that is no layer of an image.
    Plain,
    /// One that containerd unpacks the layer into.
    Eager(Eager),
    /// Nothing.
    Refused(SnapshotError),
}

/// A change of labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relabel {
    /// The snapshot.
    pub key: String,
    /// New values.
    pub labels: Labels,
    /// The labels that change; without, all.
    pub keys: Option<Vec<String>>,
}

/// The snapshots of one root directory. Clones share everything.
#[derive(Debug, Clone)]
pub struct Snapshots {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    /// Absent in tests of ordinary snapshots.
    lazy: Option<Arc<Lazy>>,
    options: OverlayOptions,
    /// Wakes the reaper.
    removed: Arc<Notify>,
    prepares: Prepares,
    survey: Arc<Survey>,
}

impl Snapshots {
    /// Serves the snapshots of `store`: mounts lazily loaded layers again, and frees what a crash
    /// or an earlier removal left.
    pub async fn start(store: Store, lazy: Option<Arc<Lazy>>) -> Result<Self, SnapshotError> {
        let store = Arc::new(store);
        let orphans = store.orphans()?;
        if let Err(error) = store.mend() {
            tracing::warn!(%error, "cannot make directories again that are missing");
        }
        if let Some(lazy) = &lazy {
            let restored = lazy.restore(&store).await;
            restored.map_err(|reason| SnapshotError::Restore(Box::new(reason)))?;
        }
        let inner = Inner {
            store,
            lazy,
            options: OverlayOptions::probe(),
            removed: Arc::new(Notify::new()),
            prepares: Prepares::default(),
            survey: Arc::default(),
        };
        let snapshots = Self {
            inner: Arc::new(inner),
        };
        snapshots.spawn_reaper(orphans);
        Ok(snapshots)
    }

    /// Lazy loading, if it is there.
    pub fn lazy(&self) -> Option<&Arc<Lazy>> {
        self.inner.lazy.as_ref()
    }

    /// What came of Prepare calls.
    pub fn prepares(&self) -> &Prepares {
        &self.inner.prepares
    }

    /// Whether containerd has the same ones.
    pub fn survey(&self) -> &Arc<Survey> {
        &self.inner.survey
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// Makes an active snapshot and says how to mount it.
    pub async fn prepare(
        &self,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        let began = Instant::now();
        let prepares = &self.inner.prepares;
        let eager = match self.load_lazily(&key, &parent, &labels).await {
            Ok(()) => {
                prepares.ended(Prepared::Lazy, began.elapsed());
                // containerd then looks for the committed snapshot and adopts it.
                return Err(StoreError::Exists(key).into());
            }
            Err(NotLazy::Refused(error)) => return Err(error),
            Err(NotLazy::Eager(eager)) => Some(eager),
            Err(NotLazy::Plain) => None,
        };
        let how = match eager {
            Some(_) => Prepared::Eager,
            None => Prepared::Plain,
        };
        let kind = Kind::Active;
        let made = self.create(key, parent, kind, labels, eager).await;
        prepares.ended(how, began.elapsed());
        made
    }

    /// Loads the layer that containerd prepares to unpack; else why it is unpacked, if it is one.
    ///
    /// An index that does not fit the disk is no reason to unpack: that takes a hundred times the room.
    async fn load_lazily(&self, key: &str, parent: &str, labels: &Labels) -> Result<(), NotLazy> {
        let lazy = self.inner.lazy.as_ref().ok_or(NotLazy::Plain)?;
        let (chain, reason) = if let Some(chain) = labels.get(REF_LABEL) {
            let request = LayerRequest {
                namespace: namespace(key).to_owned(),
                chain: chain.clone(),
                parent: parent.to_owned(),
                labels: labels.clone(),
            };
            match lazy.prepare(&self.inner.store, request).await {
                Ok(()) => return Ok(()),
                Err(reason @ Reason::Plane(PlaneError::DiskFull(_))) => {
                    tracing::warn!(%chain, %reason, "a layer is refused: the disk is nearly full");
                    return Err(NotLazy::Refused(SnapshotError::DiskFull(Box::new(reason))));
                }
                Err(reason) => (chain.as_str(), reason),
            }
        } else {
            let chain = unpacked_chain(key).ok_or(NotLazy::Plain)?;
            (chain, Reason::NotAsked)
        };
        self.inner.prepares.not_lazy(&reason);
        tracing::info!(%chain, %reason, "layer is unpacked in the ordinary way");
        Err(NotLazy::Eager(Eager::new(chain, &reason.to_string())))
    }

    /// Makes a read-only snapshot and says how to mount it.
    pub async fn view(
        &self,
        key: String,
        parent: String,
        labels: Labels,
    ) -> Result<Vec<Mount>, SnapshotError> {
        self.create(key, parent, Kind::View, labels, None).await
    }

    async fn create(
        &self,
        key: String,
        parent: String,
        kind: Kind,
        labels: Labels,
        eager: Option<Eager>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        if let Some(lazy) = &self.inner.lazy {
            let below = parent.clone();
            let parents = self.blocking(move |store| store.parents(&below)).await?;
            if eager.is_some() {
                // Nothing runs in what is unpacked.
                lazy.no_lies(&parents)?;
            } else {
                lazy.fit(namespace(&key), &parents).await?;
            }
            self.all_mounted(&parents)?;
        }
        // What is unpacked and what is compared is only looked at.
        let runs = eager.is_none() && !is_of_differ(&key);
        let make = move |store: &Store| {
            store.create(&New {
                key: &key,
                parent: &parent,
                kind,
                labels,
                eager,
            })
        };
        let chain = self.blocking(make).await?;
        let mounts = self.mounts_of(&chain, kind == Kind::View)?;
        if let Some(lazy) = self.inner.lazy.as_ref().filter(|_| runs) {
            lazy.starting(&chain.parents);
            // Whoever comes next gets it.
            lazy.merge_soon(&self.inner.store, &chain.parents);
        }
        Ok(mounts)
    }

    /// Says again how to mount an active snapshot or a view.
    pub async fn mounts(&self, key: String) -> Result<Vec<Mount>, SnapshotError> {
        let find = move |store: &Store| {
            let chain = store.chain(&key)?;
            match chain.record.kind {
                Kind::Committed => Err(StoreError::Committed(key)),
                Kind::View => Ok((chain, true)),
                // The differ makes a view of the parent, and then asks for the snapshot itself.
                Kind::Active => {
                    let compared = store.has_child(&chain.record.parent, is_of_differ)?;
                    Ok((chain, compared))
                }
            }
        };
        let (chain, asked) = self.blocking(find).await?;
        self.mounts_of(&chain, asked)
    }

    /// Whether no layer among `parents` was lost.
    fn all_mounted(&self, parents: &[Record]) -> Result<(), SnapshotError> {
        let Some(lazy) = &self.inner.lazy else {
            return Ok(());
        };
        let missing = parents
            .iter()
            .find_map(|layer| Some((layer.id, lazy.missing(layer.id)?)));
        missing.map_or(Ok(()), |(id, reason)| {
            Err(SnapshotError::Unavailable { id, reason })
        })
    }

    /// With `asked`, trees are taken from where the kernel asks for each attribute: containerd's differ
    /// reads one of every file, and takes no other answer than ENODATA for its absence.
    fn mounts_of(&self, chain: &Chain, asked: bool) -> Result<Vec<Mount>, SnapshotError> {
        self.all_mounted(&chain.parents)?;
        if let Some(lazy) = &self.inner.lazy {
            lazy.no_lies(&chain.parents)?;
        }
        let merged = self.inner.lazy.as_ref();
        let merged = merged.and_then(|lazy| lazy.merged(&chain.parents));
        Ok(mounts(
            self.inner.store.directories(),
            chain,
            &self.inner.options,
            merged.as_deref(),
            |fs| {
                let lazy = self.inner.lazy.as_ref().filter(|_| asked)?;
                lazy.plane().asked_tree(fs)
            },
        ))
    }

    /// Turns an active snapshot into a committed one. Its files are counted afterwards: containerd
    /// holds its database's lock during this call.
    pub async fn commit(
        &self,
        name: String,
        key: String,
        labels: Labels,
        parent: String,
    ) -> Result<(), SnapshotError> {
        let committed = name.clone();
        self.blocking(move |store| store.commit(&name, &key, labels, &parent))
            .await?;
        let snapshots = self.clone();
        tokio::spawn(async move {
            if let Err(error) = snapshots.usage(committed).await {
                tracing::debug!(%error, "disk usage is counted when it is asked for");
            }
        });
        Ok(())
    }

    /// Forgets a snapshot; its files are freed later.
    pub async fn remove(&self, key: String) -> Result<(), SnapshotError> {
        self.blocking(move |store| store.remove(&key)).await?;
        self.inner.removed.notify_one();
        Ok(())
    }

    /// One snapshot, for containerd.
    pub async fn stat(&self, key: String) -> Result<Record, SnapshotError> {
        let found = self.find(key.clone()).await;
        match &found {
            Ok(record) => self.inner.survey.asked(&key, Some(record.id)),
            Err(SnapshotError::Store(StoreError::Missing(_))) => {
                self.inner.survey.asked(&key, None);
            }
            Err(_) => {}
        }
        found
    }

    async fn find(&self, key: String) -> Result<Record, SnapshotError> {
        self.blocking(move |store| store.stat(&key)).await
    }

    /// Changes labels.
    pub async fn relabel(&self, change: Relabel) -> Result<Record, SnapshotError> {
        let relabel =
            move |store: &Store| store.relabel(&change.key, change.labels, change.keys.as_deref());
        self.blocking(relabel).await
    }

    /// The snapshots that pass `filter`, at most `limit` at a time.
    pub fn list(
        &self,
        filter: Filter,
        limit: usize,
    ) -> impl Stream<Item = Result<Vec<(String, Record)>, SnapshotError>> + use<> {
        let filter = Arc::new(filter);
        let snapshots = self.clone();
        futures_util::stream::try_unfold(Some(None), move |position: Option<Option<String>>| {
            let (snapshots, filter) = (snapshots.clone(), Arc::clone(&filter));
            async move {
                let Some(after) = position else {
                    return Ok(None);
                };
                let list = move |store: &Store| store.list(&filter, after.as_deref(), limit);
                let page = snapshots.blocking(list).await?;
                Ok(Some((page.entries, page.next.map(Some))))
            }
        })
    }

    /// Bytes and inodes of a snapshot without its parents.
    pub async fn usage(&self, key: String) -> Result<Usage, SnapshotError> {
        let record = self.find(key.clone()).await?;
        if let Some(usage) = record.usage {
            return Ok(usage);
        }
        if let Content::Layer { .. } = record.content {
            return Ok(self.layer_usage(&record));
        }
        // When the request is given up, the flag's guard is dropped with this future.
        let cancelled = Arc::new(AtomicBool::new(false));
        let _guard = usage::Cancel(&cancelled);
        let (root, flag) = (self.inner.store.fs(record.id), Arc::clone(&cancelled));
        let counted = spawn_blocking(move || usage::count(&root, &flag)).await;
        let counted = counted.map_err(|_| SnapshotError::Interrupted)?;
        let failed = |source| SnapshotError::Usage {
            key: key.clone(),
            source,
        };
        let usage = counted.map_err(failed)?.ok_or(SnapshotError::Interrupted)?;
        if record.kind == Kind::Committed {
            self.blocking(move |store| store.set_usage(&key, usage))
                .await?;
        }
        Ok(usage)
    }

    /// What a lazily loaded layer takes now; containerd asks once, early, and never again.
    fn layer_usage(&self, record: &Record) -> Usage {
        let progress = self.inner.lazy.as_ref().zip(record.layer());
        let progress = progress.and_then(|(lazy, layer)| lazy.plane().progress(&layer));
        Usage {
            bytes: progress.map_or(0, |progress| progress.bytes_present),
            inodes: 1,
        }
    }

    /// Frees what removed snapshots left, soon.
    pub fn cleanup(&self) {
        self.inner.removed.notify_one();
    }

    /// Runs `call` on a thread that may wait for the disk, to its end.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, SnapshotError> {
        let inner = Arc::clone(&self.inner);
        let called = spawn_blocking(move || call(&inner.store)).await;
        Ok(called.map_err(|_| SnapshotError::Interrupted)??)
    }
}

/// Whether a snapshot is the view of a parent that containerd's clients make to compare a snapshot with.
fn is_of_differ(key: &str) -> bool {
    key.contains("-parent-view-")
}

/// containerd's keys begin with the namespace: `<namespace>/<number>/<client's key>`. The header
/// that also names it is missing from many calls.
pub(crate) fn namespace(key: &str) -> &str {
    key.split_once('/')
        .map_or("default", |(namespace, _)| namespace)
}

/// The chain of a layer that is being unpacked, by its key: containerd's clients name such snapshots
/// `extract-<unique> <chain id>`, also those that set no label.
fn unpacked_chain(key: &str) -> Option<&str> {
    let own = key.splitn(3, '/').last()?;
    let (unique, chain) = own.split_once(' ')?;
    (unique.starts_with("extract-") && chain.starts_with("sha256:")).then_some(chain)
}
