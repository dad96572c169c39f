//! What the files of one layer take on the disk.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use super::ledger::Ledger;
use super::stored::StoredLayer;
use crate::sync::Mutex;

/// The unit of `st_blocks`, whatever the file system's own.
const BLOCK: u64 = 512;

/// Blocks on the disk, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnDisk {
    /// The device: chunks of the layer.
    pub device: u64,
    /// Index, metadata images, bits and record, and their directory.
    pub beside: u64,
}

impl OnDisk {
    /// Both together.
    pub fn total(self) -> u64 {
        self.device + self.beside
    }
}

/// What a layer was last seen to take, as the ledger has it.
#[derive(Debug)]
pub(crate) struct Occupied {
    ledger: Arc<Ledger>,
    seen: Mutex<OnDisk>,
}

impl Occupied {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        let seen = Mutex::default();
        Self { ledger, seen }
    }

    /// Says what is taken by something that has no device.
    pub(super) fn set_beside(&self, bytes: u64) {
        self.change(|seen| seen.beside = bytes);
    }

    /// Looks at the device again.
    pub(super) fn measure_device(&self, file: &File) {
        self.change(|seen| {
            if let Ok(found) = file.metadata() {
                seen.device = found.blocks() * BLOCK;
            }
        });
    }

    fn change(&self, change: impl FnOnce(&mut OnDisk)) -> OnDisk {
        // Held throughout, so that an older look never overwrites a newer one.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.total();
        change(&mut seen);
        self.ledger.changed(before, seen.total());
        *seen
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.change(|seen| *seen = OnDisk::default());
    }
}

impl StoredLayer {
    /// What it was last seen to take.
    pub(crate) fn on_disk(&self) -> OnDisk {
        self.occupied.change(|_| {})
    }

    /// Looks at all files of the layer.
    pub(crate) fn measure(&self) -> OnDisk {
        self.occupied.change(|seen| {
            if let Ok(found) = self.device.file().metadata() {
                seen.device = found.blocks() * BLOCK;
            }
            seen.beside = beside(&self.directory());
        })
    }
}

/// Bytes of the directory `path` and of everything in it.
pub(super) fn taken(path: &Path) -> u64 {
    let device = std::fs::metadata(path.join("device"));
    beside(path) + device.map_or(0, |found| found.blocks() * BLOCK)
}

/// Bytes of the directory `path` and of everything in it but the device.
fn beside(path: &Path) -> u64 {
    let own = std::fs::metadata(path).map_or(0, |found| found.blocks() * BLOCK);
    let Ok(entries) = std::fs::read_dir(path) else {
        return own;
    };
    let others = entries.flatten().filter(|one| one.file_name() != "device");
    let blocks = others.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * BLOCK));
    own + blocks.sum::<u64>()
}
