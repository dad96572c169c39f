//! The restricted reader: it opens only what the writer writes, and then answers from the bytes.

mod check;
mod data;
mod export;
mod listing;
pub(super) mod xattr;

use std::ops::Range;

use super::format::{
    self, Devices, FileType, Layout, RawInode, SLOT, Superblock, decode_device, inodes_offset,
};
use crate::tree::{DeviceNumber, Mtime};

pub use data::Extents;
pub use listing::{DirEntry, ReadDir};
pub use xattr::{Xattr, Xattrs};

/// The number of an inode in its image: stable for the life of the image, never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nid(pub u64);

/// A validated metadata image over the bytes it was opened on: a vector, or a read-only mapping.
///
/// Every answer is computed from the bytes, without a table in memory. The numbers passed in
/// should come from this image; others get an answer without meaning, never a panic.
#[derive(Debug, Clone)]
pub struct Image<B> {
    bytes: B,
    superblock: Superblock,
    /// Where in the joined tar each layer's lies.
    tars: Vec<Range<u64>>,
    has_xattrs: bool,
}

/// The attributes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Type.
    pub file_type: FileType,
    /// Permission bits with setuid, setgid and sticky: `0..=0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of a regular file, of a symlink's target, or of a directory's entries, bytes.
    pub size: u64,
    /// Time of last modification.
    pub mtime: Mtime,
    /// Number of links; of a directory, 2 and one per subdirectory.
    pub nlink: u32,
    /// Device number of a device, otherwise 0:0.
    pub rdev: DeviceNumber,
}

/// Bytes that are not a metadata image Larder would write for this tar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The image as a whole does not fit together.
    #[error("the metadata image {0}")]
    Image(&'static str),
    /// An inode, or what belongs to it, is damaged or not of our making.
    #[error("inode {nid} of the metadata image {reason}")]
    Inode {
        /// Its number.
        nid: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Validates the whole image: whatever the writer would not write for a tar of `tar_len`
    /// bytes is refused, so that neither the kernel nor we meet a surprise later.
    ///
    /// Costs time in proportion to the image, and memory of about 1/200 of it.
    pub fn open(bytes: B, tar_len: u64) -> Result<Self, ImageError> {
        Self::open_merged(bytes, &[tar_len])
    }

    /// The same of an image that [`super::merge()`] made of layers with tars of these lengths. To it they are one
    /// tar: one behind the other, each beginning at a multiple of 512.
    pub fn open_merged(bytes: B, tar_lens: &[u64]) -> Result<Self, ImageError> {
        let devices = Devices::of(tar_lens).ok_or(ImageError::Image(
            "is for tars that are more, or longer, than an image can have",
        ))?;
        let superblock = Superblock::read_from(bytes.as_ref()).map_err(ImageError::Image)?;
        let mut image = Self {
            bytes,
            superblock,
            tars: devices.tars(tar_lens),
            has_xattrs: false,
        };
        if image.superblock.devices != devices {
            return Err(ImageError::Image("is for a tar of another length"));
        }
        image.has_xattrs = check::check(&image)?.has_xattrs;
        Ok(image)
    }

    /// The root directory.
    pub fn root(&self) -> Nid {
        Nid(u64::from(self.superblock.root))
    }

    /// Number of files, hard links counted once.
    pub fn inode_count(&self) -> u64 {
        self.superblock.inodes
    }

    /// Length of the tar the image addresses, bytes.
    pub fn tar_len(&self) -> u64 {
        self.tars.last().map_or(0, |tar| tar.end)
    }

    /// Length of the device the kernel expects, bytes: the tar's, rounded up to whole blocks. The
    /// kernel reads whole blocks and fails a read that ends early.
    pub fn device_len(&self) -> u64 {
        self.superblock.devices.joined_blocks() * format::BLOCK as u64
    }

    /// Whether any file has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.has_xattrs
    }

    /// The attributes of `nid`.
    pub fn inode(&self, nid: Nid) -> Option<Inode> {
        self.located(nid).map(|located| located.attributes())
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The inode at `nid`, with where it lies.
    fn located(&self, nid: Nid) -> Option<Located> {
        let at = usize::try_from(nid.0).ok()?.checked_mul(SLOT)?;
        if at < inodes_offset(self.superblock.devices.len()) {
            return None;
        }
        let raw = RawInode::decode(self.bytes().get(at..)?, self.superblock.epoch).ok()?;
        Some(Located { at, raw })
    }
}

/// An inode and its offset in the image.
#[derive(Debug, Clone, Copy)]
struct Located {
    at: usize,
    raw: RawInode,
}

impl Located {
    fn attributes(&self) -> Inode {
        let raw = &self.raw;
        let is_device = matches!(raw.file_type, FileType::CharDevice | FileType::BlockDevice);
        Inode {
            file_type: raw.file_type,
            mode: raw.mode,
            uid: raw.uid,
            gid: raw.gid,
            size: raw.size,
            mtime: raw.mtime,
            nlink: raw.nlink,
            rdev: if is_device {
                decode_device(raw.payload)
            } else {
                DeviceNumber::default()
            },
        }
    }

    /// Where the extended attributes begin.
    fn xattrs_at(&self) -> usize {
        self.at + self.raw.len()
    }

    /// Where what is inlined begins: the end of a directory, a symlink's target, a block map.
    fn inlined_at(&self) -> usize {
        self.xattrs_at() + self.raw.xattr_len
    }

    /// Bytes that are inlined.
    fn inlined_len(&self) -> u64 {
        match self.raw.layout {
            Layout::Plain => 0,
            Layout::Inline => self.raw.size - self.blocks_len(),
            Layout::Chunked => self.chunk_count() * format::BLOCK_MAP_ENTRY_LEN as u64,
        }
    }

    /// Bytes of a directory or symlink that lie in blocks of the image.
    fn blocks_len(&self) -> u64 {
        let block = format::BLOCK as u64;
        match self.raw.layout {
            Layout::Plain => self.raw.size,
            // The last block is inlined even if it is full, which the writer never makes it.
            Layout::Inline => self.raw.size.saturating_sub(1) / block * block,
            Layout::Chunked => 0,
        }
    }

    /// Size of a chunk, as a shift of a byte.
    fn chunk_shift(&self) -> u32 {
        self.raw.payload.min(format::CHUNK_BITS_MAX) + format::BLOCK.trailing_zeros()
    }

    fn chunk_count(&self) -> u64 {
        self.raw.size.div_ceil(1 << self.chunk_shift())
    }
}
