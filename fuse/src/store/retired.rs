//! Layers that were removed while somebody had files of them open: `store/.retired-<slot>/`.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use tracing::warn;

use super::direct::is_held_in;
use super::occupied::taken;
use super::record::Record;
use super::root::StoreRoot;
use super::stored::{LayerStoreError, StoredLayer};

/// The beginning of the name of a layer that was removed while somebody had it open; its slot follows.
pub(super) const RETIRED: &str = ".retired-";

/// In such a directory: how whoever added the layer finds its sources again.
const ORIGIN: &str = "origin";

/// Longest [`ORIGIN`] that is read back, bytes: a hundred places.
const ORIGIN_BYTES_MAX: u64 = 64 << 10;

impl StoreRoot {
    /// Takes a layer away whose files somebody has open: it has no name any more, and is served under its
    /// slots until [`StoreRoot::free_retired`], also by the next daemons.
    pub(crate) fn retire(&self, layer: &StoredLayer, origin: &[u8]) -> io::Result<()> {
        let slot = layer.record().slot;
        // On a full disk the next daemon does without: what is in the store is served.
        let _ = self.disk.replace(&layer.directory().join(ORIGIN), origin);
        layer.move_to(&self.retired(slot))
    }

    /// Slots of layers that were retired and not freed, with all slots each is served under.
    pub(crate) fn all_retired(&self) -> Vec<(u32, Vec<u32>)> {
        let Ok(entries) = std::fs::read_dir(self.root().join("store")) else {
            return Vec::new();
        };
        let slot = |entry: std::fs::DirEntry| {
            let name = entry.file_name();
            let slot = name.to_str()?.strip_prefix(RETIRED)?.parse().ok()?;
            // Without a record it can only be freed.
            let record = Record::read(&entry.path().join("layer.json")).ok();
            Some((slot, record.map_or(vec![slot], |record| record.slots())))
        };
        let all: Vec<_> = entries.flatten().filter_map(slot).collect();
        if let Some(last) = all.iter().flat_map(|(_, slots)| slots).max() {
            self.skip_slots(*last);
        }
        all
    }

    /// Opens one of [`StoreRoot::all_retired`], with its origin.
    pub(crate) fn open_retired(
        &self,
        slot: u32,
    ) -> Result<(StoredLayer, Vec<u8>), LayerStoreError> {
        let directory = self.retired(slot);
        let mut origin = Vec::new();
        if let Ok(file) = File::open(directory.join(ORIGIN)) {
            let _ = file.take(ORIGIN_BYTES_MAX).read_to_end(&mut origin);
        }
        Ok((self.open_layer(directory)?, origin))
    }

    /// Deletes a retired layer that nobody has open any more.
    pub(crate) fn free_retired(&self, slot: u32) {
        if let Err(error) = self.disk.remove_directory(&self.retired(slot)) {
            warn!(slot, %error, "a removed layer still takes space; the next full start frees it");
        }
        self.forget_verified(slot);
    }

    /// Whether the kernel still reads the device of a retired layer past us.
    pub(crate) fn is_retired_held(&self, slot: u32) -> bool {
        is_held_in(&self.retired(slot), &*self.disk)
    }

    /// What a retired layer takes on the disk, if it could not be opened: bytes of its files.
    pub(crate) fn retired_bytes(&self, slot: u32) -> u64 {
        taken(&self.retired(slot))
    }

    /// What was verified of the layer in `slot` is of no use any more.
    pub(crate) fn forget_verified(&self, slot: u32) {
        if let Some(vouched) = &self.rules.vouched {
            vouched.free(slot);
        }
    }

    fn retired(&self, slot: u32) -> PathBuf {
        let name = format!("{RETIRED}{slot}");
        self.root().join("store").join(name)
    }
}
