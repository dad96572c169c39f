//! One layer in the store.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larder_proto::annotation::IndexLocation;
use larder_proto::digest::{Algorithm, Digest};
use larder_proto::erofs::{Image, ImageError};
use larder_proto::index::{Chunk, Index, IndexError};
use larder_proto::limits;
use larder_proto::verified::Verified;

use super::claims::{claim_what_is_there, claim_zeros};
use super::device::{Device, Published};
use super::disk::Disk;
use super::floor::Floor;
use super::presence::{ChunkState, Presence};
use super::record::{PATCHES_MAX, Patch, Proof, Record};
use crate::sys::Mapping;

/// A layer whose files are open and whose index and metadata image were validated.
#[derive(Debug)]
pub(crate) struct StoredLayer {
    directory: PathBuf,
    record: Mutex<Record>,
    index: Index<Mapping>,
    image: Arc<Image<Mapping>>,
    device: Device,
    presence: Presence,
    disk: Arc<dyn Disk>,
    floor: Arc<Floor>,
    ended: Ended,
}

/// How the run before this one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Everything it had was written down.
    Orderly,
    /// It was killed, or the disk failed it.
    Badly,
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

fn at(path: &Path) -> impl FnOnce(io::Error) -> LayerStoreError + '_ {
    move |error| LayerStoreError::Io {
        path: path.to_owned(),
        error,
    }
}

