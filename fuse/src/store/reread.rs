//! Reading what is in the store; what the disk gives anew is verified before anybody gets it.
//!
//! What the kernel has of a device file in memory was verified when it came there: it was written here, or
//! read here and verified. Nothing else reads the file but EROFS where it is mounted directly, and the kernel
//! reads nothing ahead in it. So bytes that are in memory are answered with as they are, and the chunk of those
//! that are not is read whole and verified: in the time since it was written a disk may have changed it, or
//! somebody else have made a hole of it, which the kernel would answer with zeros at once.
//!
//! What may bring a page from the disk, and a read by memory may if the page goes at that moment, marks its chunks first:
//! they are verified before anybody reads them by memory again.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::PoisonError;

use larder_proto::index::Chunk;
use larder_proto::verified::Verified;

use super::presence::ChunkState;
use super::stored::{Checked, StoredLayer};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::sys::page_size;

/// Locks for the chunks of a layer that come from the disk. Chunks that share one wait for each other, which is rare with several times
/// as many as processors read at once.
pub(super) const STRIPES: usize = 64;

thread_local! {
    /// The chunk that the thread verifies.
    static CHUNK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Reads chunks that were there and verified a moment ago.
#[derive(Debug)]
pub(crate) struct There<'a> {
    layer: &'a StoredLayer,
    /// Whether some were not any more.
    is_lost: bool,
}

impl There<'_> {
    /// Reads bytes of the device. If chunks are gone or damaged, the bytes are those of nothing, and
    /// [`StoredLayer::read_there`] says so.
    pub(crate) fn read(&mut self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.is_lost |= !self.layer.read_verified(bytes, offset)?;
        Ok(())
    }
}

