//! Directories: looking a name up, and listing.

use super::{Image, Located, Nid};
use crate::erofs::directory::Block;
use crate::erofs::format::{BLOCK, FileType, Layout};

/// Bits of a cookie that tell the entry within its block. A block of 512 bytes holds at most 39
/// entries of 13 bytes.
const COOKIE_ENTRY_BITS: u32 = 6;
const COOKIE_ENTRY_MASK: u64 = (1 << COOKIE_ENTRY_BITS) - 1;

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// Name; "." and ".." are among them, at their place in byte order.
    pub name: &'a [u8],
    /// The inode.
    pub nid: Nid,
    /// Type of the inode.
    pub file_type: FileType,
    /// Where to go on after this entry: an argument for [`Image::read_dir`].
    pub next: u64,
}

impl DirEntry<'_> {
    /// Whether this is "." or "..".
    pub fn is_dot(&self) -> bool {
        matches!(self.name, b"." | b"..")
    }
}

/// The entries of a directory in byte order of their names; see [`Image::read_dir`].
#[derive(Debug, Clone)]
pub struct ReadDir<'a> {
    bytes: &'a [u8],
    directory: Option<Located>,
    cookie: u64,
}

impl<B: AsRef<[u8]>> Image<B> {
    /// The inode `name` leads to in `directory`, by binary search.
    pub fn lookup(&self, directory: Nid, name: &[u8]) -> Option<Nid> {
        let located = self.directory(directory)?;
        let (mut low, mut high) = (0, located.directory_blocks());
        // The block whose first name is the last one not above `name`.
        while high - low > 1 {
            let middle = u64::midpoint(low, high);
            let first = located.directory_block(self.bytes(), middle)?.entry(0)?;
            if first.name <= name {
                low = middle;
            } else {
                high = middle;
            }
        }
        let found = located.directory_block(self.bytes(), low)?.find(name)?;
        Some(Nid(found.nid))
    }

    /// The entries of `directory` from `cookie` on: 0, or a [`DirEntry::next`]. Cookies depend on
    /// the image alone. Nothing for what is not a directory.
    pub fn read_dir(&self, directory: Nid, cookie: u64) -> ReadDir<'_> {
        ReadDir {
            bytes: self.bytes(),
            directory: self.directory(directory),
            cookie,
        }
    }

    fn directory(&self, nid: Nid) -> Option<Located> {
        let located = self.located(nid)?;
        (located.raw.file_type == FileType::Directory).then_some(located)
    }
}

impl Located {
    /// Number of blocks of a directory, an inlined one included.
    pub(super) fn directory_blocks(&self) -> u64 {
        self.raw.size.div_ceil(BLOCK as u64)
    }

    /// Block `index` of a directory.
    pub(super) fn directory_block<'a>(&self, bytes: &'a [u8], index: u64) -> Option<Block<'a>> {
        let offset = index.checked_mul(BLOCK as u64)?;
        let len = self.raw.size.checked_sub(offset)?.min(BLOCK as u64);
        let inlined = self.raw.layout == Layout::Inline && offset >= self.blocks_len();
        let start = if inlined {
            self.inlined_at() as u64
        } else {
            (u64::from(self.raw.payload) * BLOCK as u64).checked_add(offset)?
        };
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        Some(Block::new(bytes.get(start..end)?))
    }
}

impl<'a> Iterator for ReadDir<'a> {
    type Item = DirEntry<'a>;

    fn next(&mut self) -> Option<DirEntry<'a>> {
        let directory = self.directory?;
        loop {
            let index = self.cookie >> COOKIE_ENTRY_BITS;
            let i = usize::try_from(self.cookie & COOKIE_ENTRY_MASK).ok()?;
            let block = directory.directory_block(self.bytes, index)?;
            if let Some(entry) = block.entry(i) {
                self.cookie += 1;
                return Some(DirEntry {
                    name: entry.name,
                    nid: Nid(entry.nid),
                    file_type: FileType::from_dirent(entry.file_type)?,
                    next: self.cookie,
                });
            }
            self.cookie = (index + 1) << COOKIE_ENTRY_BITS;
        }
    }
}
