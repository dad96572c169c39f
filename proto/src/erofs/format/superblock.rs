//! The superblock and the device slot behind it.

use super::{INODES_OFFSET, SUPER_OFFSET, put, u16_at, u32_at, u64_at};
use crate::tree::Mtime;

/// Bytes of both together.
const HEADER_LEN: usize = INODES_OFFSET - SUPER_OFFSET;
const MAGIC: u32 = 0xE0F5_E1E2;
const BLOCK_BITS: u8 = 9;
/// Inodes' times are modification times. The superblock has no checksum (0x1): erofs-utils 1.8
/// crashes on one with 512-byte blocks, and the index's digest covers the image anyway.
const FEATURE_COMPAT: u32 = 0x2;
const FEATURE_CHUNKED_FILE: u32 = 0x4;
const FEATURE_DEVICE_TABLE: u32 = 0x8;
/// The device slot follows the superblock: (1024 + 128) / 128.
const DEVICE_SLOT_INDEX: u16 = 9;

/// What varies in the superblock and the device slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::erofs) struct Superblock {
    /// Blocks of the image; the device is mapped right behind them.
    pub(in crate::erofs) blocks: u32,
    /// Blocks of the device: the tar's, rounded up.
    pub(in crate::erofs) device_blocks: u32,
    /// The root directory's inode number: within the first slots, because it has 16 bits.
    pub(in crate::erofs) root: u16,
    /// Reachable inodes.
    pub(in crate::erofs) inodes: u64,
    /// The mtime of every compact inode.
    pub(in crate::erofs) epoch: Mtime,
    /// First block of the shared extended attributes, which reach to the end of the image.
    pub(in crate::erofs) xattr_block: u32,
    /// Whether there are chunk-based inodes.
    pub(in crate::erofs) chunked: bool,
}

impl Superblock {
    /// ```text
    ///  0 magic            16 inodes u64       40 zero               86 devices u16 = 1
    ///  4 zero u32         24 epoch s i64      44 xattr block u32    88 device slot u16 = 9
    ///  8 compat features  32 epoch ns u32     48 zero, 32 bytes     90 zero, 38 bytes
    /// 12 block bits u8    36 blocks u32       80 incompat features 192 device blocks u32
    /// 13 zero u8          14 root nid u16     84 zero u16          196 device address u32
    /// ```
    fn encode(&self) -> [u8; HEADER_LEN] {
        let incompat = FEATURE_DEVICE_TABLE
            | if self.chunked {
                FEATURE_CHUNKED_FILE
            } else {
                0
            };
        let mut out = [0; HEADER_LEN];
        put(&mut out, 0, MAGIC.to_le_bytes());
        put(&mut out, 8, FEATURE_COMPAT.to_le_bytes());
        put(&mut out, 12, [BLOCK_BITS]);
        put(&mut out, 14, self.root.to_le_bytes());
        put(&mut out, 16, self.inodes.to_le_bytes());
        put(&mut out, 24, self.epoch.seconds.to_le_bytes());
        put(&mut out, 32, self.epoch.nanoseconds.to_le_bytes());
        put(&mut out, 36, self.blocks.to_le_bytes());
        put(&mut out, 44, self.xattr_block.to_le_bytes());
        put(&mut out, 80, incompat.to_le_bytes());
        put(&mut out, 86, 1_u16.to_le_bytes());
        put(&mut out, 88, DEVICE_SLOT_INDEX.to_le_bytes());
        put(&mut out, 192, self.device_blocks.to_le_bytes());
        put(&mut out, 196, self.blocks.to_le_bytes());
        out
    }

    /// Writes both into `image`.
    pub(in crate::erofs) fn write_into(&self, image: &mut [u8]) {
        put(image, SUPER_OFFSET, self.encode());
    }

    /// Reads what [`Superblock::write_into`] wrote; anything it would not write is refused.
    pub(in crate::erofs) fn read_from(image: &[u8]) -> Result<Self, &'static str> {
        let header = image
            .get(SUPER_OFFSET..INODES_OFFSET)
            .ok_or("ends before its superblock does")?;
        if u32_at(header, 0) != MAGIC {
            return Err("does not have an EROFS superblock");
        }
        let read = Self {
            blocks: u32_at(header, 36),
            device_blocks: u32_at(header, 192),
            root: u16_at(header, 14),
            inodes: u64_at(header, 16),
            epoch: Mtime {
                seconds: u64_at(header, 24).cast_signed(),
                nanoseconds: u32_at(header, 32),
            },
            xattr_block: u32_at(header, 44),
            chunked: u32_at(header, 80) & FEATURE_CHUNKED_FILE != 0,
        };
        if header != read.encode() {
            return Err("has a superblock that Larder would not write");
        }
        Ok(read)
    }
}
