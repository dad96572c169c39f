//! Room for what a layer cannot do without: its index and its metadata images.
//!
//! Chunks stop at the free-space floor, and reads go on without keeping them. Without its index a layer is
//! not lazy at all, and unpacking it takes a hundred times as much; so indexes may go below the floor, by
//! half of what is to be left free. That is never used up, and large ones are refused before small ones.

use super::floor::Promised;
use super::ledger::Reserved;
use super::stored::{LayerStoreError, Rules};

/// Room that was granted, until what it is for is written and counted.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    _on_disk: Promised<'a>,
    _in_store: Reserved<'a>,
}

impl Rules {
    /// Takes room for `bytes` of index and metadata images.
    pub(crate) fn room_for(&self, bytes: u64) -> Result<Room<'_>, LayerStoreError> {
        let promised = self.floor.promise(bytes);
        let on_disk = promised.map_err(|lacking| LayerStoreError::DiskFull { bytes, lacking })?;
        let max = self.ledger.limit().unwrap_or_default();
        let reserved = self.ledger.reserve(bytes, true);
        Ok(Room {
            _on_disk: on_disk,
            _in_store: reserved.ok_or(LayerStoreError::LimitReached { bytes, max })?,
        })
    }
}
