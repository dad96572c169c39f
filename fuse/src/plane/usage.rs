//! What the store takes, byte by byte.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Plane;
use crate::layer::LayerId;

/// What the store takes on its disk, in bytes of blocks, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreUsage {
    /// What it may take, if there is a limit.
    pub limit: Option<u64>,
    /// What it takes: the directory `store`, as `du` counts it. Always `data` and `overhead`.
    pub total: u64,
    /// Chunks of layers.
    pub data: u64,
    /// Indexes, metadata images, those of merged chains included, bits, records and directories.
    pub overhead: u64,
    /// Of `data`, what could be evicted at once or when it is cold.
    pub evictable: u64,
    /// Of `data`, what is pinned.
    pub pinned: u64,
    /// Of all, what layers take that were removed and are still open somewhere.
    pub removed: u64,
    /// What is to stay free on the disk: below it, nothing that is fetched is kept.
    pub floor: u64,
}

impl Plane {
    /// The names a layer is pinned by.
    pub(crate) fn pins(&self, layer: &LayerId) -> Vec<String> {
        self.store.pins().names(&layer.0)
    }

    pub(super) fn usage(&self) -> StoreUsage {
        let rules = self.store.rules();
        let mut usage = StoreUsage {
            limit: rules.ledger.limit(),
            floor: rules.floor.bytes(),
            overhead: blocks(&self.store.root().join("store")),
            ..StoreUsage::default()
        };
        let layers: Vec<_> = self.lock_layers().values().cloned().collect();
        for layer in layers {
            let on_disk = layer.stored().measure();
            usage.data += on_disk.device;
            usage.overhead += on_disk.beside;
            if self.store.pins().has(&layer.id().0) {
                usage.pinned += on_disk.device;
            } else {
                usage.evictable += self.evictable(&layer);
            }
        }
        for layer in self.removed() {
            let on_disk = layer.stored().measure();
            usage.data += on_disk.device;
            usage.overhead += on_disk.beside;
            usage.removed += on_disk.total();
            usage.evictable += layer.evictable();
        }
        usage.overhead += self.store.merged_bytes();
        let unopened = self.unopened_bytes();
        usage.overhead += unopened;
        usage.removed += unopened;
        usage.total = usage.data + usage.overhead;
        usage
    }
}

fn blocks(path: &Path) -> u64 {
    std::fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512)
}
