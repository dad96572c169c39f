//! What is written down of a layer's chunks, for the next run.
//!
//! ```text
//! present   a bit for each chunk that may be there
//! known     a bit for each of them that was there whole, and durable, and was not taken away since
//! ```
//!
//! A chunk that is known and proves wrong was changed by the disk. Of any other one nobody can tell: a killed
//! daemon leaves chunks that are there in part. So `known` is written after `present` and belongs to that one
//! alone, and it goes before the first of its chunks does, which works on a full disk, too. A build that knows nothing of
//! it leaves it behind when it writes `present`; then nothing is known. See
//! `docs/adr/0005-claims-after-a-bad-end.md`.

use std::io;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use larder_proto::index::Index;
use larder_registry::bounded;

use super::bits;
use super::claims::{claim_what_is_there, claim_zeros};
use super::device::Device;
use super::disk::Disk;
use super::presence::{ChunkState, Presence};
use super::stored::{Ended, LayerStoreError, StoredLayer, at};
use crate::sync::atomic::Ordering;
use crate::sync::{Mutex, MutexGuard};
use crate::sys::Mapping;

const PRESENT: &str = "present";
const KNOWN: &str = "known";

/// How old the note of a layer's last use on the disk may be: it orders layers for eviction after a
/// restart, for which minutes are enough.
const NOTE_EVERY: Duration = Duration::from_mins(1);

/// What the run before left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    /// No device.
    Nothing,
    /// A device that is as it wrote it down.
    Orderly,
    /// A device that may have more or less than was written down.
    Badly,
    /// A device of another length than it had.
    Cut,
}

impl Before {
    /// Looks at the device at `path`, which had the length `len`, before it is opened.
    pub(super) fn of(path: &Path, len: u64, ended: Ended) -> Self {
        match (std::fs::metadata(path), ended) {
            (Err(_), _) => Self::Nothing,
            (Ok(found), _) if found.len() != len => Self::Cut,
            (Ok(_), Ended::Orderly) => Self::Orderly,
            (Ok(_), Ended::Badly) => Self::Badly,
        }
    }
}

/// The notes of one layer.
#[derive(Debug)]
pub(super) struct Noted {
    /// Held while bits are written down: who finds nothing to write knows that it was written.
    syncing: Mutex<()>,
    /// Whether there may be a `known` beside the device.
    is_known: Mutex<bool>,
}

impl Noted {
    /// What lies in `directory`.
    pub(super) fn found(directory: &Path, before: Before, disk: &dyn Disk) -> Self {
        let path = directory.join(KNOWN);
        // It is of another device.
        if matches!(before, Before::Nothing | Before::Cut) && path.exists() {
            let _ = disk.remove_file(&path);
        }
        Self {
            syncing: Mutex::new(()),
            // Also where there is none: a daemon that was killed may be writing one still.
            is_known: Mutex::new(true),
        }
    }

    /// What a former run left, by what it wrote down, and after a bad end by the device itself.
    pub(super) fn claims(
        directory: &Path,
        index: &Index<Mapping>,
        device: &Device,
        before: Before,
    ) -> Presence {
        let count = index.chunk_count();
        if before == Before::Nothing {
            let presence = Presence::empty(count);
            claim_zeros(&presence, index);
            return presence;
        }
        let most = bits::bytes_max(count);
        let read = |name| bounded::read(&directory.join(name), most).unwrap_or_default();
        let (present, known) = (read(PRESENT), read(KNOWN));
        let written = Presence::decode(&present, count);
        let is_complete = |written: &Presence| written.know(&known, &present);
        let written = match written {
            Some(written) if before == Before::Orderly && is_complete(&written) => return written,
            written => written,
        };
        let there = Presence::empty(count);
        let were_all = claim_what_is_there(&there, index, &device.file());
        let claims = match written {
            Some(written) if !were_all => {
                for row in there.rows(|state| state == ChunkState::Claimed) {
                    written.claim(row);
                }
                written
            }
            _ => there,
        };
        if before != Before::Cut {
            claims.know(&known, &present);
        }
        claims
    }

    fn lock_known(&self) -> MutexGuard<'_, bool> {
        self.is_known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoredLayer {
    /// Makes the data durable, and then writes down which chunks are there.
    pub(crate) fn sync(&self) -> Result<(), LayerStoreError> {
        let alone = self.noted.syncing.lock();
        let _alone = alone.unwrap_or_else(PoisonError::into_inner);
        if self.nameless.load(Ordering::Acquire) {
            return Ok(());
        }
        self.note_use();
        if !self.presence.take_dirty() {
            return Ok(());
        }
        let path = self.directory().join(PRESENT);
        // The bits are taken before the sync: what is set later is in the next round.
        let evictions = self.evictions();
        let present = self.presence.encode();
        let known = self.presence.encode_known(&present);
        let durable = self.device.sync().inspect_err(|_| {
            // The kernel drops pages that it could not write: what is on the disk is another thing.
            self.presence.expire();
        });
        let written = durable.and_then(|()| self.write_down(&present, &known, evictions));
        written.map_err(|error| {
            self.presence.mark_dirty();
            at(&path)(error)
        })?;
        self.measure();
        Ok(())
    }

    /// Writes bits that were taken when there had been so many `evictions`.
    fn write_down(&self, present: &[u8], known: &[u8], evictions: u64) -> io::Result<()> {
        let mut is_known = self.noted.lock_known();
        // Another layer may have its place by now.
        let directory = self.lock_directory();
        if self.nameless.load(Ordering::Acquire) {
            return Ok(());
        }
        self.disk.replace(&directory.join(PRESENT), present)?;
        if self.evictions() == evictions {
            *is_known = true;
            self.disk.replace(&directory.join(KNOWN), known)?;
        } else {
            // What is left is known in the next round.
            self.presence.mark_dirty();
        }
        Ok(())
    }

    /// Counts that chunks go, after their bits and before their bytes. If some of them were known, they are not any
    /// more: whoever is killed while one of them comes again leaves a part of it.
    pub(super) fn begin_eviction(&self, were_known: bool) {
        let mut is_known = self.noted.lock_known();
        self.evictions.fetch_add(1, Ordering::SeqCst);
        if !were_known || !*is_known {
            return;
        }
        let directory = self.lock_directory();
        if self.nameless.load(Ordering::Acquire) {
            return;
        }
        match self.disk.remove_file(&directory.join(KNOWN)) {
            // Nothing can be written there, then, nor taken away.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::debug!(layer = %directory.display(), %error, "what is known of a layer stays");
            }
            _ => *is_known = false,
        }
    }

    /// The layer is removed: nothing is written into its directory any more, which may be a new layer's
    /// of the same index soon.
    pub(crate) fn lose_name(&self) {
        let _record = self.lock_record();
        let _directory = self.lock_directory();
        self.nameless.store(true, Ordering::Release);
    }

    /// Notes on the disk when the layer was last read, as the time its device was changed.
    fn note_use(&self) {
        let (file, last) = (self.device.file(), self.uses.last());
        let noted = file.metadata().and_then(|found| found.modified());
        if noted.is_ok_and(|noted| noted + NOTE_EVERY < last) {
            // Only the order of eviction after a restart depends on it.
            let _ = file.set_modified(last);
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
