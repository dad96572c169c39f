//! What is checked of one inode, and of what belongs to it.

use super::super::data::Run;
use super::super::xattr::Name;
use super::super::{Located, Nid};
use super::{Check, attribute};
use crate::erofs::format::{BLOCK, CHUNK_BITS_MAX, FileType, Layout, SLOT, encode_device};
use crate::limits;

impl<B: AsRef<[u8]>> Check<'_, B> {
    /// Checks an inode met for the first time, and claims what belongs to it.
    pub(super) fn inode(&mut self, nid: u64) -> Result<Located, &'static str> {
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
        self.has_xattrs |= located.raw.xattr_len > 0;
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
        let tars = &self.image.tars;
        let inside = |run| match run {
            Run::Hole => true,
            Run::Tar(extent) => {
                let end = extent.tar_offset.checked_add(extent.len);
                // The last one that begins there or before; an empty one has nothing.
                let tar = tars.partition_point(|tar| tar.start <= extent.tar_offset);
                let tar = tar.checked_sub(1).and_then(|at| tars.get(at));
                tar.zip(end).is_some_and(|(tar, end)| end <= tar.end)
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
        let len = target.len();
        self.account(len)
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

    fn extended_attributes(&mut self, located: &Located) -> Result<(), &'static str> {
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
        let mut bytes = 0;
        for xattr in xattrs {
            let name = xattr.split_name();
            name.check(xattr.value, is_directory)?;
            bytes += name.suffix.len() + xattr.value.len();
            names.push(name);
        }
        self.account(bytes)?;
        names.sort_unstable();
        if names.is_empty() || names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("has an extended attribute twice, or none");
        }
        Ok(())
    }
}

/// Entries must fill `inline` exactly.
fn check_entries(mut inline: &[u8]) -> Result<(), &'static str> {
    while !inline.is_empty() {
        let (_, len) = attribute(inline).ok_or("has damaged extended attributes")?;
        inline = &inline[len..];
    }
    Ok(())
}
