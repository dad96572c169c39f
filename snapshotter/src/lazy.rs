//! Lazily loaded layers: found, mounted and committed while containerd prepares to download them.
//!
//! Whatever stands in the way is a [`Reason`], never an error: the layer is then unpacked in the
//! ordinary way, and the log says why.

mod attached;
mod belongs;
mod class;
mod contest;
mod flight;
pub(crate) mod implied;
mod locate;
mod merged;
mod restore;
mod siblings;
mod unused;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larder_proto::annotation::LocationError;
use larder_proto::digest::Digest;
use tokio::sync::RwLock;
use tokio::time::{Instant as Moment, timeout_at};

use crate::config::Config;
use crate::containerd::{Containerd, ContentError, Lookup};
use crate::failpoint::failpoint;
use crate::plane::{Plane, PlaneError, Wanted};
use crate::profiles::Profiles;
use crate::snapshots::Labels;
use crate::store::{Content, LayerFacts, Owner, Record, Store, StoreError};
use attached::Asked;
use belongs::belongs;
pub use contest::Unfit;
use flight::Flights;
pub(crate) use implied::Parent;
use merged::Merges;
use siblings::Siblings;
pub(crate) use unused::Kept;

/// Why a layer is not loaded lazily.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The manifest has no index annotation.
    #[error("the layer has no index: the image was not converted, or this layer could not be")]
    NotConverted,
    /// Neither labels nor content store know the layer.
    #[error("no label names the layer, and containerd's content store has no manifest of it")]
    Unknown,
    /// Nobody says where the blob is.
    #[error("no label says which repository the layer is in")]
    NoOrigin,
    /// Ours and containerd's labels name different layers.
    #[error("the labels larder.layer and cri.layer-digest name different layers")]
    Contradiction,
    /// A label that cannot be read.
    #[error("{0}")]
    Labels(String),
    /// The index annotation cannot be read.
    #[error(transparent)]
    Location(#[from] LocationError),
    /// containerd's content store did not answer.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Another image brought another index for the same chain.
    #[error(
        "another image loads the same layers lazily with another index, which could not be proved \
         in time; it goes on being completed"
    )]
    Contested,
    /// Nobody says which image is pulled, and images contradict each other.
    #[error(
        "images of this namespace name the layer with different indexes, and nothing says which \
         of them is pulled: switch CRI's snapshot annotations on"
    )]
    Ambiguous,
    /// A layer below may not be used.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The index is of another tar than the one the chain names.
    #[error(
        "the layer is not the one its image's config names: its index is of a tar with digest \
         {diff_id}, which makes chain {made} and not {chain}"
    )]
    Foreign {
        /// The tar's digest, by the index's account.
        diff_id: Digest,
        /// The chain it would complete here.
        made: String,
        /// The chain that was asked for.
        chain: String,
    },
    /// The parent does not say which chain it completes.
    #[error("nothing says which layers are below this one, so it cannot be told whether it fits")]
    NoChain,
    /// The data plane refused.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// Attributes of parents could not be read.
    #[error("read the parents' directories: {0}")]
    Parents(std::io::Error),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// containerd did not say that the layer completes a chain: nobody may commit it.
    #[error(
        "containerd downloaded the layer before it asked, as `ctr images pull` of containerd 1.x \
         and `ctr images import` do: remove the image and use `larder-snapshotter pull`"
    )]
    NotAsked,
    /// It took too long; the work goes on for the next try.
    #[error("not ready within {waited:?}{trouble}; the next pull may be luckier")]
    Late {
        /// How long it was waited for.
        waited: Duration,
        /// What the registry said meanwhile, with a leading separator, or nothing.
        trouble: String,
    },
    /// The process is ending.
    #[error("the snapshotter is shutting down")]
    Interrupted,
}

/// A Prepare that may be answered lazily.
#[derive(Debug, Clone)]
pub(crate) struct LayerRequest {
    /// containerd namespace, from the key.
    pub(crate) namespace: String,
    /// The chain the layer completes.
    pub(crate) chain: String,
    /// Backend name of its parent, or empty.
    pub(crate) parent: String,
    /// All labels of the request.
    pub(crate) labels: Labels,
}

/// Loads layers lazily.
#[derive(Debug)]
pub struct Lazy {
    plane: Arc<dyn Plane>,
    lookup: Lookup,
    deadline: Duration,
    keep_removed: bool,
    flights: Flights<(String, String)>,
    siblings: Siblings,
    asked: Asked,
    /// Held for reading while a layer is added and mounted, for writing while one is freed.
    gate: RwLock<()>,
    /// Layers without a snapshot, and from when on they may go.
    unused: Mutex<HashMap<Digest, Instant>>,
    /// Snapshots whose layer could not be mounted at the start, and why.
    missing: Mutex<HashMap<u64, String>>,
    profiles: Arc<Profiles>,
    merges: Merges,
}

