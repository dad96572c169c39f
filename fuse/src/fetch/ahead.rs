//! Reading ahead of streams: nothing for who jumps about, more and more for who reads on.
//!
//! What a start is known to read comes by that knowledge, and so does what follows it, where the start reads
//! on: a guess would bring what nobody reads. Of *python* it was 4 MB beside 28, and 3 % of them were read.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use larder_proto::access::ACCESSES_MAX;

use super::around::Around;
use super::replay::SLIGHT_BYTES_MAX;
use super::{Fetcher, Priority};
use crate::sync::atomic::Ordering;
use crate::sync::{spawn, spawn_blocking};

/// Streams of one layer that are followed at a time: as many as a start reads large files at once, and few
/// enough to be looked through on every read.
const STREAMS: usize = 16;

/// Chunks one after the other that make a stream. The kernel reads ahead by itself, 128 KiB at a time, so
/// that what is read at one place may look like two or three of them.
const STEPS: u32 = 4;

/// Chunks that are read ahead at first; doubled each time.
const WINDOW_FIRST: usize = 2;

/// Most of them, of the usual size: 16 MiB, more than a second of any link that needs reading ahead.
const WINDOW_MAX: usize = 64;

/// Somebody who reads on.
#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// The chunk that is read now.
    at: usize,
    /// How many chunks were read one after the other.
    steps: u32,
    /// Those of them that no start is known to read.
    unlisted: u32,
    /// The chunk up to which all were asked for.
    ahead: usize,
    window: usize,
    used: u64,
}

/// Who reads on in one layer.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    streams: [Stream; STREAMS],
    reads: u64,
    /// Chunks that a start is known to read, ascending, at most [`ACCESSES_MAX`].
    listed: Vec<u32>,
    pub(super) around: Around,
}

/// What somebody who reads on reads next.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    rows: Range<usize>,
    /// Whether he reads what no start is known to read: only then it does not come unasked.
    is_unlisted: bool,
}

impl Ahead {
    /// Notes chunks that a start is known to read.
    fn list(&mut self, rows: impl Iterator<Item = u32>) {
        self.listed.extend(rows.take(ACCESSES_MAX));
        self.listed.sort_unstable();
        self.listed.dedup();
        self.listed.truncate(ACCESSES_MAX);
        self.listed.shrink_to_fit();
    }

    fn is_listed(&self, row: usize) -> bool {
        u32::try_from(row).is_ok_and(|row| self.listed.binary_search(&row).is_ok())
    }

    /// Notes that `rows` are read, and whether nobody knew that they would be; what is wanted now.
    fn read(&mut self, rows: &Range<usize>, is_unlisted: bool) -> Option<Wanted> {
        self.reads += 1;
        let last = rows.end.checked_sub(1)?;
        let goes_on = |stream: &&mut Stream| {
            stream.used > 0 && (stream.at == rows.start || stream.at + 1 == rows.start)
        };
        let Some(stream) = self.streams.iter_mut().find(goes_on) else {
            let oldest = self.streams.iter_mut().min_by_key(|stream| stream.used)?;
            *oldest = Stream {
                at: last,
                ahead: rows.end,
                window: WINDOW_FIRST,
                used: self.reads,
                steps: 1,
                unlisted: u32::from(is_unlisted),
            };
            return None;
        };
        stream.used = self.reads;
        if last <= stream.at {
            return None;
        }
        stream.steps = stream.steps.saturating_add(1);
        stream.at = last;
        if is_unlisted {
            stream.unlisted = stream.unlisted.saturating_add(1);
            if stream.unlisted == STEPS {
                // What was wanted before was left to come unasked.
                (stream.ahead, stream.window) = (rows.end, WINDOW_FIRST);
            }
        }
        stream.ahead = stream.ahead.max(rows.end);
        // While half of the last ones is to be read, the next ones come.
        let left = stream.ahead - rows.end;
        if stream.steps < STEPS || left > stream.window / 2 {
            return None;
        }
        let wanted = stream.ahead..rows.end + stream.window;
        stream.window = (stream.window * 2).min(WINDOW_MAX);
        stream.ahead = wanted.end;
        Some(Wanted {
            rows: wanted,
            is_unlisted: stream.unlisted >= STEPS,
        })
    }
}