impl StoredLayer {
    /// Runs `read`, which reads chunks of `rows` from the device, if all of them are there and were
    /// verified; says whether what was read is theirs.
    ///
    /// A chunk is evicted in this order: its bit is cleared, `evictions` counts, its place becomes
    /// a hole. Who sees the count of before cannot have read the hole, or sees another count
    /// afterwards; who sees the count of after sees the bit cleared, too. A damaged chunk goes in the same way.
    pub(crate) fn read_there(
        &self,
        rows: impl Iterator<Item = usize>,
        read: impl FnOnce(&mut There<'_>) -> io::Result<()>,
    ) -> io::Result<bool> {
        let before = self.evictions();
        for row in rows {
            if !self.presence.was_verified(row) {
                return Ok(false);
            }
            self.uses.touch(row);
            self.handed.note(row);
        }
        self.uses.used();
        let mut there = There {
            layer: self,
            is_lost: false,
        };
        read(&mut there)?;
        Ok(!there.is_lost && self.evictions() == before)
    }

    /// Reads bytes of the device, verified; false if some of their chunks are not there, or are damaged.
    pub(crate) fn read_verified(&self, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        let range = offset..offset + bytes.len() as u64;
        // Behind the last chunk.
        bytes.fill(0);
        for row in self.index.rows(range.clone()) {
            let Some(chunk) = self.index.chunk(row) else {
                continue;
            };
            let (start, end) = (chunk.offset.max(range.start), chunk.end().min(range.end));
            // An index that rots while it is mapped.
            if start >= end || !self.index.is_in_place(row) {
                return Ok(false);
            }
            let part = &mut bytes[distance(range.start, start)..distance(range.start, end)];
            if self.read_in_memory(row, part, start)? {
                continue;
            }
            let is_intact = with_chunk(|content| {
                let is_intact = self.bring(row, &chunk, content) == Checked::Intact;
                if is_intact {
                    let wanted = distance(chunk.offset, start)..distance(chunk.offset, end);
                    part.copy_from_slice(&content[wanted]);
                }
                is_intact
            });
            if !is_intact {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads bytes of one chunk if it is verified and the kernel has them in memory.
    ///
    /// Who reads what went since he asked makes the kernel fetch it from the disk, and the next one might find it
    /// before it is verified: so one asks at a time, and marks all chunks of those pages before the next one does.
    fn read_in_memory(&self, row: usize, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        // EROFS reads a direct device without us, and verifies nothing.
        if self.is_direct() {
            return Ok(false);
        }
        let _alone = self.lock_asking();
        if self.presence.state(row) != ChunkState::Verified {
            return Ok(false);
        }
        let found = self.device.read_cached(bytes, offset);
        if !matches!(found, Ok(true)) {
            let pages = whole_pages(offset..offset + bytes.len() as u64);
            self.index
                .rows(pages)
                .for_each(|row| self.presence.set_claimed(row));
        }
        found
    }

    fn lock_asking(&self) -> MutexGuard<'_, ()> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks the chunks beside `rows` whose part of a page that they share is not in memory: reading or writing
    /// `rows` brings it from the disk.
    pub(super) fn doubt_neighbours(&self, rows: Range<usize>) {
        let last = rows
            .end
            .checked_sub(1)
            .and_then(|row| self.index.chunk(row));
        let (Some(first), Some(last)) = (self.index.chunk(rows.start), last) else {
            return;
        };
        let pages = whole_pages(first.offset..last.end());
        for beside in [pages.start..first.offset, last.end()..pages.end] {
            for row in self.index.rows(beside.clone()) {
                let Some(chunk) = self.index.chunk(row).filter(|_| !rows.contains(&row)) else {
                    continue;
                };
                // Any byte of it in that page. If it cannot be had, the chunk is marked.
                let at = chunk.offset.clamp(beside.start, beside.end - 1);
                let _ = self.read_in_memory(row, &mut [0], at);
            }
        }
    }

    /// Brings what the disk has of `rows` into memory, verified, for those who read them soon. What is not there
    /// or damaged is left to them.
    pub(crate) fn bring_ahead(&self, rows: Range<usize>) {
        // Where it is mounted directly, nothing is read by memory.
        if self.is_direct() {
            return;
        }
        // Not the thread's: it is one of very many, each of which would keep a chunk.
        let mut content = Vec::new();
        for row in rows {
            let is_there = self.presence.was_verified(row);
            if let Some(chunk) = self.index.chunk(row).filter(|_| is_there) {
                self.bring(row, &chunk, &mut content);
            }
        }
    }

    /// Reads a chunk: from memory if it is verified and there, or else from the disk. Of those who want
    /// the same chunk one does so, and the others find it in memory.
    fn bring(&self, row: usize, chunk: &Chunk, content: &mut Vec<u8>) -> Checked {
        let _alone = self.lock_bringing(row);
        content.resize(chunk.len as usize, 0);
        if let Ok(true) = self.read_in_memory(row, content, chunk.offset) {
            return Checked::Intact;
        }
        self.check(row, chunk, content)
    }

    fn lock_bringing(&self, row: usize) -> MutexGuard<'_, ()> {
        let bringing = self.bringing[row % STRIPES].lock();
        bringing.unwrap_or_else(PoisonError::into_inner)
    }

    /// Verifies a chunk that is claimed; a damaged one is forgotten, and its place cleared.
    pub(crate) fn verify(&self, row: usize, chunk: &Chunk) -> Checked {
        let _alone = self.lock_bringing(row);
        // Not the thread's: it is one of very many, each of which would keep a chunk.
        self.check(row, chunk, &mut Vec::new())
    }

    /// Verifies a chunk as the disk has it, not the page cache.
    pub(crate) fn scrub(&self, row: usize, chunk: &Chunk) -> Checked {
        // Only the read that follows depends on it, and that one finds what there is.
        self.device.forget_cached(chunk.offset..chunk.end());
        self.verify(row, chunk)
    }

    /// With [`Self::lock_bringing`].
    fn check(&self, row: usize, chunk: &Chunk, content: &mut Vec<u8>) -> Checked {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        let first = self.look(row, chunk, content);
        if first != Checked::Damaged {
            return first;
        }
        // Somebody else may have found the same meanwhile, and fetched it: that is not to be forgotten.
        let alone = self.condemning.lock();
        let _alone = alone.unwrap_or_else(PoisonError::into_inner);
        let again = self.look(row, chunk, content);
        if again != Checked::Damaged {
            return again;
        }
        // A disk damages what was written; what is a hole was taken away, and that could not be noted. Not so what
        // was verified in this boot: an eviction clears that first, so somebody else made the hole.
        let is_hole = self.device.is_hole(&(chunk.offset..chunk.end()));
        let was_evicted = is_hole && !self.presence.was_verified(row);
        let is_guessed = self.presence.is_guessed(row);
        self.forget(row, chunk);
        match (was_evicted, is_guessed) {
            (true, _) => return Checked::Evicted,
            // A killed daemon leaves chunks that are there in part.
            (false, true) => {}
            (false, false) => self.note_damage(),
        }
        Checked::Damaged
    }

    fn look(&self, row: usize, chunk: &Chunk, content: &mut Vec<u8>) -> Checked {
        {
            // Before its pages are in memory: who finds them there is not to take them for verified.
            let _alone = self.lock_asking();
            if self.presence.state(row) == ChunkState::Absent {
                return Checked::Evicted;
            }
            self.presence.set_claimed(row);
        }
        self.doubt_neighbours(row..row + 1);
        content.resize(chunk.len as usize, 0);
        let read = self.device.read(content, chunk.offset);
        if read.is_ok() && Verified::check(content, &chunk.content).is_ok() {
            self.presence.set_verified(row);
            return Checked::Intact;
        }
        Checked::Damaged
    }

    pub(crate) fn note_damage(&self) {
        self.damaged.fetch_add(1, Ordering::AcqRel);
    }

    /// How many chunks were found damaged since the layer was opened.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Acquire)
    }
}

/// Lends the thread's buffer. It is taken out, since a model checker runs many threads on one.
fn with_chunk<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let mut content = CHUNK.take();
    let done = work(&mut content);
    CHUNK.set(content);
    done
}

/// What the kernel reads from the disk for `range`.
pub(super) fn whole_pages(range: Range<u64>) -> Range<u64> {
    let page = page_size();
    range.start / page * page..range.end.next_multiple_of(page)
}

/// Of two places of a device or chunk, no longer than what is in memory.
fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
