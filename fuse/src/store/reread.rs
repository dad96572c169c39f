//! Reading what is in the store: every chunk is verified between the disk and whoever reads it.
//!
//! A chunk is read whole and verified, and stays in memory of our own ([`super::kept`]) while it is read; nothing that the kernel
//! has of the device file is believed.

use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError};

use larder_proto::index::Chunk;
use larder_proto::verified::Verified;

use super::kept::{BYTES_MAX, Content};
use super::presence::ChunkState;
use super::stored::{Checked, StoredLayer};
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;

/// Bytes that are verified ahead of a stream at a time: those of several streams stay until they are read.
const AHEAD_MAX: u64 = BYTES_MAX as u64 / 4;

/// Locks for the chunks of a layer that come from the disk. Chunks that share one wait for each other, which is rare with several times
/// as many as processors read at once.
pub(super) const STRIPES: usize = 64;

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
    pub(crate) fn read(&mut self, bytes: &mut [u8], offset: u64) {
        self.is_lost |= !self.layer.read_verified(bytes, offset);
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
    pub(crate) fn read_verified(&self, bytes: &mut [u8], offset: u64) -> bool {
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
                return false;
            }
            let part = &mut bytes[distance(range.start, start)..distance(range.start, end)];
            let Some(content) = self.content(row, &chunk) else {
                return false;
            };
            let wanted = distance(chunk.offset, start)..distance(chunk.offset, end);
            // It was kept by another length, if the table rots meanwhile.
            match content.as_slice().get(wanted) {
                Some(found) => part.copy_from_slice(found),
                None => return false,
            }
        }
        true
    }

    /// A chunk's content: what is kept of it, or what the disk has, verified. Of those who want the same chunk one reads
    /// it.
    fn content(&self, row: usize, chunk: &Chunk) -> Option<Content> {
        if let Some(kept) = self.kept(row) {
            return Some(kept);
        }
        let _alone = self.lock_bringing(row);
        if let Some(kept) = self.kept(row) {
            return Some(kept);
        }
        let content = Arc::new(self.check(row, chunk).ok()?);
        self.keep(row, content.clone());
        Some(content)
    }

    /// Has readers find a chunk that came just now.
    pub(crate) fn keep(&self, row: usize, content: Content) {
        self.rules.kept.put(self.number, row, content);
    }

    fn kept(&self, row: usize) -> Option<Content> {
        self.rules.kept.get(self.number, row)
    }

    /// Verifies what the disk has of `rows`, from the first on and not more than is kept for long enough, for those who
    /// read them soon. What is not there or damaged is left to them.
    pub(crate) fn bring_ahead(&self, rows: Range<usize>) {
        let mut bytes = 0;
        for row in rows {
            let is_there = self.presence.was_verified(row);
            if let Some(chunk) = self.index.chunk(row).filter(|_| is_there) {
                bytes += u64::from(chunk.len);
                if bytes > AHEAD_MAX {
                    break;
                }
                self.content(row, &chunk);
            }
        }
    }

    fn lock_bringing(&self, row: usize) -> MutexGuard<'_, ()> {
        let bringing = self.bringing[row % STRIPES].lock();
        bringing.unwrap_or_else(PoisonError::into_inner)
    }

    /// Verifies a chunk as the disk or the kernel has it, not as it is kept; a damaged one is forgotten, and its place
    /// cleared.
    pub(crate) fn verify(&self, row: usize, chunk: &Chunk) -> Checked {
        let _alone = self.lock_bringing(row);
        match self.check(row, chunk) {
            Ok(_) => Checked::Intact,
            Err(checked) => checked,
        }
    }

    /// Verifies a chunk as the disk has it, not the page cache.
    pub(crate) fn scrub(&self, row: usize, chunk: &Chunk) -> Checked {
        // Only the read that follows depends on it, and that one finds what there is.
        self.device.forget_cached(chunk.offset..chunk.end());
        self.verify(row, chunk)
    }

    /// What the disk has of a chunk, verified, or what is wrong with it. With [`Self::lock_bringing`].
    fn check(&self, row: usize, chunk: &Chunk) -> Result<Verified<Vec<u8>>, Checked> {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        match self.look(row, chunk) {
            Err(Checked::Damaged) => {}
            found => return found,
        }
        // Somebody else may have found the same meanwhile, and fetched it: that is not to be forgotten.
        let alone = self.condemning.lock();
        let _alone = alone.unwrap_or_else(PoisonError::into_inner);
        match self.look(row, chunk) {
            Err(Checked::Damaged) => {}
            found => return found,
        }
        // A disk damages what was written; what is a hole was taken away, and that could not be noted. Not so what
        // was verified in this boot: an eviction clears that first, so somebody else made the hole.
        let is_hole = self.device.is_hole(&(chunk.offset..chunk.end()));
        let was_evicted = is_hole && !self.presence.was_verified(row);
        let is_guessed = self.presence.is_guessed(row);
        self.forget(row, chunk);
        match (was_evicted, is_guessed) {
            (true, _) => return Err(Checked::Evicted),
            // A killed daemon leaves chunks that are there in part.
            (false, true) => {}
            (false, false) => self.note_damage(),
        }
        Err(Checked::Damaged)
    }

    fn look(&self, row: usize, chunk: &Chunk) -> Result<Verified<Vec<u8>>, Checked> {
        if self.presence.state(row) == ChunkState::Absent {
            return Err(Checked::Evicted);
        }
        let mut content = self.rules.kept.buffer(chunk.len as usize);
        let read = self.device.read(&mut content, chunk.offset);
        match read.map(|()| Verified::check(content, &chunk.content)) {
            Ok(Ok(content)) => {
                self.presence.set_verified(row);
                Ok(content)
            }
            Ok(Err(_)) | Err(_) => Err(Checked::Damaged),
        }
    }

    pub(crate) fn note_damage(&self) {
        self.damaged.fetch_add(1, Ordering::AcqRel);
    }

    /// How many chunks were found damaged since the layer was opened.
    pub(crate) fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Acquire)
    }
}

/// Of two places of a device or chunk, no longer than what is in memory.
fn distance(from: u64, to: u64) -> usize {
    usize::try_from(to - from).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