impl Lazy {
    /// Lazy loading on `plane`.
    pub fn new(plane: Arc<dyn Plane>, config: &Config) -> Self {
        let containerd = Containerd::new(config.containerd.clone());
        let profiles = Profiles::new(Arc::clone(&plane), &config.root, config.profiles);
        Self {
            plane,
            profiles,
            lookup: Lookup::new(containerd, config.registry.ports.clone()),
            deadline: config.prepare_deadline,
            keep_removed: config.keep_removed,
            flights: Flights::default(),
            siblings: Siblings::default(),
            asked: Asked::default(),
            gate: RwLock::default(),
            unused: Mutex::default(),
            missing: Mutex::default(),
            merges: Merges::new(config.mount_plan),
        }
    }

    /// The data plane.
    pub fn plane(&self) -> &Arc<dyn Plane> {
        &self.plane
    }

    /// What starts are known to read.
    pub fn profiles(&self) -> &Arc<Profiles> {
        &self.profiles
    }

    /// Something is about to run on these snapshots, the topmost first.
    pub(crate) fn starting(&self, parents: &[Record]) {
        let mut names = parents.iter().map(|record| &record.labels);
        let image = names.find_map(|labels| labels.get(locate::IMAGE_REF));
        let layers: Vec<Digest> = parents.iter().rev().filter_map(Record::layer).collect();
        let image = image.map(String::as_str).unwrap_or_default();
        self.profiles.starting(image, &layers);
    }

    /// Makes a committed snapshot of the requested layer, or finds one; else says why not.
    pub(crate) async fn prepare(
        self: &Arc<Self>,
        store: &Arc<Store>,
        request: LayerRequest,
    ) -> Result<(), Reason> {
        let (lazy, store) = (Arc::clone(self), Arc::clone(store));
        // A task of its own: a request that is given up must not leave a mount without a record.
        let work = tokio::spawn(async move {
            let attempted = lazy.attempt(&store, &request).await;
            if attempted.is_ok() {
                lazy.merge_topmost(&store, &request).await;
            }
            attempted
        });
        work.await.map_err(|_| Reason::Interrupted)?
    }

    async fn attempt(
        self: &Arc<Self>,
        store: &Arc<Store>,
        request: &LayerRequest,
    ) -> Result<(), Reason> {
        let deadline = Moment::now() + self.deadline;
        let late = |_| Reason::Late {
            waited: self.deadline,
            trouble: String::new(),
        };
        let flight = (request.chain.clone(), request.parent.clone());
        let _flight = timeout_at(deadline, self.flights.enter(flight))
            .await
            .map_err(late)?;
        let there = blocking(store, {
            let (chain, parent) = (request.chain.clone(), request.parent.clone());
            move |store| Ok((store.completing(&chain, &parent)?, store.parents(&parent)?))
        });
        let (there, parents) = there.await?;
        self.no_lies(&parents)?;
        let mut there = self.without_lies(store, there).await?;
        let below = parents.first();
        for (_, record) in &there {
            self.belonging(record, &request.chain, below)?;
        }
        if !there.is_empty() && there.iter().all(|(_, record)| self.trusted(record)) {
            return Ok(());
        }
        let located = timeout_at(deadline, locate::locate(&self.lookup, request)).await;
        let located = located.map_err(late).flatten();
        if !there.is_empty() {
            let named = located.as_ref().ok().map(|wanted| wanted.index.digest);
            let same = |record: &Record| named.is_some() && record.layer() == named;
            let shared = |(_, record): &(_, Record)| self.trusted(record) || same(record);
            if there.iter().all(shared) {
                return Ok(());
            }
            let records = there.iter().map(|(_, record)| record);
            self.contest(records, deadline).await;
            there = self.without_lies(store, there).await?;
        }
        if there.iter().any(|(_, record)| !self.trusted(record)) {
            return Err(located.err().unwrap_or(Reason::Contested));
        }
        if !there.is_empty() {
            return Ok(());
        }
        let wanted = located?;
        let image = request.labels.get(locate::IMAGE_REF);
        let image = image.map(String::as_str).unwrap_or_default();
        self.begin_siblings(&wanted, &request.labels);
        let _gate = timeout_at(deadline, self.gate.read()).await.map_err(late)?;
        failpoint("lazy: nothing added");
        let adding = tokio::spawn({
            let (plane, wanted) = (Arc::clone(&self.plane), wanted.clone());
            async move { plane.add(&wanted).await }
        });
        let added = timeout_at(deadline, adding).await;
        let added = added.map_err(|_| Reason::Late {
            waited: self.deadline,
            trouble: self.trouble(&wanted),
        })?;
        added.map_err(|_| Reason::Interrupted)??;
        failpoint("lazy: added");
        self.profiles.layer_added(&wanted, image);
        self.establish(store, request, &wanted).await
    }

