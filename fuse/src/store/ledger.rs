//! What the store takes on the disk, against what it may take.
//!
//! Room is reserved before a chunk is written, so the limit holds at every moment; who finds no
//! room serves the chunk without keeping it. Well before that, whoever evicts is woken.

use std::sync::PoisonError;
use std::time::SystemTime;

use tokio::sync::Notify;
use tracing::{info, warn};

use super::floor::CachingStopped;
use crate::sync::{Mutex, MutexGuard};

/// Eviction begins above this share of the limit, percent: what is left takes a burst of chunks
/// meanwhile, 5 GB of 100.
const HIGH_PERCENT: u64 = 95;

/// Eviction ends at this share, so that it is not called for every chunk.
const LOW_PERCENT: u64 = 90;

/// A chunk may take this much more than its length, bytes: the blocks at both ends that it shares
/// with its neighbours, and those in which a file system notes where a file's blocks are.
const BESIDE: u64 = 16 << 10;

/// The account of a store.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Bytes the store may take; `u64::MAX` for no limit.
    max: u64,
    account: Mutex<Account>,
    /// Wakes who evicts.
    pressed: Notify,
}

#[derive(Debug, Default)]
struct Account {
    used: u64,
    reserved: u64,
    /// The most that somebody found no room for since it was last looked for.
    refused: u64,
    stuck: Option<SystemTime>,
}

/// Room for a chunk that is being written.
#[derive(Debug)]
pub(crate) struct Reserved<'a> {
    ledger: &'a Ledger,
    bytes: u64,
}

impl Ledger {
    /// An empty account; 0 is no limit.
    pub(crate) fn new(max: u64) -> Self {
        Self {
            max: if max == 0 { u64::MAX } else { max },
            account: Mutex::default(),
            pressed: Notify::new(),
        }
    }

    /// The limit, bytes, if there is one.
    pub(crate) fn limit(&self) -> Option<u64> {
        (self.max != u64::MAX).then_some(self.max)
    }

    /// Takes room for `len` bytes of a chunk. What nobody waits for takes none that others would
    /// have to be evicted for.
    pub(crate) fn reserve(&self, len: u64, is_awaited: bool) -> Option<Reserved<'_>> {
        let bytes = len + BESIDE;
        let bound = if is_awaited { self.max } else { self.high() };
        let mut account = self.lock();
        let taken = account.used + account.reserved + bytes;
        if is_awaited && taken > self.high() {
            self.press();
        }
        if taken > bound {
            if is_awaited && bytes <= percent(self.max, LOW_PERCENT) {
                account.refused = account.refused.max(bytes);
            }
            return None;
        }
        account.reserved += bytes;
        let ledger = self;
        Some(Reserved { ledger, bytes })
    }

    /// Files that took `before` bytes take `after` now.
    pub(crate) fn changed(&self, before: u64, after: u64) {
        let mut account = self.lock();
        account.used = (account.used + after).saturating_sub(before);
        let taken = account.used + account.reserved;
        if account.stuck.is_some() && taken <= percent(self.max, LOW_PERCENT) {
            account.stuck = None;
            info!("the store caches again");
        }
    }

    /// Bytes to be freed so that there is room again; 0 while there is.
    pub(crate) fn excess(&self) -> u64 {
        let mut account = self.lock();
        let refused = std::mem::take(&mut account.refused);
        let wanted = account.used + account.reserved + refused;
        if wanted <= self.high() {
            return 0;
        }
        wanted.saturating_sub(percent(self.max, LOW_PERCENT))
    }

    /// Says that somebody found no room.
    pub(crate) fn press(&self) {
        self.pressed.notify_one();
    }

    /// Resolves when room is needed.
    pub(crate) async fn pressed(&self) {
        self.pressed.notified().await;
    }

    /// Notes whether room was needed and none could be made.
    pub(crate) fn set_stuck(&self, is_stuck: bool) {
        let mut account = self.lock();
        match (is_stuck, account.stuck) {
            (true, None) => {
                account.stuck = Some(SystemTime::now());
                warn!(
                    why = self.why(),
                    "the store stops caching; reads are served without it"
                );
            }
            (false, Some(_)) => {
                account.stuck = None;
                info!("the store caches again");
            }
            _ => {}
        }
    }

    /// Why nothing is cached now, as far as the limit is the reason.
    pub(crate) fn stopped(&self) -> Option<CachingStopped> {
        let since = self.lock().stuck?;
        let why = self.why();
        Some(CachingStopped { why, since })
    }

    fn why(&self) -> String {
        format!(
            "store_bytes_max ({} bytes) is reached, and everything is pinned or in use: raise it, \
             or unpin or remove images",
            self.max
        )
    }

    fn high(&self) -> u64 {
        percent(self.max, HIGH_PERCENT)
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let mut account = self.ledger.lock();
        account.reserved = account.reserved.saturating_sub(self.bytes);
    }
}

fn percent(of: u64, percent: u64) -> u64 {
    if of == u64::MAX {
        return of;
    }
    of / 100 * percent
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Promise: the limit holds whatever is being written at once, and what nobody waits for
    /// displaces nothing.
    #[test]
    fn room_is_never_given_twice() {
        let ledger = Ledger::new(100 * MIB);
        ledger.changed(0, 94 * MIB);
        assert!(ledger.reserve(MIB, false).is_none());
        assert_eq!(ledger.excess(), 0, "nobody waited");
        let held: Vec<_> = (0..10).map_while(|_| ledger.reserve(MIB, true)).collect();
        assert_eq!(held.len(), 5);
        assert!(ledger.excess() >= 9 * MIB, "down to 90 %");
        drop(held);
        ledger.changed(94 * MIB, 80 * MIB);
        assert_eq!(ledger.excess(), 0);
        assert!(ledger.reserve(MIB, false).is_some());
    }

    /// Promise: a chunk larger than the reserve above the high mark gets its room, too; one that can
    /// never fit displaces nothing.
    #[test]
    fn a_large_chunk_is_made_room_for_if_it_can_fit() {
        let ledger = Ledger::new(100 * MIB);
        ledger.changed(0, 94 * MIB);
        assert!(ledger.reserve(20 * MIB, true).is_none());
        assert!(ledger.excess() >= 24 * MIB);
        assert_eq!(ledger.excess(), 0, "told once");
        assert!(ledger.reserve(99 * MIB, true).is_none());
        assert_eq!(ledger.excess(), 0);
    }

    #[test]
    fn without_a_limit_there_is_always_room() {
        let ledger = Ledger::new(0);
        ledger.changed(0, u64::MAX / 2);
        assert!(ledger.reserve(MIB, true).is_some());
        assert_eq!((ledger.excess(), ledger.limit()), (0, None));
    }

    #[test]
    fn a_store_that_cannot_make_room_says_so_until_it_can() {
        let ledger = Ledger::new(5 * MIB);
        assert_eq!(ledger.stopped(), None);
        ledger.set_stuck(true);
        let told = ledger.stopped().unwrap();
        assert!(
            told.why.contains("store_bytes_max (5242880 bytes)"),
            "{}",
            told.why
        );
        ledger.set_stuck(true);
        assert_eq!(ledger.stopped(), Some(told));
        ledger.set_stuck(false);
        assert_eq!(ledger.stopped(), None);
        ledger.changed(0, 5 * MIB);
        ledger.set_stuck(true);
        ledger.changed(5 * MIB, MIB);
        assert_eq!(ledger.stopped(), None, "an image was removed");
    }
}
