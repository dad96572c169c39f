//! The superblock and the device slots behind it.

use std::ops::Range;

use super::{DEVICE_SLOT_LEN, SUPER_OFFSET, inodes_offset, put, u16_at, u32_at, u64_at};
use crate::limits;
use crate::tree::Mtime;

const MAGIC: u32 = 0xE0F5_E1E2;
const BLOCK_BITS: u8 = 9;
/// Inodes' times are modification times. The superblock has no checksum (0x1): erofs-utils 1.8
/// crashes on one with 512-byte blocks, and the index's digest covers the image anyway.
const FEATURE_COMPAT: u32 = 0x2;
const FEATURE_CHUNKED_FILE: u32 = 0x4;
const FEATURE_DEVICE_TABLE: u32 = 0x8;
/// The device slots follow the superblock: (1024 + 128) / 128.
const DEVICE_SLOT_INDEX: u16 = 9;

/// The devices of an image: files of tars, mapped one behind the other, each from a whole block on. To the rest
/// of an image they are one tar, the *joined* one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::erofs) struct Devices {
    /// Blocks of each: its tar's, rounded up.
    blocks: Vec<u32>,
}

impl Devices {
    /// Those for tars of these lengths; `None` where there are more than an image may have, or they are longer
    /// together than it can address.
    pub(in crate::erofs) fn of(tar_lens: &[u64]) -> Option<Self> {
        let is_too_many = tar_lens.is_empty() || tar_lens.len() > limits::MERGED_LAYERS_MAX;
        let blocks = |&len: &u64| u32::try_from(len.div_ceil(limits::BLOCK)).ok();
        let devices = Self {
            blocks: tar_lens.iter().map(blocks).collect::<Option<_>>()?,
        };
        let fits = devices.joined_blocks() * limits::BLOCK <= limits::TAR_BYTES_MAX;
        (fits && !is_too_many).then_some(devices)
    }

    /// How many there are.
    pub(in crate::erofs) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks of all of them; at most 2^16 times 2^32.
    pub(in crate::erofs) fn joined_blocks(&self) -> u64 {
        self.blocks.iter().map(|&blocks| u64::from(blocks)).sum()
    }

    /// Where in the joined tar those of these lengths lie, which the devices are of.
    pub(in crate::erofs) fn tars(&self, tar_lens: &[u64]) -> Vec<Range<u64>> {
        let starts = self.starts().map(|block| block * limits::BLOCK);
        let tars = starts.zip(tar_lens);
        tars.map(|(start, len)| start..start + len).collect()
    }

    /// Block of the joined tar at which each begins.
    pub(in crate::erofs) fn starts(&self) -> impl Iterator<Item = u64> + '_ {
        self.blocks.iter().scan(0, |at, &blocks| {
            let start = *at;
            *at += u64::from(blocks);
            Some(start)
        })
    }
}

/// What varies in the superblock and the device slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::erofs) struct Superblock {
    /// Blocks of the image; the devices are mapped right behind them.
    pub(in crate::erofs) blocks: u32,
    pub(in crate::erofs) devices: Devices,
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
    ///  0 magic            16 inodes u64       40 zero               86 devices u16
    ///  4 zero u32         24 epoch s i64      44 xattr block u32    88 device slot u16 = 9
    ///  8 compat features  32 epoch ns u32     48 zero, 32 bytes     90 zero, 38 bytes
    /// 12 block bits u8    36 blocks u32       80 incompat features each slot of 128 bytes:
    /// 13 zero u8          14 root nid u16     84 zero u16          64 blocks u32, 68 address u32
    /// ```
    fn encode(&self) -> Vec<u8> {
        let incompat = FEATURE_DEVICE_TABLE
            | if self.chunked {
                FEATURE_CHUNKED_FILE
            } else {
                0
            };
        let mut out = vec![0; inodes_offset(self.devices.len()) - SUPER_OFFSET];
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
        // `Devices` has at most MERGED_LAYERS_MAX, and addresses of 32 bits, together with any image.
        let devices = u16::try_from(self.devices.len()).unwrap_or(u16::MAX);
        put(&mut out, 86, devices.to_le_bytes());
        put(&mut out, 88, DEVICE_SLOT_INDEX.to_le_bytes());
        let places = self.devices.starts().zip(&self.devices.blocks);
        for ((start, blocks), slot) in places.zip(out.chunks_exact_mut(DEVICE_SLOT_LEN).skip(1)) {
            let address = u32::try_from(u64::from(self.blocks) + start).unwrap_or(u32::MAX);
            put(slot, 64, blocks.to_le_bytes());
            put(slot, 68, address.to_le_bytes());
        }
        out
    }

    /// Writes both into `image`.
    pub(in crate::erofs) fn write_into(&self, image: &mut [u8]) {
        let header = self.encode();
        image[SUPER_OFFSET..SUPER_OFFSET + header.len()].copy_from_slice(&header);
    }

    /// Reads what [`Superblock::write_into`] wrote; anything it would not write is refused.
    pub(in crate::erofs) fn read_from(image: &[u8]) -> Result<Self, &'static str> {
        let devices = usize::from(u16_at(image, SUPER_OFFSET + 86));
        let header = image
            .get(SUPER_OFFSET..inodes_offset(devices))
            .ok_or("ends before its superblock does")?;
        let slots = header.chunks_exact(DEVICE_SLOT_LEN).skip(1);
        if u32_at(header, 0) != MAGIC {
            return Err("does not have an EROFS superblock");
        }
        let read = Self {
            blocks: u32_at(header, 36),
            devices: Devices {
                blocks: slots.map(|slot| u32_at(slot, 64)).collect(),
            },
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
