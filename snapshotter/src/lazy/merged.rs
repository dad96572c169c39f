//! Chains of many layers, mounted as one.
//!
//! overlayfs looks into every layer for every directory, and keeps what it finds in each. A chain of many layers
//! is merged into one image instead, beside the requests: whoever comes before it is ready gets the stack, which
//! shows the same.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use larder_proto::digest::Digest;

use super::{LayerRequest, Lazy, Reason, blocking};
use crate::config::MountPlan;
use crate::plane::ChainLayer;
use crate::store::{Record, Store};

/// From so many layers on a chain is merged. A cold `find` takes 1.1 times as long through a stack of 2, 1.4 of 8,
/// twice of 16, 7 times of 52; and layers in a stack share their pages among all images that have them
/// (`docs/adr/0016-merged-metadata.md`).
const LAYERS_MIN: usize = 16;

/// What can be merged at all.
const LAYERS_LEAST: usize = 2;

/// How long a chain that could not be merged stays a stack before that is tried again: a full disk may have room
/// then, an image that is too large costs a log line.
const REFUSED_FOR: Duration = Duration::from_mins(10);

/// containerd's CRI plugin names the layers from this one up; the topmost is alone.
const LAYERS_FROM_HERE: &str = "containerd.io/snapshot/cri.image-layers";

/// The chains of this node that are merged, or are to be.
#[derive(Debug)]
pub(super) struct Merges {
    /// The fewest layers; `None` where nothing is merged.
    layers_min: Option<usize>,
    /// By the number of the topmost snapshot.
    chains: std::sync::Mutex<HashMap<u64, Merge>>,
    /// Held while a chain is merged and while one is let go, so that nobody is given what is about to go.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Merge {
    snapshots: Vec<u64>,
    layers: Vec<Digest>,
    /// Where it is mounted when it is ready; known once it was begun.
    place: Option<PathBuf>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Making,
    Ready,
    Refused(Instant),
}