fn sum(bytes: &[u8]) -> String {
    Digest::from_bytes(*Algorithm::Blake3.digest(bytes).as_bytes()).hex()
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
        let index = Index::open(new.index)?;
        Image::open(index.metadata(), index.tar_len())?;
        disk.make_directory(directory).map_err(at(directory))?;
        let record = Record {
            blob: new.blob,
            location: new.location,
            slot: new.slot,
            index_sum: sum(new.index),
            meta_sum: sum(index.metadata()),
            proof: Proof::Pending,
            patches: Vec::new(),
        };
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

    /// Opens and validates what [`StoredLayer::create`] wrote, in this run or a former one, which
    /// `ended` in order or not.
    pub(crate) fn open(
        directory: PathBuf,
        disk: Arc<dyn Disk>,
        floor: Arc<Floor>,
        ended: Ended,
    ) -> Result<Self, LayerStoreError> {
        let path = directory.join("layer.json");
        let bytes = std::fs::read(&path).map_err(at(&path))?;
        let record = Record::decode(&bytes).map_err(LayerStoreError::Record)?;
        let index = map(&directory.join("index"))?;
        if sum(index.as_ref()) != record.index_sum {
            return Err(LayerStoreError::Changed("index"));
        }
        let index = Index::open(index)?;
        let meta = map(&directory.join("meta"))?;
        if sum(meta.as_ref()) != record.meta_sum {
            return Err(LayerStoreError::Changed("meta"));
        }
        let image = Arc::new(Image::open(meta, index.tar_len())?);
        let path = directory.join("device");
        let is_new = !path.exists();
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .and_then(|file| Device::new(file, disk.clone(), device_len(index.tar_len())))
            .map_err(at(&path))?;
        let presence = claims(&directory, &index, &device, is_new, ended);
        Ok(Self {
            presence,
            record: Mutex::new(record),
            directory,
            index,
            image,
            device,
            disk,
            floor,
            ended,
        })
    }

    /// Whether claims are guesses, from what the device file holds, since the run before ended badly.
    pub(crate) fn is_guessed(&self) -> bool {
        self.ended == Ended::Badly
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
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

    #[cfg(all(test, feature = "shuttle"))]
    pub(crate) fn device_file(&self) -> &File {
        self.device.file()
    }

    /// Length of the device, bytes: the tar's, rounded up to whole blocks.
    pub(crate) fn device_len(&self) -> u64 {
        device_len(self.index.tar_len())
    }

    pub(crate) fn record(&self) -> Record {
        self.lock_record().clone()
    }

    /// Whether all chunks that hold the bytes `offset..end` can be read without verifying.
    pub(crate) fn has(&self, offset: u64, end: u64) -> bool {
        let is_there = |row| self.presence.state(row) == ChunkState::Verified;
        self.index.rows(offset..end).all(is_there)
    }

    /// Reads bytes of the device. The caller has found their chunks verified, by
    /// [`StoredLayer::has`] or by the fetcher's word.
    pub(crate) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.device.read(bytes, offset)
    }

    /// Puts a chunk's content into the device and tells every later reader that it is there.
    pub(crate) fn publish(
        &self,
        row: usize,
        chunk: &Chunk,
        content: &Verified<Vec<u8>>,
    ) -> Published {
        if !self.floor.has_room() {
            return Published::NotStored;
        }
        match self.device.write(chunk, content) {
            Ok(()) => {
                self.presence.set_verified(row);
                self.floor.wrote();
                Published::Stored
            }
            Err(error) => {
                self.floor.write_failed(&error);
                Published::NotStored
            }
        }
    }

    /// Verifies a chunk that a former run left; a damaged one is forgotten, and its place cleared.
    pub(crate) fn verify(&self, row: usize, chunk: &Chunk) -> bool {
        let mut content = vec![0; chunk.len as usize];
        let intact = self.device.read(&mut content, chunk.offset).is_ok()
            && Verified::check(&content, &chunk.content).is_ok();
        if intact {
            self.presence.set_verified(row);
        } else {
            self.presence.set_absent(row);
            if let Err(error) = self.device.clear(chunk) {
                self.floor.write_failed(&error);
            }
        }
        intact
    }

    /// Makes the data durable, and then writes down which chunks are there.
    pub(crate) fn sync(&self) -> Result<(), LayerStoreError> {
        if !self.presence.take_dirty() {
            return Ok(());
        }
        let path = self.directory.join("present");
        // The bits are taken before the sync: what is set later is in the next round.
        let bits = self.presence.encode();
        let written = self
            .device
            .sync()
            .and_then(|()| self.disk.replace(&path, &bits));
        written.map_err(|error| {
            self.presence.mark_dirty();
            at(&path)(error)
        })
    }

    /// Writes down what the proof found.
    pub(crate) fn set_proof(&self, proof: Proof) -> Result<(), LayerStoreError> {
        let mut record = self.lock_record();
        record.proof = proof;
        self.save(&record)
    }

    /// The file of the patched image named `key`, written by `make` unless it is there, with its
    /// validated content and its slot.
    pub(crate) fn patched(
        &self,
        key: &str,
        new_slot: impl FnOnce() -> io::Result<u32>,
        make: impl FnOnce() -> Result<Vec<u8>, String>,
    ) -> Result<(PathBuf, Image<Mapping>, u32), LayerStoreError> {
        let path = self.directory.join(format!("meta-{key}"));
        let mut record = self.lock_record();
        if let Some(patch) = record.patches.iter().find(|patch| patch.key == key)
            && let Ok(meta) = map(&path)
            && sum(meta.as_ref()) == patch.sum
        {
            let image = Image::open(meta, self.index.tar_len())?;
            return Ok((path, image, patch.slot));
        }
        record.patches.retain(|patch| patch.key != key);
        if record.patches.len() >= PATCHES_MAX {
            return Err(LayerStoreError::TooManyPatches);
        }
        let bytes = make().map_err(LayerStoreError::Record)?;
        self.disk.replace(&path, &bytes).map_err(at(&path))?;
        let slot = new_slot().map_err(at(&path))?;
        record.patches.push(Patch {
            key: key.to_owned(),
            slot,
            sum: sum(&bytes),
        });
        self.save(&record)?;
        let image = Image::open(map(&path)?, self.index.tar_len())?;
        Ok((path, image, slot))
    }

    /// The patched images that are there, with their slots: for a daemon that takes over, and so must
    /// serve each before it knows who wants it.
    pub(crate) fn patches(&self) -> Vec<(u32, Image<Mapping>)> {
        let record = self.record();
        let open = |patch: &Patch| {
            let path = self.directory.join(format!("meta-{}", patch.key));
            let meta = map(&path)
                .ok()
                .filter(|meta| sum(meta.as_ref()) == patch.sum)?;
            let image = Image::open(meta, self.index.tar_len()).ok()?;
            Some((patch.slot, image))
        };
        record.patches.iter().filter_map(open).collect()
    }

    fn save(&self, record: &Record) -> Result<(), LayerStoreError> {
        let path = self.directory.join("layer.json");
        self.disk
            .replace(&path, &record.encode())
            .map_err(at(&path))
    }

    fn lock_record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a former run left, by the bits it wrote down, and after a bad end by the file itself.
fn claims(
    directory: &Path,
    index: &Index<Mapping>,
    device: &Device,
    is_new: bool,
    ended: Ended,
) -> Presence {
    let written = std::fs::read(directory.join("present")).unwrap_or_default();
    let written = Presence::decode(&written, index.chunk_count());
    let incomplete = ended == Ended::Badly || written.is_none();
    let presence = written.unwrap_or_else(|| Presence::empty(index.chunk_count()));
    if is_new {
        claim_zeros(&presence, index);
    } else if incomplete {
        claim_what_is_there(&presence, index, device.file());
    }
    presence
}

fn device_len(tar_len: u64) -> u64 {
    tar_len.next_multiple_of(limits::BLOCK)
}

fn map(path: &Path) -> Result<Mapping, LayerStoreError> {
    File::open(path)
        .and_then(|file| Mapping::of(&file))
        .map_err(at(path))
}
