//! The gate: a walk of the whole image that refuses what the writer would not write.
//!
//! Every byte of an image belongs to exactly one thing (an inode with what follows it, a block of
//! a directory or symlink, the shared attributes) or is zero; every inode is reached, directories
//! once and others as often as their link count says.

use std::collections::HashMap;

use super::data::Run;
use super::xattr::{Name, Xattr};
use super::{Image, ImageError, Located, Nid};
use crate::erofs::bitmap::Bitmap;
use crate::erofs::directory::{Block, RawEntry};
use crate::erofs::format::{
    BLOCK, CHUNK_BITS_MAX, FileType, INODES_OFFSET, Layout, SLOT, SUPER_OFFSET, device_blocks,
    encode_device,
};
use crate::limits;

pub(super) fn check<B: AsRef<[u8]>>(image: &Image<B>) -> Result<(), ImageError> {
    check_frame(image).map_err(ImageError::Image)?;
    let slots = image.bytes().len() / SLOT;
    let mut check = Check {
        image,
        claimed: Bitmap::new(slots),
        inodes: Bitmap::new(slots),
        shared: Bitmap::new(0),
        links: HashMap::new(),
        count: 0,
        pending: Vec::new(),
    };
    check
        .claim(SUPER_OFFSET, INODES_OFFSET)
        .map_err(ImageError::Image)?;
    check.shared_area().map_err(ImageError::Image)?;
    check.walk()?;
    check.finish().map_err(ImageError::Image)
}

/// What the superblock says about the image as a whole.
fn check_frame<B: AsRef<[u8]>>(image: &Image<B>) -> Result<(), &'static str> {
    let superblock = &image.superblock;
    let len = image.bytes().len() as u64;
    if len > limits::INDEX_BYTES_MAX {
        return Err("is larger than an index may be");
    }
    if len != u64::from(superblock.blocks) * BLOCK as u64 {
        return Err("is not as long as its superblock says");
    }
    if device_blocks(image.tar_len) != Some(superblock.device_blocks) {
        return Err("is for a tar of another length");
    }
    if superblock.xattr_block > superblock.blocks {
        return Err("has its shared attributes beyond its end");
    }
    if superblock.epoch.nanoseconds >= 1_000_000_000 {
        return Err("has a second or more of nanoseconds in its epoch");
    }
    Ok(())
}

struct Check<'a, B> {
    image: &'a Image<B>,
    /// Slots of the image that belong to something.
    claimed: Bitmap,
    /// Slots at which an inode begins that the walk has reached.
    inodes: Bitmap,
    /// Words of the shared area at which an attribute begins.
    shared: Bitmap,
    /// Of each file with several links: how many are still to be met.
    links: HashMap<u64, u32>,
    /// Inodes reached.
    count: u64,
    /// Directories to be walked.
    pending: Vec<Pending>,
}

struct Pending {
    nid: u64,
    parent: u64,
    /// Bytes of the directory's path.
    path_len: usize,
}

