//! When a layer and its chunks were last read, as far as eviction needs to know.
//!
//! A bit per chunk, set by who reads it and cleared by the hand that passes; a chunk whose bit is
//! still clear when the hand comes by again is cold. That is 500 bytes for a layer of 1 GB.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// What eviction knows of the reads of one layer.
#[derive(Debug)]
pub(crate) struct Uses {
    rows: usize,
    bits: Box<[AtomicU64]>,
    /// Where the hand stands.
    hand: AtomicUsize,
    /// Seconds since 1970.
    last: AtomicU64,
}

impl Uses {
    /// Nothing was read since `last`.
    pub(crate) fn new(rows: usize, last: SystemTime) -> Self {
        Self {
            rows,
            bits: (0..rows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            hand: AtomicUsize::new(0),
            last: AtomicU64::new(seconds(last)),
        }
    }

    /// The chunk `row` was read. Cheap where that is known already: this is in the path of reads.
    pub(crate) fn touch(&self, row: usize) {
        let bit = 1 << (row % 64);
        if let Some(word) = self.bits.get(row / 64)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// The layer was read now.
    pub(crate) fn used(&self) {
        let now = seconds(SystemTime::now());
        if self.last.load(Ordering::Relaxed) != now {
            self.last.store(now, Ordering::Relaxed);
        }
    }

    /// When it was last read.
    pub(crate) fn last(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.last.load(Ordering::Relaxed))
    }

    /// Whether the chunk was read since the hand came by; the hand passes.
    pub(crate) fn pass(&self, row: usize) -> bool {
        let bit = 1 << (row % 64);
        let word = self.bits.get(row / 64);
        word.is_some_and(|word| word.fetch_and(!bit, Ordering::Relaxed) & bit != 0)
    }

    /// The rows from where the hand stands, once around; the hand stays where the caller stops.
    pub(crate) fn round(&self) -> impl Iterator<Item = usize> {
        let start = self.hand.load(Ordering::Relaxed);
        (0..self.rows).map(move |step| {
            let row = (start + step) % self.rows;
            self.hand.store((row + 1) % self.rows, Ordering::Relaxed);
            row
        })
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: the hand takes what was not read since it last came by, and goes on where it
    /// stopped.
    #[test]
    fn what_was_read_since_the_last_round_stays() {
        let uses = Uses::new(130, UNIX_EPOCH);
        for row in 0..130 {
            uses.touch(row);
        }
        assert!(uses.round().all(|row| uses.pass(row)), "all were just read");
        uses.touch(129);
        let cold: Vec<_> = uses
            .round()
            .filter(|&row| !uses.pass(row))
            .take(3)
            .collect();
        assert_eq!(cold, [0, 1, 2]);
        let cold: Vec<_> = uses.round().filter(|&row| !uses.pass(row)).collect();
        assert_eq!((cold.len(), cold[0], cold[128]), (129, 3, 2));
        assert!(!uses.pass(500), "a row that is none was never read");
        assert_eq!(Uses::new(0, UNIX_EPOCH).round().count(), 0);
    }
}