impl Merges {
    pub(super) fn new(plan: MountPlan) -> Self {
        let layers_min = match plan {
            MountPlan::Auto => Some(LAYERS_MIN),
            MountPlan::Merged => Some(LAYERS_LEAST),
            MountPlan::Stack => None,
        };
        Self {
            layers_min,
            chains: std::sync::Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Merge>> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a chain of snapshots, the topmost first, is to be merged: all of it lazily loaded, and long.
    fn wants(&self, parents: &[Record]) -> bool {
        let Some(min) = self.layers_min else {
            return false;
        };
        let layers: Option<HashSet<Digest>> = parents.iter().map(Record::layer).collect();
        layers.is_some_and(|layers| layers.len() >= min)
    }

    /// Notes that the chain is about to be merged; false if there is nothing to do.
    fn begin(&self, parents: &[Record]) -> bool {
        let Some(top) = parents.first() else {
            return false;
        };
        let mut chains = self.lock();
        let is_settled = chains.get(&top.id).is_some_and(|merge| match merge.state {
            State::Making | State::Ready => true,
            State::Refused(since) => since.elapsed() < REFUSED_FOR,
        });
        if is_settled {
            return false;
        }
        let merge = Merge {
            snapshots: parents.iter().map(|record| record.id).collect(),
            layers: parents.iter().filter_map(Record::layer).collect(),
            place: None,
            state: State::Making,
        };
        chains.insert(top.id, merge);
        true
    }
}

impl Lazy {
    /// Where the chain of snapshots, the topmost first, is mounted as one.
    pub(crate) fn merged(&self, parents: &[Record]) -> Option<PathBuf> {
        let chains = self.merges.lock();
        let merge = chains.get(&parents.first()?.id)?;
        let place = merge.place.clone();
        place.filter(|_| merge.state == State::Ready)
    }

    /// Merges the chain of snapshots, the topmost first, if it is to be and is not. Returns at once.
    pub(crate) fn merge_soon(self: &Arc<Self>, store: &Arc<Store>, parents: &[Record]) {
        if !self.merges.wants(parents) || !self.merges.begin(parents) {
            return;
        }
        let (lazy, store, parents) = (Arc::clone(self), Arc::clone(store), parents.to_vec());
        tokio::spawn(async move {
            let _turn = lazy.merges.turn.lock().await;
            lazy.merge(&store, &parents).await;
        });
    }

    /// Does it for a layer that is there now, if the request says that it is an image's topmost.
    pub(super) async fn merge_topmost(
        self: &Arc<Self>,
        store: &Arc<Store>,
        request: &LayerRequest,
    ) {
        let above = request.labels.get(LAYERS_FROM_HERE);
        let is_topmost = above.is_some_and(|layers| !layers.contains(','));
        if !is_topmost || self.merges.layers_min.is_none() {
            return;
        }
        let (chain, parent) = (request.chain.clone(), request.parent.clone());
        let parents = blocking(store, move |store| {
            let found = store.completing(&chain, &parent)?.into_iter().next();
            found.map_or(Ok(Vec::new()), |(name, _)| store.parents(&name))
        });
        // Without them, the first container has it merged.
        if let Ok(parents) = parents.await {
            self.merge_soon(store, &parents);
        }
    }

    /// Merges a chain that was begun. The caller has the turn.
    async fn merge(&self, store: &Arc<Store>, parents: &[Record]) {
        let Some(top) = parents.first().map(|record| record.id) else {
            return;
        };
        let made = self.try_merge(store, top, parents).await;
        if let Err(reason) = &made {
            tracing::info!(snapshot = top, %reason, "the layers of an image stay a stack");
        }
        let state = made.map_or_else(|_| State::Refused(Instant::now()), |()| State::Ready);
        if let Some(merge) = self.merges.lock().get_mut(&top) {
            merge.state = state;
        }
    }

    async fn try_merge(
        &self,
        store: &Arc<Store>,
        top: u64,
        parents: &[Record],
    ) -> Result<(), Reason> {
        let records = parents.to_vec();
        let chain = blocking(store, move |store| chain(store, &records)).await?;
        let place = self.plane.merged_place(&chain);
        {
            let mut chains = self.merges.lock();
            // It may have been let go since it was begun.
            let Some(merge) = chains.get_mut(&top) else {
                return Ok(());
            };
            merge.place = place;
        }
        self.no_lies(parents)?;
        self.plane.merge(chain).await?;
        Ok(())
    }

    /// Lets go the merged chains that snapshot `id` is part of.
    pub(super) async fn let_merged_go(&self, id: u64) -> Result<(), Reason> {
        let is_part = |merge: &Merge| merge.snapshots.contains(&id);
        self.let_go(is_part).await
    }

    /// Lets go the merged chains that have a layer that lied. Containers that run go on.
    pub(super) async fn let_lies_go(&self) -> Result<(), Reason> {
        let lies = |layer: &Digest| {
            let progress = self.plane.progress(layer);
            progress.is_some_and(|progress| progress.quarantined.is_some())
        };
        self.let_go(|merge| merge.layers.iter().any(lies)).await
    }

    async fn let_go(&self, is_to_go: impl Fn(&Merge) -> bool) -> Result<(), Reason> {
        if self.merges.lock().is_empty() {
            return Ok(());
        }
        let _turn = self.merges.turn.lock().await;
        let (going, staying): (Vec<_>, Vec<_>) = {
            let chains = self.merges.lock();
            let places = chains.iter();
            places
                .map(|(top, merge)| (*top, merge.place.clone(), is_to_go(merge)))
                .partition(|(_, _, goes)| *goes)
        };
        for (top, place, _) in going {
            // The same layers in another namespace are the same image.
            let shared = staying.iter().any(|(_, other, _)| *other == place);
            if let Some(place) = place.filter(|_| !shared) {
                self.plane.drop_merged(&place).await?;
            }
            self.merges.lock().remove(&top);
        }
        Ok(())
    }

    /// Takes up the merged chains that a daemon before left, and lets go what no snapshot needs.
    pub(super) fn take_up_merged(self: &Arc<Self>, store: &Arc<Store>) {
        if self.plane.merged_places().is_empty() {
            return;
        }
        let (lazy, store) = (Arc::clone(self), Arc::clone(store));
        tokio::spawn(async move {
            if let Err(error) = lazy.take_up(&store).await {
                tracing::warn!(%error, "cannot look which layers were mounted as one");
            }
        });
    }

    async fn take_up(&self, store: &Arc<Store>) -> Result<(), Reason> {
        let _turn = self.merges.turn.lock().await;
        let places: HashSet<PathBuf> = self.plane.merged_places().into_iter().collect();
        let known = blocking(store, |store| {
            let layers = store.layers()?.into_iter();
            let parents = layers.map(|(name, _)| store.parents(&name));
            parents.collect::<Result<Vec<_>, _>>()
        });
        for parents in known.await?.iter().filter(|one| self.merges.wants(one)) {
            let records = parents.clone();
            let chain = blocking(store, move |store| chain(store, &records)).await?;
            let place = self.plane.merged_place(&chain);
            let was_there = place.is_some_and(|place| places.contains(&place));
            if was_there && self.merges.begin(parents) {
                self.merge(store, parents).await;
            }
        }
        let wanted: HashSet<PathBuf> = {
            let chains = self.merges.lock();
            let places = chains.values().map(|merge| merge.place.clone());
            places.flatten().collect()
        };
        for place in places.difference(&wanted) {
            self.plane.drop_merged(place).await?;
        }
        Ok(())
    }
}

/// The layers of `parents`, the lowest first. One that repeats keeps only its topmost place, as in a stack.
fn chain(store: &Store, parents: &[Record]) -> Result<Vec<ChainLayer>, crate::store::StoreError> {
    let mut seen = HashSet::new();
    let mut chain = Vec::new();
    for record in parents {
        let Some(index) = record.layer().filter(|index| seen.insert(*index)) else {
            continue;
        };
        let facts = store.layer_facts(record.id)?;
        let implied = facts.map(|facts| facts.implied).unwrap_or_default();
        chain.push(ChainLayer { index, implied });
    }
    chain.reverse();
    Ok(chain)
}
