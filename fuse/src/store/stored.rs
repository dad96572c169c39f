//! One layer in the store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use larder_proto::annotation::IndexLocation;
use larder_proto::digest::Digest;
use larder_proto::erofs::{Image, ImageError};
use larder_proto::index::{Chunk, Index, IndexError};
use larder_proto::limits;
use larder_proto::verified::Verified;
use larder_registry::bounded;

use super::device::{Device, Published};
use super::direct::{DirectMark, was_read_lately};
use super::disk::Disk;
use super::floor::Floor;
use super::handed::Handed;
use super::intact::{open_meta, write_over};
use super::kept::Kept;
use super::ledger::Ledger;
use super::noted::{Before, Noted};
use super::occupied::Occupied;
use super::presence::Presence;
use super::record::{PATCHES_MAX, Patch, Proof, Record, sum};
use super::reread::STRIPES;
use super::uses::Uses;
use super::vouched::{Binding, OfLayer, Vouched};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, RwLock};
use crate::sys::Mapping;

/// How long nothing of a layer is written after its device could not be read: readers are answered
/// from memory, and caching resumes within the same time as after a full disk.
const SHAKY: Duration = Duration::from_secs(4);

/// A layer whose files are open and whose index and metadata image were validated.
#[derive(Debug)]
pub(crate) struct StoredLayer {
    /// Another one once the layer is removed while somebody has it open.
    directory: Mutex<PathBuf>,
    record: Mutex<Record>,
    pub(super) index: Index<Mapping>,
    image: Arc<Image<Mapping>>,
    pub(super) device: Device,
    pub(super) presence: Presence,
    /// The memory behind its verified bits, if a supervisor keeps it.
    vouched: Option<OfLayer>,
    /// Held for reading while a chunk is written or verified, for writing while some are evicted.
    pub(super) writing: RwLock<()>,
    /// Counts how often chunks were taken away: who read meanwhile reads again.
    pub(super) evictions: AtomicU64,
    pub(super) uses: Uses,
    pub(super) handed: Handed,
    pub(super) direct: DirectMark,
    pub(super) occupied: Occupied,
    /// When the disk last failed to give bytes back.
    failed: Mutex<Option<Instant>>,
    /// Set with record and directory locked.
    pub(super) nameless: AtomicBool,
    pub(super) noted: Noted,
    pub(super) disk: Arc<dyn Disk>,
    /// Held by who finds a chunk damaged.
    pub(super) condemning: Mutex<()>,
    /// Held by who reads a chunk from the disk, for as long as that takes.
    pub(super) bringing: [Mutex<()>; STRIPES],
    /// Chunks that were found damaged.
    pub(super) damaged: AtomicU64,
    /// Which layer it is among those that are kept in memory.
    pub(super) number: u64,
    pub(super) rules: Rules,
}

/// What all layers of a store share: whether there is room, what daemons before verified, and chunks in memory.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) floor: Arc<Floor>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) vouched: Option<Arc<Vouched>>,
    pub(crate) kept: Arc<Kept>,
}

/// How the run before this one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything it had was written down.
    Orderly,
    /// It was killed, or the disk failed it.
    Badly,
}

/// What became of a chunk that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    /// Its bytes are right.
    Intact,
    /// They are not, or cannot be read.
    Damaged,
    /// It was taken away since.
    Evicted,
}

/// Why a layer's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerStoreError {
    /// A file operation failed.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// `layer.json` does not describe a layer.
    #[error("layer.json: {0}")]
    Record(String),
    /// A file is not what was written.
    #[error("{0} has changed since it was written")]
    Changed(&'static str),
    /// The index is not one.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The metadata image is not one of ours.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Its directory is gone, or another layer's by now.
    #[error("the layer was removed meanwhile")]
    Removed,
    /// The disk is nearly full, and what can be evicted does not change that.
    #[error(
        "its index and metadata take {bytes} bytes, {lacking} more than the disk has to give: half of \
         min_free stays free whatever is pulled; free some disk space"
    )]
    DiskFull {
        /// What is to be written.
        bytes: u64,
        /// How much of it there is no room for.
        lacking: u64,
    },
    /// The store is full, and nothing more can be evicted.
    #[error(
        "its index and metadata take {bytes} bytes, and store_bytes_max ({max} bytes) is reached by \
         indexes and by what is pinned or in use: raise it, or unpin or remove images"
    )]
    LimitReached {
        /// What is to be written.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Too many different parents.
    #[error("the layer is used on more than {PATCHES_MAX} different parents")]
    TooManyPatches,
}

