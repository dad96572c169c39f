//! The link to one host: what it carries, and how much may be on its way for nobody who waits.
//!
//! Readers ask at once. Everything else asks only while less than about one bandwidth-delay product is on
//! its way for nobody: that keeps the link busy, and a reader who comes meanwhile waits for no more than
//! that. Both factors are measured on the requests themselves.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::Notify;

use super::Priority;
use super::gauge::Gauge;
use crate::sync::time::Instant;
use crate::sync::{Mutex, MutexGuard};

/// Hosts whose links are known: more registries and peers than a node talks to in a day. Of one that is
/// forgotten, the figures are measured anew.
const LINKS_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// The links of a node, by host.
#[derive(Debug)]
pub(crate) struct Lanes(Mutex<LruCache<String, Arc<Lane>>>);

impl Lanes {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(LruCache::new(LINKS_MAX)))
    }

    /// The link to `host`.
    pub(crate) fn to(&self, host: &str) -> Arc<Lane> {
        let mut lanes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lane) = lanes.get(host) {
            return lane.clone();
        }
        let lane = Arc::new(Lane::default());
        lanes.put(host.to_owned(), lane.clone());
        lane
    }
}

/// One link.
#[derive(Debug, Default)]
pub(crate) struct Lane(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    gauge: Gauge,
    /// Bytes that were asked for, did not come yet, and are for nobody.
    unawaited: u64,
    /// Who waits to ask, the first in turn first.
    waiting: BTreeMap<Turn, Arc<Notify>>,
    turns: u64,
}

/// The more urgent, then the longer waiting.
type Turn = (Priority, u64);

impl Lane {
    /// Bytes that are on their way when the link is just busy: bandwidth by round trip, measured.
    pub(crate) fn product(&self) -> u64 {
        self.lock().gauge.product()
    }

    /// What keeps the link busy for a round trip, bytes, once that was measured.
    pub(super) fn measured_product(&self) -> Option<u64> {
        self.lock().gauge.measured_product()
    }

    /// Bytes of one request for what a start is known to read.
    pub(super) fn start_part(&self) -> u64 {
        self.lock().gauge.start_part()
    }

    /// Notes that `bytes` are asked for now, by somebody who waits.
    pub(super) fn ask(self: &Arc<Self>) -> Asked {
        self.asked(0)
    }

    /// Waits until `bytes` may be asked for, for nobody who waits.
    pub(super) async fn admit(self: &Arc<Self>, priority: Priority, bytes: u64) -> Asked {
        let mut place = Place::new(self, priority);
        while !place.enter(bytes) {
            place.called.notified().await;
        }
        self.asked(bytes)
    }

    fn asked(self: &Arc<Self>, unawaited: u64) -> Asked {
        self.lock().gauge.begin();
        Asked {
            lane: self.clone(),
            at: Instant::now(),
            watch: Mutex::new(Watch { came: 0, unawaited }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Calls whoever is next, if there is room.
    fn call(&self) {
        if let Some(((priority, _), next)) = self.waiting.first_key_value()
            && self.has_room(*priority)
        {
            next.notify_one();
        }
    }

    /// A start is slower for each moment in which the link rests; nothing else is.
    fn has_room(&self, priority: Priority) -> bool {
        let most = match priority {
            Priority::Demand | Priority::Profile => self.gauge.start_product(),
            Priority::Readahead | Priority::Background => self.gauge.product(),
        };
        self.unawaited < most
    }
}

/// A place among those who wait. Dropping it gives the place up.
struct Place<'a> {
    lane: &'a Lane,
    turn: Turn,
    called: Arc<Notify>,
}

impl<'a> Place<'a> {
    fn new(lane: &'a Lane, priority: Priority) -> Self {
        let called = Arc::new(Notify::new());
        let mut state = lane.lock();
        state.turns += 1;
        let turn = (priority, state.turns);
        state.waiting.insert(turn, called.clone());
        drop(state);
        Self { lane, turn, called }
    }

    /// Takes `bytes` of the room if it is one's turn and there is some: one request may go beyond, or large
    /// ones would never go.
    fn enter(&mut self, bytes: u64) -> bool {
        let mut state = self.lane.lock();
        let is_next = state.waiting.keys().next() == Some(&self.turn);
        let enters = is_next && state.has_room(self.turn.0);
        if enters {
            state.unawaited += bytes;
        }
        enters
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.lane.lock();
        state.waiting.remove(&self.turn);
        state.call();
    }
}

/// A request on its way, until this is dropped.
#[derive(Debug)]
pub(super) struct Asked {
    lane: Arc<Lane>,
    at: Instant,
    watch: Mutex<Watch>,
}

#[derive(Debug)]
struct Watch {
    came: u64,
    /// What is on its way for nobody.
    unawaited: u64,
}

impl Asked {
    /// Notes that `so_far` bytes have come of it. Who asks again for bytes that came counts them again.
    pub(super) fn arrived(&self, so_far: u64) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = so_far.saturating_sub(watch.came);
        let is_first = watch.came == 0 && bytes > 0;
        watch.came = so_far;
        let freed = watch.unawaited.min(bytes);
        watch.unawaited -= freed;
        let mut state = self.lane.lock();
        if is_first {
            state.gauge.answered(self.at.elapsed());
        }
        state.gauge.arrived(bytes);
        state.unawaited = state.unawaited.saturating_sub(freed);
        state.call();
    }

    /// For how long it has been on its way.
    pub(super) fn elapsed(&self) -> Duration {
        self.at.elapsed()
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lane.lock();
        state.gauge.end();
        state.unawaited = state.unawaited.saturating_sub(watch.unawaited);
        state.call();
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
