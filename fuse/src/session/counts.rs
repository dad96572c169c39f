//! What the kernel holds of each slot, counted in memory that outlives the daemon.
//!
//! A daemon may be killed between a count and the reply it belongs to. Counts go up before the reply
//! and down after it, so they can be too high, by one for such a kill, and never too low.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sys::SharedNumbers;

/// Numbers of a slot: OPENs without their RELEASE, lookups without their FORGET.
const PER_SLOT: usize = 2;

/// Numbers of all slots there can be, each at the place its number gives. Of these 64 GiB only pages
/// of slots that were used take memory: 256 slots share one.
const NUMBERS: usize = PER_SLOT << 32;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// Open files.
    Opens = 0,
    /// Files the kernel knows by their number.
    Lookups = 1,
}

/// The counts of all slots.
#[derive(Debug)]
pub(crate) struct Counts(SharedNumbers);

impl Counts {
    /// All zero, for new sessions.
    pub(crate) fn new() -> io::Result<Self> {
        SharedNumbers::new("larder-counts", NUMBERS).map(Self)
    }

    /// Those of a daemon before.
    pub(crate) fn of(memory: OwnedFd) -> io::Result<Self> {
        SharedNumbers::of(File::from(memory), NUMBERS).map(Self)
    }

    /// Adds to a count; what is there afterwards.
    pub(super) fn up(&self, slot: u32, count: Count, by: u64) -> u64 {
        let before = self.number(slot, count).fetch_add(by, Ordering::AcqRel);
        before.saturating_add(by)
    }

    /// Takes from a count, at most what is there.
    pub(super) fn down(&self, slot: u32, count: Count, by: u64) {
        let less = |now: u64| Some(now.saturating_sub(by));
        let number = self.number(slot, count);
        let _ = number.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    }

    /// Whether the kernel has a file of the slot open or knows one.
    pub(super) fn in_use(&self, slot: u32) -> bool {
        [Count::Opens, Count::Lookups]
            .iter()
            .any(|&count| self.number(slot, count).load(Ordering::Acquire) > 0)
    }

    fn number(&self, slot: u32, count: Count) -> &AtomicU64 {
        &self.0.numbers()[slot as usize * PER_SLOT + count as usize]
    }
}

impl AsFd for Counts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: who takes over knows what is in use; a count that was too high ends at 0 all the same.
    #[test]
    fn counts_outlive_whoever_counted() {
        let first = Counts::new().unwrap();
        for slot in [0, 7, u32::MAX] {
            assert!(!first.in_use(slot));
            first.up(slot, Count::Opens, 1);
            first.up(slot, Count::Lookups, 3);
        }
        let memory = first.as_fd().try_clone_to_owned().unwrap();
        drop(first);
        let second = Counts::of(memory).unwrap();
        for slot in [0, 7, u32::MAX] {
            second.down(slot, Count::Opens, 1);
            assert!(second.in_use(slot));
            second.down(slot, Count::Lookups, 9);
            assert!(!second.in_use(slot));
        }
        assert!(!second.in_use(8));
    }
}
