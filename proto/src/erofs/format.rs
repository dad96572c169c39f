//! The structures of EROFS that Larder writes, field by field and little-endian.

mod inode;
mod superblock;

use crate::tree::DeviceNumber;

pub(super) use inode::{Layout, RawInode, XATTR_BODY_MAX};
pub(super) use superblock::{Devices, Superblock};

/// Bytes of a block. Not [`crate::limits::BLOCK`]'s type, because most offsets here are in memory.
pub(super) const BLOCK: usize = 512;

/// Bytes of an inode slot; an inode's number (nid) is its offset in the image over this.
pub(super) const SLOT: usize = 32;

/// Where the superblock lies; the kernel fixes it.
pub(super) const SUPER_OFFSET: usize = 1024;

/// Bytes of the superblock, and of each device slot; the slots follow it.
pub(super) const DEVICE_SLOT_LEN: usize = 128;

/// Where inodes begin: after the superblock and the slots of so many devices.
pub(super) const fn inodes_offset(devices: usize) -> usize {
    SUPER_OFFSET + DEVICE_SLOT_LEN * (1 + devices)
}

/// Bytes of a compact inode.
pub(super) const COMPACT_LEN: usize = 32;

/// Bytes of an extended inode.
pub(super) const EXTENDED_LEN: usize = 64;

/// Bytes of a directory entry before the names.
pub(super) const DIRENT_LEN: usize = 12;

/// Bytes of the header of an inode's extended attributes.
pub(super) const XATTR_HEADER_LEN: usize = 12;

/// Bytes of the header of one extended attribute.
pub(super) const XATTR_ENTRY_LEN: usize = 4;

/// Bytes of one entry of a block map.
pub(super) const BLOCK_MAP_ENTRY_LEN: usize = 4;

/// The block map's entry for a hole.
pub(super) const HOLE: u32 = u32::MAX;

/// Largest chunk of a chunk-based inode, as a shift of the block size: the format has 5 bits.
pub(super) const CHUNK_BITS_MAX: u32 = 31;

/// The type of a file; the numbers are those of directory entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileType {
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A character device.
    CharDevice = 3,
    /// A block device.
    BlockDevice = 4,
    /// A named pipe.
    Fifo = 5,
    /// A Unix socket.
    Socket = 6,
    /// A symbolic link.
    Symlink = 7,
}

impl FileType {
    /// The type bits of `st_mode` (`S_IFMT`).
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => 0o100_000,
            Self::Directory => 0o040_000,
            Self::CharDevice => 0o020_000,
            Self::BlockDevice => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
            Self::Symlink => 0o120_000,
        }
    }

    /// The type as it stands in a directory entry.
    pub(super) fn dirent(self) -> u8 {
        self as u8
    }

    /// The type a directory entry names.
    pub(super) fn from_dirent(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Regular),
            2 => Some(Self::Directory),
            3 => Some(Self::CharDevice),
            4 => Some(Self::BlockDevice),
            5 => Some(Self::Fifo),
            6 => Some(Self::Socket),
            7 => Some(Self::Symlink),
            _ => None,
        }
    }

    /// The type in a `st_mode`.
    pub(super) fn from_mode(mode: u16) -> Option<Self> {
        match mode & 0o170_000 {
            0o100_000 => Some(Self::Regular),
            0o040_000 => Some(Self::Directory),
            0o020_000 => Some(Self::CharDevice),
            0o060_000 => Some(Self::BlockDevice),
            0o010_000 => Some(Self::Fifo),
            0o140_000 => Some(Self::Socket),
            0o120_000 => Some(Self::Symlink),
            _ => None,
        }
    }
}

/// The kernel's encoding of a device number.
pub(super) fn encode_device(device: DeviceNumber) -> u32 {
    (device.minor & 0xFF) | (device.major << 8) | ((device.minor & !0xFF) << 12)
}

/// Reads what [`encode_device`] wrote.
pub(super) fn decode_device(encoded: u32) -> DeviceNumber {
    DeviceNumber {
        major: (encoded >> 8) & 0xFFF,
        minor: (encoded & 0xFF) | ((encoded >> 12) & 0xF_FF00),
    }
}

/// Writes `bytes` at `offset`.
pub(super) fn put<const N: usize>(out: &mut [u8], offset: usize, bytes: [u8; N]) {
    out[offset..offset + N].copy_from_slice(&bytes);
}

/// The number at `offset`, 0 beyond the end.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    array_at(bytes, offset).map_or(0, u16::from_le_bytes)
}

/// The number at `offset`, 0 beyond the end.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    array_at(bytes, offset).map_or(0, u32::from_le_bytes)
}

/// The number at `offset`, 0 beyond the end.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    array_at(bytes, offset).map_or(0, u64::from_le_bytes)
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}
