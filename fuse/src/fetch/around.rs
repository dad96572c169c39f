//! What lies around chunks that readers wait for one after the other.
//!
//! Who loads modules, or runs what a large program has in many places, waits for each chunk by itself, and in no
//! order that reading ahead would follow; but close to each other. Over a long way the chunks around cost less than
//! one such wait (`docs/adr/0014-what-is-fetched-first.md` has how many of them they save).

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use super::{Fetcher, Priority};
use crate::store::ChunkState;

/// Latest waits that are remembered.
const REMEMBERED: usize = 8;

/// Chunks within which waits are close to each other: 4 MiB of content, a directory of modules or a part of a program.
const CLOSE: usize = 16;

/// As many of them as must be close before anything is brought: two are close by chance.
const CLOSE_WAITS: usize = 2;

/// Chunks beyond the outermost of them that come as well.
const BEYOND: usize = 2;

/// Stored bytes that are brought at a time: four chunks of the usual size and compression.
const BYTES_MAX: u64 = 400 << 10;

/// Chunks that were brought and not read yet, from which on no more are: two guesses. With 32, a first start of *python*
/// moved 1.4 MB more and was no faster; with 8, all but a few of the waits that it saves of six images remain saved.
const UNREAD_MAX: usize = 8;

/// Who waited where in one layer.
#[derive(Debug, Default)]
pub(super) struct Around {
    waits: [Option<usize>; REMEMBERED],
    next: usize,
    /// What was brought, and nobody has read yet.
    unread: Vec<usize>,
}

impl Around {
    /// Notes that somebody waits for `row`. The chunks among which those are that he is likely to read next.
    fn waits(&mut self, row: usize) -> Option<Range<usize>> {
        let waits = self.waits.iter().flatten().copied();
        let close: Vec<_> = waits.filter(|wait| wait.abs_diff(row) <= CLOSE).collect();
        self.waits[self.next] = Some(row);
        self.next = (self.next + 1) % REMEMBERED;
        if close.len() < CLOSE_WAITS || self.unread.len() >= UNREAD_MAX {
            return None;
        }
        let first = close.iter().copied().min()?.min(row);
        let last = close.iter().copied().max()?.max(row);
        Some(first.saturating_sub(BEYOND)..last + BEYOND + 1)
    }

    /// Notes that `rows` are read.
    pub(super) fn read(&mut self, rows: &Range<usize>) {
        if !self.unread.is_empty() {
            self.unread.retain(|row| !rows.contains(row));
        }
    }
}

impl Fetcher {
    /// Notes that a reader waits for `row`, and asks for what lies around it if that is likely to be read and costs
    /// less than the wait for it.
    pub(super) fn bring_around(self: &Arc<Self>, row: usize) {
        let product = self.lane().and_then(|lane| lane.measured_product());
        let Some(product) = product.filter(|_| !self.sources.outage.is_on()) else {
            return;
        };
        // Without room it would come again for the reader.
        if !self.layer.may_have_room() {
            return;
        }
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(among) = ahead.around.waits(row) else {
            return;
        };
        let wanted = self.worth_bringing(among, row, product);
        ahead.around.unread.extend(&wanted);
        drop(ahead);
        for rows in self.neighbours(&wanted) {
            drop(self.request(rows, Priority::Readahead));
        }
    }

    /// Those of `among` that are missing and nearest to `row`, ascending. If half of them are read, each may take half as
    /// long to come as a wait for it: half of what the link carries within a round trip, `product`.
    fn worth_bringing(&self, among: Range<usize>, row: usize, product: u64) -> Vec<usize> {
        let (index, presence) = (self.layer.index(), self.layer.presence());
        let is_missing =
            |row: &usize| *row < index.chunk_count() && presence.state(*row) == ChunkState::Absent;
        let mut near: Vec<_> = among
            .filter(is_missing)
            .filter(|near| *near != row)
            .collect();
        near.sort_by_key(|near| near.abs_diff(row));
        let mut left = BYTES_MAX.min(product);
        let fits = |near: &usize| {
            let bytes = index
                .chunk(*near)
                .map_or(u64::MAX, |chunk| chunk.stored_len.into());
            let fits = bytes <= left && bytes <= product / 2;
            left -= if fits { bytes } else { 0 };
            fits
        };
        near.retain(fits);
        near.sort_unstable();
        near
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Promise: who waits here and there has nothing brought; who waits in one place, in whatever order, has.
    #[test]
    fn waits_that_are_close_bring_what_lies_around() {
        let mut around = Around::default();
        for place in 0..1_000 {
            assert_eq!(around.waits(place * 379 % 10_000), None);
        }
        assert_eq!(around.waits(20_000), None);
        assert_eq!(around.waits(20_009), None);
        assert_eq!(around.waits(20_004), Some(19_998..20_012));
        assert_eq!(around.waits(3), None);
        assert_eq!(around.waits(9), None);
        assert_eq!(around.waits(0), Some(0..12));
    }

    /// Promise: what nobody reads is brought no longer, until it is read after all.
    #[test]
    fn what_nobody_reads_is_brought_no_longer() {
        let mut around = Around::default();
        around.unread.extend(100..100 + UNREAD_MAX);
        for row in [0, 5, 10, 15] {
            assert_eq!(around.waits(row), None);
        }
        around.read(&(101..103));
        assert!(around.waits(12).is_some());
    }
}
