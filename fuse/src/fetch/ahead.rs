//! Reading ahead of streams: nothing for who jumps about, more and more for who reads on.

use std::ops::Range;
use std::sync::Arc;

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
}

impl Ahead {
    /// Notes that `rows` are read; what to ask for now.
    fn read(&mut self, rows: &Range<usize>) -> Option<Range<usize>> {
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
            };
            return None;
        };
        stream.used = self.reads;
        if last <= stream.at {
            return None;
        }
        stream.steps = stream.steps.saturating_add(1);
        stream.at = last;
        stream.ahead = stream.ahead.max(rows.end);
        // While half of the last ones is to be read, the next ones come.
        let left = stream.ahead - rows.end;
        if stream.steps < STEPS || left > stream.window / 2 {
            return None;
        }
        let wanted = stream.ahead..rows.end + stream.window;
        stream.window = (stream.window * 2).min(WINDOW_MAX);
        stream.ahead = wanted.end;
        Some(wanted)
    }
}

impl Fetcher {
    /// Notes that a reader wants `rows`, there or not, and asks for what follows if he reads on.
    pub(crate) fn reading(self: &Arc<Self>, rows: &Range<usize>) {
        // Another reader is noted now: the next read of this one is as good.
        let Ok(mut ahead) = self.ahead.try_lock() else {
            return;
        };
        let wanted = ahead.read(rows);
        drop(ahead);
        if let Some(wanted) = wanted {
            let end = wanted.end.min(self.layer.index().chunk_count());
            self.bring_ahead(wanted.start..end);
            // At most what keeps the link busy while the window before it is read.
            let end = end.min(self.batch_end(wanted.start, 2 * self.part_bytes()));
            // Without room it would come again for the reader.
            if wanted.start < end && self.layer.may_have_room() {
                drop(self.request(wanted.start..end, Priority::Readahead));
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
                assert_eq!(ahead.read(&(row + step..row + step + 1)), None);
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
                asked.extend(ahead.read(&(row..row + 1)).into_iter().flatten());
                ahead.read(&(50_000 + row * 17..50_001 + row * 17));
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
}