/// What a new layer is made of.
#[derive(Debug)]
pub(crate) struct NewLayer<'a> {
    pub(crate) blob: Digest,
    pub(crate) location: IndexLocation,
    /// The decoded index, verified against `location`.
    pub(crate) index: &'a [u8],
    pub(crate) slot: u32,
}

impl<'a> NewLayer<'a> {
    /// Its index, which must be one we can use, and the record of a layer nothing is known of.
    fn check(&self) -> Result<(Index<&'a [u8]>, Record), LayerStoreError> {
        let index = Index::open(self.index)?;
        Image::open(index.metadata(), index.tar_len())?;
        let record = Record {
            blob: self.blob,
            location: self.location,
            slot: self.slot,
            index_sum: sum(self.index),
            meta_sum: sum(index.metadata()),
            proof: Proof::Pending,
            patches: Vec::new(),
        };
        Ok((index, record))
    }
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> LayerStoreError + '_ {
    move |error| LayerStoreError::Io {
        path: path.to_owned(),
        error,
    }
}

impl LayerStoreError {
    /// Whether the files may be in order, and only this attempt failed.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() != io::ErrorKind::NotFound)
    }
}

impl StoredLayer {
    /// Writes the files of a new layer into the new directory `directory`.
    pub(crate) fn create(
        directory: &Path,
        new: &NewLayer<'_>,
        disk: &dyn Disk,
    ) -> Result<(), LayerStoreError> {
        let (index, record) = new.check()?;
        disk.make_directory(directory).map_err(at(directory))?;
        for (name, bytes) in [
            ("index", new.index),
            ("meta", index.metadata()),
            ("layer.json", &record.encode()),
        ] {
            let path = directory.join(name);
            disk.replace(&path, bytes).map_err(at(&path))?;
        }
        Ok(())
    }

    /// Writes anew what a layer lost of its files, beside a device file that is right or not, chunk by
    /// chunk: each is verified before anybody reads it.
    ///
    /// The kernel may have files of it mounted. They keep their places: what is right goes over what is wrong.
    pub(super) fn mend(
        directory: &Path,
        new: &NewLayer<'_>,
        disk: &dyn Disk,
    ) -> Result<(), LayerStoreError> {
        let (index, mut record) = new.check()?;
        let path = directory.join("layer.json");
        let before = Record::read(&path).ok();
        if let Some(before) = before.filter(|before| before.slot == new.slot) {
            record.patches = before.patches;
            // What was found true is looked at once more; what was found wrong was not rot.
            if let Proof::Quarantined(_) = before.proof {
                record.proof = before.proof;
            }
        }
        let place = directory.join("index");
        disk.replace(&place, new.index).map_err(at(&place))?;
        let place = directory.join("meta");
        write_over(disk, &place, index.metadata()).map_err(at(&place))?;
        disk.replace(&path, &record.encode()).map_err(at(&path))
    }

    /// Opens and validates what [`StoredLayer::create`] wrote, in this run or a former one, which
    /// `ended` in order or not.
    pub(crate) fn open(
        directory: PathBuf,
        disk: Arc<dyn Disk>,
        rules: Rules,
        ended: Ended,
    ) -> Result<Self, LayerStoreError> {
        let record = Record::read(&directory.join("layer.json"))?;
        let index = map(&directory.join("index"))?;
        let has_its_length = index.as_ref().len() as u64 == record.location.len;
        if !has_its_length || sum(index.as_ref()) != record.index_sum {
            return Err(LayerStoreError::Changed("index"));
        }
        let index = Index::open(index)?;
        let meta = open_meta(&directory, &index, &record, &*disk)?;
        let image = Arc::new(Image::open(meta, index.tar_len())?);
        let path = directory.join("device");
        let len = device_len(index.tar_len());
        let before = Before::of(&path, len, ended);
        let device = Device::open(&path, disk.clone(), len).map_err(at(&path))?;
        let noted = Noted::found(&directory, before, &*disk);
        let mut presence = Noted::claims(&directory, &index, &device, before);
        let all = rules.vouched.as_ref();
        let vouched = all.and_then(|all| bits(all, &record, index.chunk_count(), &device));
        if let Some(bits) = &vouched {
            presence.believe(Box::new(bits.clone()));
        }
        let last = device.file().metadata().and_then(|found| found.modified());
        let layer = Self {
            writing: RwLock::default(),
            evictions: AtomicU64::new(0),
            uses: Uses::new(index.chunk_count(), last.unwrap_or(SystemTime::UNIX_EPOCH)),
            handed: Handed::new(index.chunk_count()),
            direct: DirectMark::found(&directory, &*disk),
            occupied: Occupied::new(rules.ledger.clone()),
            presence,
            vouched,
            record: Mutex::new(record),
            directory: Mutex::new(directory),
            index,
            image,
            device,
            failed: Mutex::default(),
            nameless: AtomicBool::new(false),
            noted,
            disk,
            condemning: Mutex::new(()),
            bringing: std::array::from_fn(|_| Mutex::new(())),
            damaged: AtomicU64::new(0),
            number: rules.kept.layer(),
            rules,
        };
        layer.measure();
        Ok(layer)
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.lock_directory().clone()
    }

