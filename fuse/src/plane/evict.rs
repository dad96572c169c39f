//! Making room: layers nobody uses first, then chunks nobody read lately.
//!
//! A layer that is not mounted, and of which the kernel has nothing open, loses all its bytes at
//! once, the one that was used longest ago first. In layers that are mounted a hand goes round, in
//! the same order of layers: it takes chunks that were not read since it last came by. It waits a
//! second between two rounds, so that whoever waited for a chunk has it long before.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tracing::{debug, warn};

use super::Plane;
use super::mounts::slots;
use super::retired::RemovedLayer;
use crate::layer::Layer;
use crate::store::{LayerStoreError, Room, StoredLayer};

/// Pause between two rounds. Also the longest time that a store full of unread chunks stays full:
/// twice this, well below the five seconds within which caching resumes.
const ROUND_EVERY: Duration = Duration::from_secs(1);

/// Rounds for a layer that is waited for: the hand passes what was read since the last one, and then takes
/// it, too.
const ROUNDS: usize = 2;

/// Keeps room in the store until the plane is gone.
pub(super) async fn keep_room(plane: Weak<Plane>) {
    while let Some(ledger) = ledger(&plane) {
        ledger.pressed().await;
        drop(ledger);
        let Some(plane) = plane.upgrade() else { return };
        // A thread of its own would be idle nearly always.
        let _ = tokio::task::spawn_blocking(move || plane.make_room(0)).await;
        tokio::time::sleep(ROUND_EVERY).await;
    }
}

fn ledger(plane: &Weak<Plane>) -> Option<Arc<crate::store::Ledger>> {
    Some(plane.upgrade()?.store.rules().ledger.clone())
}

impl Plane {
    /// Takes room for `bytes` of a new layer's index and metadata, after evicting what may be evicted if there
    /// is none.
    pub(super) fn room_for(&self, bytes: u64) -> Result<Room<'_>, LayerStoreError> {
        let rules = self.store.rules();
        let mut rounds = 0;
        loop {
            let lacking = match rules.room_for(bytes) {
                Err(LayerStoreError::DiskFull { lacking, .. }) if rounds < ROUNDS => lacking,
                Err(LayerStoreError::LimitReached { .. }) if rounds < ROUNDS => 0,
                answer => return answer,
            };
            rounds += 1;
            self.make_room(lacking);
        }
    }

    /// One round; `lacking` bytes are needed on the disk besides.
    fn make_room(&self, lacking: u64) {
        let rules = self.store.rules();
        let (excess, shortage) = (rules.ledger.excess(), rules.floor.shortage());
        let mut layers: Vec<_> = self.lock_layers().values().cloned().collect();
        layers.retain(|layer| !self.store.pins().has(&layer.id().0));
        layers.sort_by_key(|layer| layer.stored().last_used());
        // Somebody else fills the disk: all that could be evicted would not bring caching back.
        let removed = self.removed();
        let evictable: u64 = layers.iter().map(|layer| self.evictable(layer)).sum();
        let evictable = evictable + removed.iter().map(RemovedLayer::evictable).sum::<u64>();
        let helps = |bytes: u64| if bytes <= evictable { bytes } else { 0 };
        let wanted = excess.max(helps(shortage)).max(helps(lacking));
        if wanted == 0 {
            rules.ledger.set_stuck(false);
            return;
        }
        let mut freed = 0;
        for layer in &layers {
            if freed < wanted {
                freed += self.evict_unused(layer);
            }
        }
        let read = removed.iter().map(RemovedLayer::stored);
        for stored in read.chain(layers.iter().map(Layer::stored)) {
            if freed < wanted {
                freed += evict_cold(stored, wanted - freed);
            }
        }
        debug!(wanted, freed, "made room in the store");
        rules.ledger.set_stuck(excess > 0 && excess > evictable);
        if freed < wanted && wanted <= evictable {
            // What was passed in this round is taken in the next one, unless it is read.
            rules.ledger.press();
        }
    }

    /// Bytes of a layer that is not pinned which could be evicted, at once or when they are cold.
    pub(super) fn evictable(&self, layer: &Layer) -> u64 {
        let stored = layer.stored();
        let is_fixed =
            stored.is_direct() && (self.lock_mounts().has(&layer.id()) || stored.is_held());
        if is_fixed {
            return 0;
        }
        stored.on_disk().device
    }

    /// Whether the layer is mounted, or the kernel has anything of it open.
    pub(crate) fn is_used(&self, layer: &Layer) -> bool {
        self.lock_mounts().has(&layer.id())
            || slots(layer).iter().any(|slot| self.slots.in_use(*slot))
    }

    /// Takes all bytes of a layer that nobody uses; how many that freed.
    fn evict_unused(&self, layer: &Layer) -> u64 {
        let bytes = layer.stored().on_disk().device;
        if bytes == 0 {
            return 0;
        }
        // Held while the file is replaced, so that nobody mounts what is being taken away.
        let mounts = self.lock_mounts();
        let is_used = mounts.has(&layer.id())
            || slots(layer).iter().any(|slot| self.slots.in_use(*slot))
            // An empty file in its place would free nothing: the kernel keeps the old one.
            || layer.stored().is_held();
        if is_used {
            return 0;
        }
        let old = layer.stored().evict_all();
        drop(mounts);
        match old {
            Ok(old) => {
                drop(old);
                debug!(layer = %layer.blob(), bytes, "evicted a layer nobody uses");
                bytes.saturating_sub(layer.stored().on_disk().device)
            }
            Err(error) => {
                warn!(layer = %layer.blob(), %error, "cannot evict a layer");
                0
            }
        }
    }
}

fn evict_cold(layer: &StoredLayer, bytes: u64) -> u64 {
    layer.evict_cold(bytes).unwrap_or_else(|error| {
        warn!(layer = %layer.record().blob, %error, "cannot evict chunks");
        0
    })
}
