//! Completing in the background what is only believed yet, so that it can be proved.
//!
//! One layer at a time, a part of it, then the next: none waits for another that is larger, or whose
//! source does not deliver. First those whose proof somebody waits for; then, when the node has been
//! quiet, all that are mounted and not proven. `docs/adr/0010-completion.md` says why so.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::Plane;
use crate::config::Completion as Settings;
use crate::layer::{Layer, LayerId, Trust};

/// Bytes of the blob that one layer gets before the next has its turn: half a second of 1 Gbit/s, and
/// few enough turns for the largest.
const TURN_BYTES: u64 = 64 << 20;

/// How often it is looked whether something is to be done.
const LOOK: Duration = Duration::from_secs(1);

/// Rest of a layer whose turn failed: first, and at most. A proof that is waited for is tried again
/// sooner.
const REST: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(5));

/// The same for layers whose proof somebody waits for.
const REST_HURRIED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is to be completed, and how that went so far.
#[derive(Debug)]
pub(crate) struct Completion {
    settings: Settings,
    /// Layers whose proof somebody waits for.
    hurried: Mutex<BTreeSet<LayerId>>,
    wake: Notify,
}

/// How one layer fares in the queue.
#[derive(Debug)]
struct Place {
    seen: Instant,
    /// When it had its last turn; the longest ago is next.
    last: Option<Instant>,
    not_before: Instant,
    rest: Duration,
}

impl Completion {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            hurried: Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// Puts a layer first, whatever the settings say.
    pub(crate) fn hurry(&self, id: LayerId) {
        if self.lock_hurried().insert(id) {
            self.wake.notify_one();
        }
    }

    fn lock_hurried(&self) -> MutexGuard<'_, BTreeSet<LayerId>> {
        self.hurried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            seen: now,
            last: None,
            not_before: now,
            rest: Duration::ZERO,
        }
    }

    fn turned(&mut self, failed: bool, (least, most): (Duration, Duration)) {
        let now = Instant::now();
        self.last = Some(now);
        self.rest = if failed {
            (self.rest * 2).clamp(least, most)
        } else {
            Duration::ZERO
        };
        self.not_before = now + self.rest;
    }
}

/// Runs until the plane ends.
pub(super) async fn complete(plane: Weak<Plane>) {
    let mut places: HashMap<LayerId, Place> = HashMap::new();
    loop {
        let Some(strong) = plane.upgrade() else {
            return;
        };
        let next = strong.next_to_complete(&mut places);
        let completion = strong.completion.clone();
        // Not held while it waits: the plane ends with its last user.
        drop(strong);
        let Some((layer, hurry)) = next else {
            drop(timeout(LOOK, completion.wake.notified()).await);
            continue;
        };
        let turn = layer.complete_some(hurry, TURN_BYTES);
        let turned = if hurry {
            Some(turn.await)
        } else {
            // Somebody began to wait for another layer.
            tokio::select! {
                turned = turn => Some(turned),
                () = completion.wake.notified() => None,
            }
        };
        let Some(turned) = turned else { continue };
        if let Err(reason) = &turned {
            tracing::debug!(index = %layer.id(), reason, "a layer is not completed now");
        }
        if let Some(place) = places.get_mut(&layer.id()) {
            place.turned(turned.is_err(), if hurry { REST_HURRIED } else { REST });
        }
    }
}

impl Plane {
    /// The layer whose turn it is, and whether somebody waits for it.
    fn next_to_complete(&self, places: &mut HashMap<LayerId, Place>) -> Option<(Layer, bool)> {
        let claimed: Vec<Layer> = self
            .lock_layers()
            .values()
            .filter(|layer| layer.trust() == Trust::Claimed)
            .cloned()
            .collect();
        let is_claimed = |id: &LayerId| claimed.iter().any(|layer| layer.id() == *id);
        places.retain(|id, _| is_claimed(id));
        for layer in &claimed {
            places.entry(layer.id()).or_insert_with(Place::new);
        }
        let hurried = {
            let mut hurried = self.completion.lock_hurried();
            hurried.retain(is_claimed);
            hurried.clone()
        };
        // Whatever is fetched would not be kept.
        if self.store.caching_stopped().is_some() {
            return None;
        }
        let now = Instant::now();
        let longest_ago = |candidates: &mut dyn Iterator<Item = &Layer>| {
            let rested = candidates.filter(|layer| {
                let place = places.get(&layer.id());
                place.is_some_and(|place| place.not_before <= now)
            });
            rested
                .min_by_key(|layer| places.get(&layer.id()).and_then(|place| place.last))
                .cloned()
        };
        let waited_for = |layer: &&Layer| hurried.contains(&layer.id());
        if let Some(layer) = longest_ago(&mut claimed.iter().filter(waited_for)) {
            return Some((layer, true));
        }
        let Settings {
            enabled,
            quiet,
            latest,
        } = self.completion.settings;
        if !enabled {
            return None;
        }
        let mounted = self.mounted_layers()?;
        let is_quiet = self.context.pace.quiet() >= quiet;
        let is_due = |layer: &&Layer| {
            let place = places.get(&layer.id());
            let overdue = place.is_some_and(|place| place.seen.elapsed() >= latest);
            mounted.contains(&layer.id()) && (is_quiet || overdue)
        };
        longest_ago(&mut claimed.iter().filter(is_due)).map(|layer| (layer, false))
    }

    /// What is mounted; `None` while somebody mounts, who may need this thread for it.
    fn mounted_layers(&self) -> Option<BTreeSet<LayerId>> {
        let mounts = match self.mounts.try_lock() {
            Ok(mounts) => mounts,
            Err(TryLockError::Poisoned(mounts)) => mounts.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        let mounted = mounts.targets.values().filter_map(|target| target.layer);
        Some(mounted.collect())
    }
}
