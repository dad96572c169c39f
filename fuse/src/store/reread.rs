//! Reading what is in the store; what the disk gives anew is verified before anybody gets it.
//!
//! What the kernel has of a device file in memory was verified when it came there: it was written here, or
//! read here and verified. Nothing else reads the file but EROFS where it is mounted directly, and the kernel
//! reads nothing ahead in it. So bytes that are in memory are answered with as they are, and the chunk of those
//! that are not is read whole and verified: in the time since it was written a disk may have changed it.

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::sync::PoisonError;

use larder_proto::index::Chunk;
use larder_proto::verified::Verified;

use super::presence::ChunkState;
use super::stored::{Checked, StoredLayer};
use crate::sync::atomic::Ordering;

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
        let is_verified = || {
            let mut rows = self.index.rows(range.clone());
            rows.all(|row| self.presence.state(row) == ChunkState::Verified)
        };
        // EROFS reads a direct device without us, and verifies nothing. Asked twice: who verifies a chunk now may
        // have brought it into memory meanwhile.
        if !self.is_direct()
            && is_verified()
            && self.device.read_cached(bytes, offset)?
            && is_verified()
        {
            return Ok(true);
        }
        // Behind the last chunk.
        bytes.fill(0);
        with_chunk(|content| {
            for row in self.index.rows(range.clone()) {
                let Some(chunk) = self.index.chunk(row) else {
                    continue;
                };
                // Before its pages are in memory: who finds them there is not to take them for verified.
                self.presence.set_claimed(row);
                if self.check(row, &chunk, content) != Checked::Intact {
                    return Ok(false);
                }
                copy(content, &chunk, bytes, &range);
            }
            Ok(true)
        })
    }

    /// Verifies a chunk that is claimed; a damaged one is forgotten, and its place cleared.
    pub(crate) fn verify(&self, row: usize, chunk: &Chunk) -> Checked {
        // Not the thread's: it is one of very many, each of which would keep a chunk.
        self.check(row, chunk, &mut Vec::new())
    }

    /// Verifies a chunk as the disk has it, not the page cache.
    pub(crate) fn scrub(&self, row: usize, chunk: &Chunk) -> Checked {
        // Only the read that follows depends on it, and that one finds what there is.
        self.device.forget_cached(chunk.offset..chunk.end());
        self.verify(row, chunk)
    }

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
        // A disk damages what was written; what is a hole was taken away, and that could not be noted.
        let was_evicted = self.device.is_hole(&(chunk.offset..chunk.end()));
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
        if self.presence.state(row) == ChunkState::Absent {
            return Checked::Evicted;
        }
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

/// Copies what of a chunk lies in `range` to its place in `bytes`, which are those of `range`.
fn copy(content: &[u8], chunk: &Chunk, bytes: &mut [u8], range: &Range<u64>) {
    let (start, end) = (chunk.offset.max(range.start), chunk.end().min(range.end));
    let place = |offset: u64, base: u64| usize::try_from(offset - base).unwrap_or(usize::MAX);
    if start < end {
        let to = &mut bytes[place(start, range.start)..place(end, range.start)];
        to.copy_from_slice(&content[place(start, chunk.offset)..place(end, chunk.offset)]);
    }
}
