//! Layers that no snapshot has: freed, unless somebody wants them kept.
//!
//! With its last snapshot a layer goes at once. What was kept then goes as soon as nothing keeps it any more: its last
//! pin is taken away, or a daemon starts without `keep_removed`. Only a layer that came a moment ago is waited for.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use larder_proto::digest::Digest;

use super::{Lazy, Reason, blocking};
use crate::store::Store;

/// How long a layer may be without snapshot after its index came: a pull that fell back because of a slow registry
/// may be repeated, and then finds its index here.
const UNUSED_GRACE: Duration = Duration::from_mins(10);

/// What keeps a layer that no snapshot has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is pinned.
    Pinned,
    /// Removed layers are kept, and this one has bytes that were not evicted yet.
    Removed,
    /// Nothing: it is being freed, or came a moment ago.
    Passing,
}

impl Lazy {
    /// What keeps a layer, if no snapshot has it.
    pub(crate) fn kept(&self, layer: &Digest) -> Kept {
        let progress = self.plane.progress(layer).unwrap_or_default();
        if !progress.pins.is_empty() {
            Kept::Pinned
        } else if self.keep_removed && progress.data_on_disk > 0 {
            Kept::Removed
        } else {
            Kept::Passing
        }
    }

    /// Frees layers that no snapshot has and nothing keeps.
    pub(crate) async fn sweep(&self, store: &Arc<Store>) -> Result<(), Reason> {
        self.let_lies_go().await?;
        let used = used(store).await?;
        let mut idle = self.plane.layers();
        idle.retain(|layer| !used.contains(layer));
        let now = Instant::now();
        let overdue: Vec<Digest> = {
            let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
            unused.retain(|layer, _| idle.contains(layer));
            // What a daemon before left has had its time. The age is of the clock on the wall: where that jumps, an index
            // is fetched once more, or goes some minutes later.
            let grace = |layer: &Digest| UNUSED_GRACE.saturating_sub(self.plane.age(layer));
            idle.retain(|layer| *unused.entry(*layer).or_insert_with(|| now + grace(layer)) <= now);
            idle
        };
        self.free(store, &overdue).await.map(drop)
    }

    /// The pins of `layers` were taken away: frees those that nothing else keeps, and says how many. What cannot go
    /// now is left to the sweep.
    pub(crate) async fn unpinned(
        &self,
        store: &Arc<Store>,
        layers: &[Digest],
    ) -> Result<usize, Reason> {
        let now = Instant::now();
        {
            let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
            unused.extend(layers.iter().map(|layer| (*layer, now)));
        }
        self.free(store, layers).await
    }

    /// Frees those of `layers` that no snapshot has and nothing keeps; how many. While a layer is being added,
    /// nothing is freed: the sweep comes back to it. One that cannot be freed is no reason to keep the others.
    pub(super) async fn free(
        &self,
        store: &Arc<Store>,
        layers: &[Digest],
    ) -> Result<usize, Reason> {
        let Ok(_gate) = self.gate.try_write() else {
            return Ok(0);
        };
        let used = used(store).await?;
        let (mut freed, mut stays) = (0, None);
        for layer in layers.iter().filter(|layer| !used.contains(*layer)) {
            if self.kept(layer) != Kept::Passing {
                continue;
            }
            let was_there = self.plane.progress(layer).is_some();
            match self.plane.remove(layer).await {
                Ok(()) => {
                    self.profiles.freed(layer);
                    freed += usize::from(was_there);
                }
                Err(error) => stays = Some(error),
            }
        }
        stays.map_or(Ok(freed), |error| Err(error.into()))
    }
}

async fn used(store: &Arc<Store>) -> Result<HashSet<Digest>, Reason> {
    let layers = blocking(store, Store::layers).await?;
    Ok(layers
        .iter()
        .filter_map(|(_, record)| record.layer())
        .collect())
}
