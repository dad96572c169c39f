//! The index of a layer: its metadata image, its chunks, its implied directories.
//!
//! ```text
//! blob:   [zstd frame]…[zstd frame] [skippable frame: index] [skippable frame: footer]
//! index:  header · section table · metadata image · chunk table · implied directories · decoder
//! ```
//!
//! `docs/FORMAT.md` describes every byte. [`IndexParts`] writes, [`Index`] reads in place without
//! copying, [`StoredIndex`] is the compressed form that lies in the blob.

mod header;
mod read;
mod stored;
#[cfg(test)]
mod tests;
mod write;

pub use header::{SKIPPABLE_HEADER_LEN, SKIPPABLE_MAGIC, VERSION};
pub use read::{Index, IndexError};
pub use stored::{FOOTER_FRAME_LEN, Footer, FooterError, StoredError, StoredIndex, open_stored};
pub use write::IndexParts;

use crate::digest::ChunkDigest;

/// One row of the chunk table: a run of the tar, and the frame that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Where the chunk begins in the tar.
    pub offset: u64,
    /// Its length in the tar, `1..=CHUNK_BYTES_MAX`.
    pub len: u32,
    /// Where its frame begins in the layer blob.
    pub stored_offset: u64,
    /// The length of its frame, `1..=FRAME_BYTES_MAX`.
    pub stored_len: u32,
    /// Digest of the frame, checked before the decoder sees it.
    pub frame: ChunkDigest,
    /// Digest of the content, which names the chunk for reuse and between peers.
    pub content: ChunkDigest,
}

impl Chunk {
    /// Where the chunk ends in the tar.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len.into())
    }

    /// The bytes of the blob that hold its frame.
    pub fn stored_range(&self) -> std::ops::Range<u64> {
        self.stored_offset..self.stored_offset.saturating_add(self.stored_len.into())
    }
}
