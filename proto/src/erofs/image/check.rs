//! The gate: a walk of the whole image that refuses what the writer would not write.
//!
//! Every byte of an image belongs to exactly one thing (an inode with what follows it, a block of
//! a directory or symlink, the shared attributes) or is zero; every inode is reached, directories
//! once and others as often as their link count says, or less often where one layer hides what another has.

mod inode;

use std::collections::HashMap;

use super::xattr::Xattr;
use super::{Image, ImageError, Nid};
use crate::erofs::bitmap::Bitmap;
use crate::erofs::directory::{Block, RawEntry};
use crate::erofs::format::{BLOCK, FileType, SLOT, SUPER_OFFSET, inodes_offset};
use crate::limits;

/// What the walk finds out by the way.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) has_xattrs: bool,
}

pub(super) fn check<B: AsRef<[u8]>>(image: &Image<B>) -> Result<Found, ImageError> {
    check_frame(image).map_err(ImageError::Image)?;
    let mut check = Check::new(image);
    check
        .claim(SUPER_OFFSET, inodes_offset(image.superblock.devices.len()))
        .map_err(ImageError::Image)?;
    check.shared_area().map_err(ImageError::Image)?;
    check.walk()?;
    check.finish().map_err(ImageError::Image)?;
    Ok(Found {
        has_xattrs: check.has_xattrs,
    })
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
    /// Entries of directories, and the bytes that names, targets and attributes take as a tree, where what
    /// inodes share is there for each: both bound the memory of whoever makes one.
    entries: usize,
    variable: u64,
    /// Whether one of them has extended attributes.
    has_xattrs: bool,
    /// Directories to be walked.
    pending: Vec<Pending>,
}

struct Pending {
    nid: u64,
    parent: u64,
    /// Bytes of the directory's path.
    path_len: usize,
}

impl<'a, B: AsRef<[u8]>> Check<'a, B> {
    fn new(image: &'a Image<B>) -> Self {
        let slots = image.bytes().len() / SLOT;
        Self {
            image,
            claimed: Bitmap::new(slots),
            inodes: Bitmap::new(slots),
            shared: Bitmap::new(0),
            links: HashMap::new(),
            count: 0,
            entries: 0,
            variable: 0,
            has_xattrs: false,
            pending: Vec::new(),
        }
    }

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
        self.entries += 1;
        if self.entries > limits::ENTRIES_MAX {
            return Err(here("has more entries than a layer may have"));
        }
        self.account(entry.name.len()).map_err(here)?;
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

    /// Counts what a tree has for one name, target or attribute. The scan of a tar has the same bound, and
    /// counts more.
    fn account(&mut self, bytes: usize) -> Result<(), &'static str> {
        self.variable += bytes as u64;
        if self.variable > limits::INDEX_BYTES_MAX {
            return Err("has more names, targets and attributes than a layer may have");
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
            let (_, len) = attribute(&area[at..]).ok_or("has damaged shared attributes")?;
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
        // In an image that was merged, the others may be hidden.
        let is_whole = self.image.superblock.devices.len() == 1;
        if is_whole && self.links.values().any(|&left| left != 0) {
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
fn attribute(bytes: &[u8]) -> Option<(Xattr<'_>, usize)> {
    let (xattr, len) = Xattr::parse(bytes)?;
    let used = 4 + xattr.split_name().suffix.len() + xattr.value.len();
    let padding = bytes.get(used..len)?;
    padding.iter().all(|&b| b == 0).then_some((xattr, len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::write;
    use crate::tree::{Kind, Node, ROOT, Tree};

    /// A tree of one directory with these files, each with an attribute of so many bytes, the same for all.
    fn files(count: usize, attribute: usize) -> Vec<u8> {
        let mut tree = Tree::new();
        for number in 0..count {
            let kind = Kind::Regular {
                size: 0,
                extents: Vec::new(),
            };
            let file = tree.add(Node {
                kind,
                ..Node::directory()
            });
            if attribute > 0 {
                let (name, value) = (b"user.same".to_vec(), vec![7; attribute]);
                tree.node_mut(file).xattrs.insert(name, value);
            }
            if let Kind::Directory(entries) = &mut tree.node_mut(ROOT).kind {
                entries.insert(format!("{number:05}").into_bytes(), file);
            }
        }
        write(&tree, 1024).unwrap()
    }

    /// Promise: a small image that becomes a large tree, because many files share what the image holds once, is
    /// refused before anybody makes the tree.
    #[test]
    fn what_is_shared_counts_for_each_that_has_it() {
        let most = usize::try_from(limits::INDEX_BYTES_MAX).unwrap() / 60_000;
        assert!(Image::open(files(most - 10, 60_000), 1024).is_ok());
        let large = files(most + 10, 60_000);
        assert!(large.len() < 1 << 20, "{}", large.len());
        let refused = Image::open(large, 1024).unwrap_err().to_string();
        assert!(
            refused.contains("names, targets and attributes"),
            "{refused}"
        );
    }

    /// Promise: an image of more entries than a layer may have is refused, whoever wrote it.
    #[test]
    fn one_entry_too_many_is_refused() {
        let bytes = files(3, 0);
        let image = Image {
            superblock: crate::erofs::format::Superblock::read_from(&bytes).unwrap(),
            bytes,
            tars: std::iter::once(0..1024).collect(),
            has_xattrs: false,
        };
        for (before, is_fine) in [
            (limits::ENTRIES_MAX - 3, true),
            (limits::ENTRIES_MAX - 2, false),
        ] {
            let mut check = Check::new(&image);
            check.entries = before;
            let walked = check.walk();
            assert_eq!(walked.is_ok(), is_fine, "{walked:?}");
        }
    }
}
