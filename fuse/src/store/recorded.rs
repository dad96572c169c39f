//! Reading `layer.json` from the disk, up to a limit. What is in it is the matter of [`super::record`], which does no I/O.

use std::io;
use std::path::Path;

use larder_registry::bounded;

use super::record::Record;
use super::stored::{LayerStoreError, at};

/// Longest record that is read, bytes: 256 patched images of 250 bytes each, and a lie that quotes the longest path, of
/// which quoting and JSON make up to twelve for each; twice that, for what later builds add.
const RECORD_BYTES_MAX: u64 = 256 << 10;

impl Record {
    /// What the file at `path` says.
    pub(super) fn read(path: &Path) -> Result<Self, LayerStoreError> {
        let bytes = bounded::read(path, RECORD_BYTES_MAX).map_err(|error| match error.kind() {
            // Nobody wrote that: the next attempt finds the same.
            io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => {
                LayerStoreError::Record(error.to_string())
            }
            _ => at(path)(error),
        })?;
        Self::decode(&bytes).map_err(LayerStoreError::Record)
    }
}
