//! Where the time of a run went, for reads that were slow.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;

use crate::counts::Delay;

/// Chunks of one layer whose slow arrival is remembered until their readers ask for the reason. As
/// many as one range request brings, by and large; who finds nothing reports less.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Where the time of one run went so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    parts: [Duration; Delay::ALL.len()],
    /// Who was asked last.
    source: Option<String>,
}

impl Spent {
    pub(super) fn on(&mut self, delay: Delay, time: Duration) {
        self.parts[delay as usize] += time;
    }

    pub(super) fn asked(&mut self, source: &str) {
        if self.source.as_deref() != Some(source) {
            self.source = Some(source.to_owned());
        }
    }

    /// What took most of it.
    pub(crate) fn mostly(&self) -> Delay {
        let of = |delay: &Delay| self.parts[*delay as usize];
        let longest = Delay::ALL.into_iter().max_by_key(of);
        longest.unwrap_or(Delay::Queued)
    }

    /// Who was asked last, if anybody was.
    pub(crate) fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    fn total(&self) -> Duration {
        self.parts.iter().sum()
    }
}

/// The slow arrivals of one layer.
#[derive(Debug)]
pub(super) struct SlowArrivals(Mutex<LruCache<usize, Spent>>);

impl SlowArrivals {
    pub(super) fn new() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED)))
    }

    pub(super) fn note(&self, row: usize, spent: Spent) {
        let mut slow = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slow.put(row, spent);
    }

    /// The slowest arrival among `rows`.
    pub(super) fn of(&self, rows: impl Iterator<Item = usize>) -> Option<Spent> {
        let slow = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = rows.filter_map(|row| slow.peek(&row));
        found.max_by_key(|spent| spent.total()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_part_is_the_cause() {
        let mut spent = Spent::default();
        spent.on(Delay::Network, Duration::from_secs(2));
        spent.on(Delay::Disk, Duration::from_secs(1));
        assert_eq!(spent.mostly(), Delay::Network);
        spent.on(Delay::Disk, Duration::from_secs(2));
        assert_eq!(spent.mostly(), Delay::Disk);
    }

    /// Promise: however many chunks arrive slowly, few are remembered, and the slowest of a read's
    /// explains it.
    #[test]
    fn the_slowest_chunk_of_a_read_explains_it() {
        let slow = SlowArrivals::new();
        for row in 0..10_000 {
            let mut spent = Spent::default();
            spent.on(Delay::Retry, Duration::from_secs(row as u64));
            slow.note(row, spent);
        }
        assert_eq!(slow.0.lock().unwrap().len(), REMEMBERED.get());
        assert_eq!(slow.of(0..100), None);
        let found = slow.of(9_990..9_995).unwrap();
        assert_eq!(found.total(), Duration::from_secs(9_994));
    }
}