    /// Keeps the directory where it is, and the layer's own.
    pub(super) fn lock_directory(&self) -> MutexGuard<'_, PathBuf> {
        let directory = self.directory.lock();
        directory.unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives its directory the name `place`. What is written to it meanwhile finds it there.
    pub(super) fn move_to(&self, place: &Path) -> io::Result<()> {
        // Whoever writes holds one of them.
        let _alone = self.writing.write().unwrap_or_else(PoisonError::into_inner);
        let _record = self.lock_record();
        let mut directory = self.lock_directory();
        self.disk.rename(&directory, place)?;
        place.clone_into(&mut directory);
        // A directory of its own again.
        self.nameless.store(false, Ordering::Release);
        Ok(())
    }

    pub(crate) fn index(&self) -> &Index<Mapping> {
        &self.index
    }

    pub(crate) fn image(&self) -> &Arc<Image<Mapping>> {
        &self.image
    }

    pub(crate) fn presence(&self) -> &Presence {
        &self.presence
    }

    /// Length of the device, bytes: the tar's, rounded up to whole blocks.
    pub(crate) fn device_len(&self) -> u64 {
        device_len(self.index.tar_len())
    }

    pub(crate) fn record(&self) -> Record {
        self.lock_record().clone()
    }

    /// Notes that the disk could not give back what was written: for a while nothing is.
    pub(crate) fn read_failed(&self) {
        *self.lock_failed() = Some(Instant::now());
    }

    fn is_shaky(&self) -> bool {
        let failed = *self.lock_failed();
        failed.is_some_and(|at| at.elapsed() < SHAKY)
    }

    /// Whether a chunk may find room now, as far as that can be told without waiting.
    pub(crate) fn may_have_room(&self) -> bool {
        !self.is_shaky() && self.rules.floor.may_have_room()
    }

    /// When the layer was last read.
    pub(crate) fn last_used(&self) -> SystemTime {
        self.uses.last()
    }

    /// How often chunks were taken away.
    pub(crate) fn evictions(&self) -> u64 {
        self.evictions.load(Ordering::SeqCst)
    }

    /// Puts a chunk's content into the device and tells every later reader that it is there.
    pub(crate) fn publish(
        &self,
        row: usize,
        chunk: &Chunk,
        content: &Verified<Vec<u8>>,
        is_awaited: bool,
    ) -> Published {
        let _writing = self.writing.read().unwrap_or_else(PoisonError::into_inner);
        let ledger = &self.rules.ledger;
        if self.is_shaky() || !self.index.is_in_place(row) {
            return Published::NotStored;
        }
        if !self.rules.floor.has_room() {
            ledger.press();
            return Published::NotStored;
        }
        let Some(_room) = ledger.reserve(chunk.len.into(), is_awaited) else {
            return Published::NotStored;
        };
        if self.device.is_cut() {
            // What else was behind its end is no more what the next daemon is told.
            self.presence.expire();
        }
        let written = self.device.restore_length();
        let written = written.and_then(|()| self.device.write(chunk, content));
        self.occupied.measure_device(&self.device.file());
        match written {
            Ok(()) => {
                if is_awaited {
                    self.uses.touch(row);
                }
                self.presence.set_verified(row);
                self.rules.floor.wrote();
                Published::Stored
            }
            Err(error) => {
                self.rules.floor.write_failed(&error);
                ledger.press();
                Published::NotStored
            }
        }
    }

    /// Writes down what the proof found.
    pub(crate) fn set_proof(&self, proof: Proof) -> Result<(), LayerStoreError> {
        let mut record = self.lock_record();
        record.proof = proof;
        self.save(&record)
    }