impl<B: AsRef<[u8]>> Check<'_, B> {
    fn walk(&mut self) -> Result<(), ImageError> {
        let root = self.image.root().0;
        let at = |nid| move |reason| ImageError::Inode { nid, reason };
        let file_type = self.inode(root).map_err(at(root))?.raw.file_type;
        if file_type != FileType::Directory {
            return Err(at(root)("is the root, but not a directory"));
        }
        self.pending.push(Pending {
            nid: root,
            parent: root,
            path_len: 0,
        });
        while let Some(directory) = self.pending.pop() {
            self.directory(&directory)?;
        }
        Ok(())
    }

    /// Checks one directory's entries and the inodes they lead to.
    fn directory(&mut self, pending: &Pending) -> Result<(), ImageError> {
        let image = self.image;
        let at_directory = |reason| ImageError::Inode {
            nid: pending.nid,
            reason,
        };
        let bytes = image.bytes();
        let located = image
            .located(Nid(pending.nid))
            .ok_or(at_directory("lies beyond the image"))?;
        let (mut subdirectories, mut dots) = (0, 0);
        let mut previous: &[u8] = b"";
        for index in 0..located.directory_blocks() {
            let block = located
                .directory_block(bytes, index)
                .filter(Block::is_canonical)
                .ok_or(at_directory("has a damaged directory block"))?;
            for i in 0..block.len() {
                let entry = block
                    .entry(i)
                    .ok_or(at_directory("has a damaged directory block"))?;
                if entry.name <= previous {
                    return Err(at_directory("has entries out of order"));
                }
                previous = entry.name;
                let expected = match entry.name {
                    b"." => Some(pending.nid),
                    b".." => Some(pending.parent),
                    _ => None,
                };
                if let Some(expected) = expected {
                    let directory = FileType::Directory.dirent();
                    if entry.nid != expected || entry.file_type != directory {
                        return Err(at_directory("has a wrong \".\" or \"..\""));
                    }
                    dots += 1;
                    continue;
                }
                let subdirectory = self
                    .entry(pending, &entry)
                    .map_err(|(nid, reason)| ImageError::Inode { nid, reason })?;
                subdirectories += u32::from(subdirectory);
            }
        }
        if dots != 2 {
            return Err(at_directory("lacks \".\" or \"..\""));
        }
        if located.raw.nlink != subdirectories + 2 {
            return Err(at_directory("has a wrong number of links"));
        }
        Ok(())
    }

    /// Checks an entry and the inode it leads to; true if that is a directory.
    fn entry(
        &mut self,
        directory: &Pending,
        entry: &RawEntry<'_>,
    ) -> Result<bool, (u64, &'static str)> {
        let here = |reason| (directory.nid, reason);
        let illegal = entry.name.iter().any(|&b| b == b'/' || b == 0);
        if illegal || entry.name.len() > limits::NAME_BYTES_MAX {
            return Err(here("has an entry with a bad name"));
        }
        let separator = usize::from(directory.path_len > 0);
        let path_len = directory.path_len + separator + entry.name.len();
        if path_len > limits::PATH_BYTES_MAX {
            return Err(here("has an entry whose path is too long"));
        }
        let there = |reason| (entry.nid, reason);
        if let Some(left) = self.links.get_mut(&entry.nid) {
            *left = left
                .checked_sub(1)
                .ok_or(there("has a wrong number of links"))?;
            let same = self.image.located(Nid(entry.nid));
            let same = same.is_some_and(|l| l.raw.file_type.dirent() == entry.file_type);
            return same
                .then_some(false)
                .ok_or(here("has an entry of another type than its inode"));
        }
        let located = self.inode(entry.nid).map_err(there)?;
        if located.raw.file_type.dirent() != entry.file_type {
            return Err(here("has an entry of another type than its inode"));
        }
        if located.raw.file_type == FileType::Directory {
            self.pending.push(Pending {
                nid: entry.nid,
                parent: directory.nid,
                path_len,
            });
            return Ok(true);
        }
        match located.raw.nlink {
            0 => return Err(there("has no links, yet an entry leads to it")),
            1 => {}
            links => _ = self.links.insert(entry.nid, links - 1),
        }
        Ok(false)
    }

    /// Checks an inode met for the first time, and claims what belongs to it.
    fn inode(&mut self, nid: u64) -> Result<Located, &'static str> {
        let image = self.image;
        let located = image
            .located(Nid(nid))
            .ok_or("is not an inode Larder would write")?;
        if !self.inodes.insert(located.at / SLOT) {
            return Err("is reached by more entries than it has links");
        }
        self.count += 1;
        let raw = &located.raw;
        if raw.mtime.nanoseconds >= 1_000_000_000 {
            return Err("has a second or more of nanoseconds in its mtime");
        }
        if raw.uid == u32::MAX || raw.gid == u32::MAX {
            return Err("has an owner that Linux does not have");
        }
        let (is_regular, is_chunked) = (
            raw.file_type == FileType::Regular,
            raw.layout == Layout::Chunked,
        );
        let inlines = matches!(raw.file_type, FileType::Directory | FileType::Symlink);
        if is_chunked && !is_regular || raw.layout == Layout::Inline && !inlines {
            return Err("has a layout its type does not have");
        }
        match raw.file_type {
            FileType::Regular => self.regular(&located)?,
            FileType::Directory => self.image_data(&located)?,
            FileType::Symlink => self.symlink(&located)?,
            FileType::CharDevice | FileType::BlockDevice => {
                let device = located.attributes().rdev;
                if raw.size != 0 || encode_device(device) != raw.payload {
                    return Err("is a device with a size");
                }
            }
            FileType::Fifo | FileType::Socket => {
                if raw.size != 0 || raw.payload != 0 {
                    return Err("is a pipe or socket with data");
                }
            }
        }
        self.extended_attributes(&located)?;
        let end = usize::try_from(located.inlined_len())
            .ok()
            .and_then(|len| located.inlined_at().checked_add(len))
            .filter(|&end| end <= image.bytes().len())
            .ok_or("reaches beyond the image")?;
        if raw.layout == Layout::Inline && located.at / BLOCK != (end - 1) / BLOCK {
            return Err("has inlined data in another block than itself");
        }
        self.claim(located.at, end)?;
        Ok(located)
    }

    /// The data of a file lies in the tar, on whole blocks.
    fn regular(&self, located: &Located) -> Result<(), &'static str> {
        let raw = &located.raw;
        if raw.size > i64::MAX.cast_unsigned() {
            return Err("is longer than a file can be");
        }
        if raw.layout == Layout::Plain && raw.size == 0 {
            let empty = raw.payload == 0;
            return empty.then_some(()).ok_or("is empty, yet has an address");
        }
        if raw.layout == Layout::Chunked
            && (!self.image.superblock.chunked || raw.size == 0 || raw.payload > CHUNK_BITS_MAX)
        {
            return Err("has a bad block map");
        }
        if located.inlined_len() > self.image.bytes().len() as u64 {
            return Err("has a block map that reaches beyond the image");
        }
        let tar_len = self.image.tar_len;
        let inside = |run| match run {
            Run::Hole => true,
            Run::Tar(extent) => {
                let end = extent.tar_offset.checked_add(extent.len);
                end.is_some_and(|end| end <= tar_len)
            }
            Run::Image => false,
        };
        if self.image.block_map(located).all(inside) {
            Ok(())
        } else {
            Err("has data outside of the tar")
        }
    }

    fn symlink(&mut self, located: &Located) -> Result<(), &'static str> {
        if located.raw.size == 0 || located.raw.size > limits::PATH_BYTES_MAX as u64 {
            return Err("is a symlink of a bad length");
        }
        self.image_data(located)?;
        let nid = Nid((located.at / SLOT) as u64);
        let target = self
            .image
            .read_link(nid)
            .ok_or("reaches beyond the image")?;
        if target.contains(&0) {
            return Err("is a symlink with a NUL in its target");
        }
        Ok(())
    }

    /// Claims the blocks of a directory or a symlink.
    fn image_data(&mut self, located: &Located) -> Result<(), &'static str> {
        const BEYOND: &str = "has data beyond the image";
        let raw = &located.raw;
        let len = usize::try_from(located.blocks_len()).map_err(|_| BEYOND)?;
        if raw.size.is_multiple_of(BLOCK as u64) && raw.layout == Layout::Inline {
            return Err("has an inlined end, but ends with a whole block");
        }
        if len == 0 {
            return (raw.payload == 0)
                .then_some(())
                .ok_or("is inlined, yet has an address");
        }
        let start = usize::try_from(raw.payload)
            .ok()
            .and_then(|block| block.checked_mul(BLOCK))
            .ok_or(BEYOND)?;
        let end = start.checked_add(len).ok_or(BEYOND)?;
        let slack = self
            .image
            .bytes()
            .get(end..end.next_multiple_of(BLOCK))
            .ok_or(BEYOND)?;
        if slack.iter().any(|&b| b != 0) {
            return Err("has something behind its data");
        }
        self.claim(start, end.next_multiple_of(BLOCK))
    }

    fn extended_attributes(&self, located: &Located) -> Result<(), &'static str> {
        const DAMAGED: &str = "has damaged extended attributes";
        if located.raw.xattr_len == 0 {
            return Ok(());
        }
        let start = located.xattrs_at();
        let xattrs = self.image.xattrs_of(located).ok_or(DAMAGED)?;
        let header = self.image.bytes().get(start..start + 12).ok_or(DAMAGED)?;
        let reserved = header[..4].iter().chain(&header[5..]);
        if reserved.into_iter().any(|&b| b != 0) {
            return Err(DAMAGED);
        }
        if !xattrs.shared_ids().all(|id| self.shared.contains(id)) {
            return Err("has a shared attribute that is not there");
        }
        check_entries(xattrs.inline())?;
        let is_directory = located.raw.file_type == FileType::Directory;
        let mut names: Vec<Name<'_>> = Vec::new();
        for xattr in xattrs {
            let name = xattr.split_name();
            name.check(xattr.value, is_directory)?;
            names.push(name);
        }
        names.sort_unstable();
        if names.is_empty() || names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("has an extended attribute twice, or none");
        }
        Ok(())
    }

    /// Finds the attributes in the shared area, and claims it.
    fn shared_area(&mut self) -> Result<(), &'static str> {
        let area = self.image.shared_area();
        self.shared = Bitmap::new(area.len() / 4);
        let mut at = 0;
        // A prefix number is never 0, so zeros end the area.
        while area.get(at + 1).is_some_and(|&prefix| prefix != 0) {
            let (_, len) = entry(&area[at..]).ok_or("has damaged shared attributes")?;
            self.shared.insert(at / 4);
            at += len;
        }
        let padding = &area[at.min(area.len())..];
        if padding.len() >= BLOCK || padding.iter().any(|&b| b != 0) {
            return Err("has something behind its shared attributes");
        }
        let end = self.image.bytes().len();
        self.claim(end - area.len(), end)
    }

    /// Takes possession of `start..end`, rounded up to slots; the rounding must be zeros.
    fn claim(&mut self, start: usize, end: usize) -> Result<(), &'static str> {
        let padding = self.image.bytes().get(end..end.next_multiple_of(SLOT));
        if padding.is_none_or(|padding| padding.iter().any(|&b| b != 0)) {
            return Err("has something behind its end");
        }
        let mut slots = start / SLOT..end.div_ceil(SLOT);
        if slots.all(|slot| self.claimed.insert(slot)) {
            Ok(())
        } else {
            Err("overlaps something else")
        }
    }

    /// What only the whole walk tells.
    fn finish(&self) -> Result<(), &'static str> {
        if self.count != self.image.superblock.inodes {
            return Err("has another number of inodes than its superblock says");
        }
        if self.links.values().any(|&left| left != 0) {
            return Err("has a file with fewer links than its inode says");
        }
        let bytes = self.image.bytes();
        for slot in self.claimed.absent() {
            if bytes[slot * SLOT..(slot + 1) * SLOT] != [0; SLOT] {
                return Err("has something that no entry leads to");
            }
        }
        Ok(())
    }
}

/// One entry at the front of `bytes`, whose padding is zeros, and its length.
fn entry(bytes: &[u8]) -> Option<(Xattr<'_>, usize)> {
    let (xattr, len) = Xattr::parse(bytes)?;
    let used = 4 + xattr.split_name().suffix.len() + xattr.value.len();
    let padding = bytes.get(used..len)?;
    padding.iter().all(|&b| b == 0).then_some((xattr, len))
}

/// Entries must fill `inline` exactly.
fn check_entries(mut inline: &[u8]) -> Result<(), &'static str> {
    while !inline.is_empty() {
        let (_, len) = entry(inline).ok_or("has damaged extended attributes")?;
        inline = &inline[len..];
    }
    Ok(())
}
