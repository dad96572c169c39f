//! What the kernel was given of a layer, and need not have as pages of the store's file, too.
//!
//! Bytes that were read stay in the page cache as those of the file that was read. Those of the device file below
//! are a second copy. They are of use while a start reads one file of a chunk after the other; once a chunk was handed
//! over, in part or whole, and nobody asked for it since, its pages are given back. Those of a chunk that nobody asked for
//! yet stay: whoever starts what was just fetched finds it in memory.
//!
//! It is as if the kernel had needed the memory: what is asked for later comes from the disk. Pages are given back while nobody
//! reads or writes a chunk, who would have them read once more.

use std::ops::Range;

use super::direct::was_read_lately;
use super::stored::StoredLayer;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sys::page_size;

/// Chunks whose pages are given back in one step, for which others wait: 16 MiB of the usual size, a millisecond.
const STEP: usize = 64;

/// Two bits per chunk.
#[derive(Debug)]
pub(super) struct Handed {
    /// Asked for since the last round.
    lately: Box<[AtomicU64]>,
    /// Asked for in the round before.
    before: Box<[AtomicU64]>,
}

impl Handed {
    pub(super) fn new(rows: usize) -> Self {
        let words = || (0..rows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            lately: words(),
            before: words(),
        }
    }

    /// The chunk `row` is handed over now. Cheap where that is known already: this is in the path of reads.
    pub(super) fn note(&self, row: usize) {
        let bit = 1 << (row % 64);
        if let Some(word) = self.lately.get(row / 64)
            && word.load(Ordering::Relaxed) & bit == 0
        {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Those that were handed over before the last round and not since; a round ends.
    fn rested(&self) -> Vec<usize> {
        let words = self.lately.iter().zip(&self.before).enumerate();
        let words = words.map(|(place, (lately, before))| {
            let lately = lately.swap(0, Ordering::Relaxed);
            (place, before.swap(lately, Ordering::Relaxed) & !lately)
        });
        let rows = words.flat_map(|(place, rested)| {
            let is_set = move |bit: &usize| rested & (1 << bit) != 0;
            (0..64).filter(is_set).map(move |bit| place * 64 + bit)
        });
        rows.collect()
    }
}

impl StoredLayer {
    /// Ends a round, after what was written is on the disk: gives back the pages of what rests, and says which bytes of
    /// the device these are.
    pub(crate) fn give_back_pages(&self) -> Vec<Range<u64>> {
        let rested = self.handed.rested();
        let mut given = Vec::new();
        for run in rested.chunk_by(|row, next| row + 1 == *next) {
            for rows in run.chunks(STEP) {
                match self.give_back(rows) {
                    Some(range) => given.push(range),
                    // They rest once more.
                    None => rows.iter().for_each(|row| self.handed.note(*row)),
                }
            }
        }
        self.rest_direct();
        given
    }

    /// Gives back the pages of neighbours, unless somebody reads from the disk or writes now; which bytes these are.
    fn give_back(&self, rows: &[usize]) -> Option<Range<u64>> {
        let _alone = self.writing.try_write().ok()?;
        // A table that rots while it is mapped.
        let is_in_place = rows.iter().all(|row| self.index.is_in_place(*row));
        let first = self.index.chunk(*rows.first()?).filter(|_| is_in_place)?;
        let last = self.index.chunk(*rows.last()?)?;
        // With what they share with others. The kernel keeps a page, and the larger pieces it keeps files in, of which
        // a part is asked for.
        let pages = whole_pages(first.offset..last.end());
        self.device
            .forget_cached(pages.start..pages.end.min(self.device_len()));
        Some(first.offset..last.end())
    }

    /// Gives back all pages of a file that the kernel reads past us, once it was read and then was not for a round.
    /// EROFS has what it read of it as its own; of which chunk that was, nobody knows.
    fn rest_direct(&self) {
        if !self.is_direct() {
            return;
        }
        match was_read_lately(&self.device.file()) {
            Ok(true) => self.direct.note_read(),
            Ok(false) => {
                if self.direct.take_read() {
                    self.device.forget_cached(0..self.device_len());
                }
            }
            Err(error) => {
                tracing::debug!(layer = %self.directory().display(), %error, "not known when it was read");
            }
        }
    }
}

/// The pages that have a part of `range`.
fn whole_pages(range: Range<u64>) -> Range<u64> {
    let page = page_size();
    range.start / page * page..range.end.next_multiple_of(page)
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
