//! Directory blocks: a table of entries, then their names.

use super::format::{BLOCK, DIRENT_LEN, FileType, put, u16_at, u64_at};

/// One entry to be written.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: FileType,
}

/// Counts the bytes of a directory while its names pass by in order.
#[derive(Debug, Default)]
pub(super) struct Packing {
    full: usize,
    used: usize,
}

impl Packing {
    /// Adds a name; true if it begins a new block.
    pub(super) fn add(&mut self, name: &[u8]) -> bool {
        let needed = DIRENT_LEN + name.len();
        let fits = self.used + needed <= BLOCK;
        if fits {
            self.used += needed;
        } else {
            self.full += 1;
            self.used = needed;
        }
        !fits
    }

    /// The directory's size: whole blocks, then what the last one uses.
    pub(super) fn size(&self) -> usize {
        self.full * BLOCK + self.used
    }
}

/// Writes one block's `entries` to the front of `out`.
pub(super) fn encode_block(entries: &[NewEntry<'_>], out: &mut [u8]) {
    let mut name_at = entries.len() * DIRENT_LEN;
    for (i, entry) in entries.iter().enumerate() {
        let at = i * DIRENT_LEN;
        put(out, at, entry.nid.to_le_bytes());
        // Within a block of 512 bytes.
        let name_offset = u16::try_from(name_at).unwrap_or(u16::MAX);
        put(out, at + 8, name_offset.to_le_bytes());
        put(out, at + 10, [entry.file_type.dirent()]);
        out[name_at..name_at + entry.name.len()].copy_from_slice(entry.name);
        name_at += entry.name.len();
    }
}

/// One block, or the inlined end, of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    bytes: &'a [u8],
    count: usize,
}

/// An entry of a [`Block`].
#[derive(Debug, Clone, Copy)]
pub(super) struct RawEntry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

impl<'a> Block<'a> {
    /// The block in `bytes`, which are at most [`BLOCK`].
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let table = usize::from(u16_at(bytes, 8)).min(bytes.len());
        Self {
            bytes,
            count: table / DIRENT_LEN,
        }
    }

    /// Number of entries.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Entry `i`, unless it does not lie within the block.
    pub(super) fn entry(&self, i: usize) -> Option<RawEntry<'a>> {
        if i >= self.count {
            return None;
        }
        let at = i * DIRENT_LEN;
        let start = usize::from(u16_at(self.bytes, at + 8));
        let name = if i + 1 < self.count {
            let end = usize::from(u16_at(self.bytes, at + DIRENT_LEN + 8));
            self.bytes.get(start..end)?
        } else {
            let rest = self.bytes.get(start..)?;
            let end = rest.iter().position(|&b| b == 0).unwrap_or(rest.len());
            &rest[..end]
        };
        Some(RawEntry {
            name,
            nid: u64_at(self.bytes, at),
            file_type: self.bytes[at + 10],
        })
    }

    /// Place of `name`, by binary search.
    pub(super) fn find(&self, name: &[u8]) -> Option<RawEntry<'a>> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = usize::midpoint(low, high);
            let entry = self.entry(middle)?;
            match entry.name.cmp(name) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(entry),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Whether the block is laid out as [`encode_block`] lays it out.
    pub(super) fn is_canonical(&self) -> bool {
        let table = self.count * DIRENT_LEN;
        let mut expected = table;
        for i in 0..self.count {
            let at = i * DIRENT_LEN;
            if usize::from(u16_at(self.bytes, at + 8)) != expected || self.bytes[at + 11] != 0 {
                return false;
            }
            let Some(entry) = self.entry(i) else {
                return false;
            };
            expected += entry.name.len();
        }
        self.count > 0 && self.bytes[expected..].iter().all(|&b| b == 0)
    }
}