impl Fetcher {
    /// Notes chunks that a start is known to read, and that are fetched for that.
    pub(super) fn list(&self, rows: impl Iterator<Item = u32>) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        ahead.list(rows);
    }

    /// Whether no start is known to read `row`; slight ones come along with their neighbours.
    fn is_unlisted(&self, ahead: &Ahead, row: usize) -> bool {
        if ahead.listed.is_empty() {
            return true;
        }
        let chunk = self.layer.index().chunk(row);
        let is_slight = chunk.is_some_and(|chunk| chunk.stored_len <= SLIGHT_BYTES_MAX);
        !is_slight && !ahead.is_listed(row)
    }

    /// Notes that a reader wants `rows`, there or not, and asks for what follows if he reads on.
    pub(crate) fn reading(self: &Arc<Self>, rows: &Range<usize>) {
        // Another reader is noted now: the next read of this one is as good.
        let Ok(mut ahead) = self.ahead.try_lock() else {
            return;
        };
        ahead.around.read(rows);
        let is_unlisted = self.is_unlisted(&ahead, rows.end.saturating_sub(1));
        let wanted = ahead.read(rows, is_unlisted);
        drop(ahead);
        if let Some(Wanted { rows, is_unlisted }) = wanted {
            let end = rows.end.min(self.layer.index().chunk_count());
            self.bring_ahead(rows.start..end);
            if !is_unlisted {
                return;
            }
            // At most what keeps the link busy while the window before it is read.
            let end = end.min(self.batch_end(rows.start, 2 * self.part_bytes()));
            // Without room it would come again for the reader.
            if rows.start < end && self.layer.may_have_room() {
                drop(self.request(rows.start..end, Priority::Readahead));
            }
        }
    }

    /// Has the disk's part of it verified beside the reader, one window at a time: he would wait for the disk and the
    /// verification one after the other. What is already in memory costs a look at it.
    fn bring_ahead(self: &Arc<Self>, rows: Range<usize>) {
        if rows.is_empty() || self.bringing.swap(true, Ordering::AcqRel) {
            return;
        }
        let fetcher = Arc::clone(self);
        spawn(&self.context.runtime, async move {
            let layer = Arc::clone(&fetcher.layer);
            let bringing = spawn_blocking(move || layer.bring_ahead(rows));
            // A runtime that ends runs nothing more.
            drop(bringing.await);
            fetcher.bringing.store(false, Ordering::Release);
            fetcher.tell_damage();
        });
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Promise: who jumps about, or reads a little at each place, gets nothing that was not asked for.
    #[test]
    fn who_jumps_about_causes_no_reading_ahead() {
        let mut ahead = Ahead::default();
        for place in 0..1_000 {
            let row = place * 379 % 10_000;
            for step in 0..3 {
                assert_eq!(ahead.read(&(row + step..row + step + 1), true), None);
            }
        }
    }

    /// Promise: who reads on has more and more read ahead, each chunk once, and never waits for it to be
    /// asked for.
    #[test]
    fn who_reads_on_finds_each_chunk_asked_for_once() {
        let mut ahead = Ahead::default();
        let mut asked = Vec::new();
        for row in 0..1_000 {
            // In pieces of a quarter, and others read elsewhere.
            for _ in 0..4 {
                let wanted = ahead.read(&(row..row + 1), true);
                asked.extend(wanted.into_iter().flat_map(|wanted| wanted.rows));
                ahead.read(&(50_000 + row * 17..50_001 + row * 17), true);
            }
            if row >= 8 {
                assert!(asked.contains(&(row + 1)), "{row}");
            }
            assert!(asked.last().is_none_or(|last| *last <= row + WINDOW_MAX));
        }
        let mut once = asked.clone();
        once.dedup();
        assert_eq!(asked, once);
        assert!(asked.is_sorted());
    }

    /// Regression: beside what a profile of *python* brought, one byte in eight was read ahead, and nobody read it.
    ///
    /// Promise: who reads what a start is known to read has nothing guessed for him, until he reads on where nothing is
    /// known; then each chunk is asked for once from there on.
    #[test]
    fn nothing_is_guessed_where_a_start_is_known() {
        let mut ahead = Ahead::default();
        ahead.list((0..200).rev().chain(0..200));
        assert_eq!(ahead.listed.len(), 200);
        let mut asked = Vec::new();
        for row in 0..400 {
            let is_unlisted = !ahead.is_listed(row);
            let wanted = ahead.read(&(row..row + 1), is_unlisted);
            let wanted = wanted.filter(|wanted| wanted.is_unlisted);
            asked.extend(wanted.into_iter().flat_map(|wanted| wanted.rows));
            if row < 200 {
                assert_eq!(asked, [0; 0]);
            }
        }
        let first = 200 + STEPS as usize;
        assert!(
            asked.iter().copied().eq(first..first + asked.len()),
            "{asked:?}"
        );
        assert!(asked.len() > 196, "{}", asked.len());
    }

    /// Promise: what is noted of starts stays within the limit.
    #[test]
    fn what_is_listed_is_limited() {
        let mut ahead = Ahead::default();
        for number in 0..3 {
            let len = u32::try_from(ACCESSES_MAX).unwrap();
            ahead.list(number * len..(number + 1) * len);
        }
        assert_eq!(ahead.listed.len(), ACCESSES_MAX);
        assert!(ahead.is_listed(0));
    }
}