    /// What stands in the way of adding a layer, as far as its sources know.
    fn trouble(&self, wanted: &Wanted) -> String {
        let trouble = self.plane.trouble(&wanted.index.digest);
        trouble
            .map(|trouble| format!(": {trouble}"))
            .unwrap_or_default()
    }

    /// Whether a snapshot that is there is of `chain`, as far as its index says. Checked whenever it
    /// might be shared: a record may be older than this check, and labels can be changed.
    fn belonging(&self, there: &Record, chain: &str, below: Option<&Record>) -> Result<(), Reason> {
        // containerd checked what it unpacked itself. A layer whose index is not here now is
        // checked when that comes back.
        let diff_id = there.layer().and_then(|index| self.plane.diff_id(&index));
        diff_id.map_or(Ok(()), |diff_id| belongs(chain, below, &diff_id))
    }

    /// Mounts an added layer and records it.
    async fn establish(
        &self,
        store: &Arc<Store>,
        request: &LayerRequest,
        wanted: &Wanted,
    ) -> Result<(), Reason> {
        let index = wanted.index.digest;
        let (chain, parent) = (request.chain.clone(), request.parent.clone());
        let plane = Arc::clone(&self.plane);
        let (id, implied) = spawn(store, move |store| {
            let below = store.parents(&parent)?;
            let diff_id = plane.diff_id(&index);
            let diff_id =
                diff_id.ok_or_else(|| PlaneError::Failed("the store lost its index".into()))?;
            belongs(&chain, below.first(), &diff_id)?;
            let parents = parents(store, below)?;
            let implied = implied::implied(plane.as_ref(), &plane.implied(&index), &parents);
            Ok((store.reserve()?, implied.map_err(Reason::Parents)?))
        })
        .await?;
        let target = store.fs(id);
        let mounted = self.plane.mount(&index, &target, &implied).await;
        failpoint("lazy: mounted");
        let recorded = match mounted {
            Ok(()) => self.record(store, request, wanted, id, implied).await,
            Err(error) => Err(error.into()),
        };
        if let Err(reason) = recorded {
            drop(self.plane.unmount(&target).await);
            let is_certain = !matches!(&reason, Reason::Store(error) if !error.is_certain());
            if is_certain {
                drop(store.directories().delete(id));
            }
            return Err(reason);
        }
        Ok(())
    }

    async fn record(
        &self,
        store: &Arc<Store>,
        request: &LayerRequest,
        wanted: &Wanted,
        id: u64,
        implied: Vec<crate::store::ImpliedEntry>,
    ) -> Result<(), Reason> {
        let root = self.plane.node(&wanted.index.digest, b"");
        let content = Content::Layer {
            index: wanted.index.digest.to_string(),
            owner: root.map_or(Owner::ROOT, |root| root.owner),
        };
        let facts = LayerFacts {
            blob: wanted.blob.to_string(),
            location: wanted.index.to_string(),
            origins: wanted.origins.clone(),
            namespace: request.namespace.clone(),
            implied,
        };
        let LayerRequest {
            namespace,
            chain,
            parent,
            labels,
        } = request.clone();
        // Not the chain alone: the same chain may be needed on two parents, and a clash of names
        // would make containerd look for a snapshot that is not there.
        let name = format!("{namespace}/{id}/lazy {chain}");
        blocking(store, move |store| {
            store.adopt(id, &name, &parent, labels, content, &facts)
        })
        .await?;
        Ok(())
    }
}

/// The layers below a new one, topmost first, with what their directories look like.
fn parents(store: &Store, below: Vec<Record>) -> Result<Vec<Parent>, StoreError> {
    let mut parents = Vec::new();
    for record in below {
        parents.push(match record.layer() {
            None => Parent::Directory(store.fs(record.id)),
            Some(index) => {
                let facts = store.layer_facts(record.id)?;
                let implied = facts.map(|facts| facts.implied).unwrap_or_default();
                Parent::Layer { index, implied }
            }
        });
    }
    Ok(parents)
}

async fn blocking<T: Send + 'static>(
    store: &Arc<Store>,
    call: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Reason> {
    spawn(store, move |store| Ok(call(store)?)).await
}

async fn spawn<T: Send + 'static>(
    store: &Arc<Store>,
    call: impl FnOnce(&Store) -> Result<T, Reason> + Send + 'static,
) -> Result<T, Reason> {
    let store = Arc::clone(store);
    let called = tokio::task::spawn_blocking(move || call(&store)).await;
    called.map_err(|_| Reason::Interrupted)?
}

#[cfg(test)]
pub(crate) mod tests;