    /// The file of the patched image named `key`, written by `make` unless it is there, with its
    /// validated content and its slot. If it is the `former` one byte for byte, it has the slot of that, and
    /// its file: the kernel may know both.
    pub(crate) fn patched(
        &self,
        key: &str,
        former: Option<Patch>,
        new_slot: impl FnOnce() -> io::Result<u32>,
        make: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<(PathBuf, Image<Mapping>, u32), LayerStoreError> {
        let path = self.directory().join(format!("meta-{key}"));
        let mut record = self.lock_record();
        if let Some(patch) = record.patches.iter().find(|patch| patch.key == key)
            && let Ok(meta) = map(&path)
            && sum(meta.as_ref()) == patch.sum
        {
            let image = Image::open(meta, self.index.tar_len())?;
            return Ok((path, image, patch.slot));
        }
        let known = record.patches.iter().find(|patch| patch.key == key);
        let former = known.cloned().or(former);
        record.patches.retain(|patch| patch.key != key);
        if record.patches.len() >= PATCHES_MAX {
            return Err(LayerStoreError::TooManyPatches);
        }
        let bytes = make().map_err(LayerStoreError::Record)?;
        let _room = self.rules.room_for(bytes.len() as u64)?;
        let sum = sum(&bytes);
        let slot = if let Some(former) = former.filter(|former| former.sum == sum) {
            write_over(&*self.disk, &path, &bytes).map_err(at(&path))?;
            former.slot
        } else {
            self.disk.replace(&path, &bytes).map_err(at(&path))?;
            new_slot().map_err(at(&path))?
        };
        record.patches.push(Patch {
            key: key.to_owned(),
            slot,
            sum,
        });
        self.save(&record)?;
        self.measure();
        let image = Image::open(map(&path)?, self.index.tar_len())?;
        Ok((path, image, slot))
    }

    /// The patched images that are there, with their slots: for a daemon that takes over, and so must
    /// serve each before it knows who wants it.
    pub(crate) fn patches(&self) -> Vec<(u32, Image<Mapping>)> {
        let record = self.record();
        let open = |patch: &Patch| {
            let path = self.directory().join(format!("meta-{}", patch.key));
            let meta = map(&path)
                .ok()
                .filter(|meta| sum(meta.as_ref()) == patch.sum)?;
            let image = Image::open(meta, self.index.tar_len()).ok()?;
            Some((patch.slot, image))
        };
        record.patches.iter().filter_map(open).collect()
    }

    /// The device is about to be replaced: nobody believes what was verified of the old one.
    pub(super) fn unbind(&self) {
        if let Some(bits) = &self.vouched {
            bits.unbind();
        }
    }

    /// What is verified from now on is about the device that is there now.
    pub(super) fn bind(&self) {
        let Some(bits) = &self.vouched else { return };
        // Without it, the next daemon verifies the layer itself.
        if let Ok(binding) = Binding::of(&self.lock_record().index_sum, &self.device.file()) {
            bits.bind(binding);
        }
    }

    /// Notes that a place of the device could not be cleared; it is overwritten when its chunk comes.
    pub(super) fn clear_failed(&self, error: &io::Error) {
        self.rules.floor.write_failed(error);
    }

    /// The device is a new file.
    pub(super) fn unmark_direct(&self) {
        self.direct.clear(&self.directory(), &*self.disk);
    }

    pub(super) fn mark_direct(&self) -> bool {
        if !self.is_direct() {
            // What was read until now, by the proof, is nobody's second copy.
            let _ = was_read_lately(&self.device.file());
        }
        let marked = self.direct.set(&self.directory(), &*self.disk);
        if let Err(error) = &marked {
            tracing::warn!(layer = %self.directory().display(), %error,
                "cannot mark a layer as read by the kernel; it goes on through FUSE");
        }
        marked.is_ok()
    }

    /// The caller has the record locked.
    fn save(&self, record: &Record) -> Result<(), LayerStoreError> {
        if self.nameless.load(Ordering::Acquire) {
            return Err(LayerStoreError::Removed);
        }
        let path = self.directory().join("layer.json");
        self.disk
            .replace(&path, &record.encode())
            .map_err(at(&path))
    }

    fn lock_failed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn lock_record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bits of a layer that outlive the daemon, for its device as it is now.
fn bits(all: &Vouched, record: &Record, rows: usize, device: &Device) -> Option<OfLayer> {
    let binding = Binding::of(&record.index_sum, &device.file());
    let bits = binding.and_then(|binding| all.layer(record.slot, rows, binding));
    bits.unwrap_or_else(|error| {
        tracing::debug!(layer = %record.blob, %error, "what is verified is not kept for the next daemon");
        None
    })
}

fn device_len(tar_len: u64) -> u64 {
    tar_len.next_multiple_of(limits::BLOCK)
}

/// An index, or the metadata image of a layer. What is longer than any of them is not read.
pub(super) fn map(path: &Path) -> Result<Mapping, LayerStoreError> {
    let file = bounded::open(path).map_err(at(path))?;
    let found = file.metadata().map_err(at(path))?;
    if found.len() > limits::INDEX_BYTES_MAX {
        return Err(LayerStoreError::Changed("the length of a file"));
    }
    Mapping::of(&file).map_err(at(path))
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
