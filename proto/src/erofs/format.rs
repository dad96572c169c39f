//! The structures of EROFS that Larder writes, field by field and little-endian.

use crate::limits;
use crate::tree::{DeviceNumber, Mtime};

/// Bytes of a block. Not [`limits::BLOCK`]'s type, because most offsets here are in memory.
pub(super) const BLOCK: usize = 512;

/// Bytes of an inode slot; an inode's number (nid) is its offset in the image over this.
pub(super) const SLOT: usize = 32;

/// Where the superblock lies; the kernel fixes it.
pub(super) const SUPER_OFFSET: usize = 1024;

/// Where inodes begin: after the superblock (128 bytes) and one device slot (128 bytes).
pub(super) const INODES_OFFSET: usize = SUPER_OFFSET + HEADER_LEN;

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

const HEADER_LEN: usize = 256;
const MAGIC: u32 = 0xE0F5_E1E2;
const BLOCK_BITS: u8 = 9;
/// Inodes' times are modification times. The superblock has no checksum (0x1): erofs-utils 1.8
/// crashes on one with 512-byte blocks, and the index's digest covers the image anyway.
const FEATURE_COMPAT: u32 = 0x2;
const FEATURE_CHUNKED_FILE: u32 = 0x4;
const FEATURE_DEVICE_TABLE: u32 = 0x8;
/// The device slot follows the superblock: (1024 + 128) / 128.
const DEVICE_SLOT_INDEX: u16 = 9;

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

    fn from_mode(mode: u16) -> Option<Self> {
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

/// Where an inode's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Layout {
    /// In consecutive blocks.
    Plain = 0,
    /// In consecutive blocks, the last part right behind the inode.
    Inline = 2,
    /// Where a block map right behind the inode says.
    Chunked = 4,
}

/// What varies in the superblock and the device slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Blocks of the image; the device is mapped right behind them.
    pub(super) blocks: u32,
    /// Blocks of the device: the tar's, rounded up.
    pub(super) device_blocks: u32,
    /// The root directory's inode number: within the first slots, because it has 16 bits.
    pub(super) root: u16,
    /// Reachable inodes.
    pub(super) inodes: u64,
    /// The mtime of every compact inode.
    pub(super) epoch: Mtime,
    /// First block of the shared extended attributes, which reach to the end of the image.
    pub(super) xattr_block: u32,
    /// Whether there are chunk-based inodes.
    pub(super) chunked: bool,
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
    pub(super) fn write_into(&self, image: &mut [u8]) {
        put(image, SUPER_OFFSET, self.encode());
    }

    /// Reads what [`Superblock::write_into`] wrote; anything it would not write is refused.
    pub(super) fn read_from(image: &[u8]) -> Result<Self, &'static str> {
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

/// One inode's fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RawInode {
    pub(super) file_type: FileType,
    pub(super) layout: Layout,
    pub(super) extended: bool,
    /// Bytes of the extended attributes behind the inode: 0, or at least the header's.
    pub(super) xattr_len: usize,
    /// Permission bits.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Mtime,
    pub(super) size: u64,
    pub(super) nlink: u32,
    /// Block address, device number or chunk format.
    pub(super) payload: u32,
}

impl RawInode {
    /// Bytes of the fixed part.
    pub(super) fn len(&self) -> usize {
        if self.extended {
            EXTENDED_LEN
        } else {
            COMPACT_LEN
        }
    }

    /// Writes the fixed part to the front of `out`.
    ///
    /// ```text
    ///      compact                       extended
    ///  0   format u16                    format u16
    ///  2   xattr words u16               xattr words u16
    ///  4   mode u16                      mode u16
    ///  6   nlink u16                     zero u16
    ///  8   size u32, zero u32            size u64
    /// 16   payload u32                   payload u32
    /// 20   zero u32                      zero u32
    /// 24   uid u16, gid u16              uid u32
    /// 28   zero u32                      gid u32
    /// 32                                 mtime seconds i64
    /// 40                                 mtime nanoseconds u32
    /// 44                                 nlink u32, zero 16 bytes
    /// ```
    pub(super) fn encode(&self, out: &mut [u8]) {
        let format = u16::from(self.extended) | (self.layout as u16) << 1;
        put(out, 0, format.to_le_bytes());
        put(out, 2, xattr_words(self.xattr_len).to_le_bytes());
        put(
            out,
            4,
            (self.file_type.mode_bits() | self.mode).to_le_bytes(),
        );
        put(out, 16, self.payload.to_le_bytes());
        if self.extended {
            put(out, 8, self.size.to_le_bytes());
            put(out, 24, self.uid.to_le_bytes());
            put(out, 28, self.gid.to_le_bytes());
            put(out, 32, self.mtime.seconds.to_le_bytes());
            put(out, 40, self.mtime.nanoseconds.to_le_bytes());
            put(out, 44, self.nlink.to_le_bytes());
        } else {
            // Placement makes no inode compact that has anything wider.
            let narrow = |n: u32| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
            let size = u32::try_from(self.size).unwrap_or(u32::MAX);
            put(out, 6, narrow(self.nlink));
            put(out, 8, size.to_le_bytes());
            put(out, 24, narrow(self.uid));
            put(out, 26, narrow(self.gid));
        }
    }

    /// Reads the fixed part at the front of `bytes`; `epoch` is the mtime of compact inodes.
    pub(super) fn decode(bytes: &[u8], epoch: Mtime) -> Result<Self, &'static str> {
        const SHORT: &str = "lies beyond the image";
        let compact: &[u8; COMPACT_LEN] = bytes.first_chunk().ok_or(SHORT)?;
        let format = u16_at(compact, 0);
        let layout = match format >> 1 {
            0 => Layout::Plain,
            2 => Layout::Inline,
            4 => Layout::Chunked,
            _ => return Err("has an unknown data layout"),
        };
        let mode = u16_at(compact, 4);
        let mut inode = Self {
            file_type: FileType::from_mode(mode).ok_or("has an unknown file type")?,
            layout,
            extended: format & 1 != 0,
            xattr_len: match usize::from(u16_at(compact, 2)) {
                0 => 0,
                words => XATTR_HEADER_LEN + (words - 1) * 4,
            },
            mode: mode & 0o7777,
            uid: u32::from(u16_at(compact, 24)),
            gid: u32::from(u16_at(compact, 26)),
            mtime: epoch,
            size: u64::from(u32_at(compact, 8)),
            nlink: u32::from(u16_at(compact, 6)),
            payload: u32_at(compact, 16),
        };
        let mut reserved = u32_at(compact, 20);
        if inode.extended {
            let bytes: &[u8; EXTENDED_LEN] = bytes.first_chunk().ok_or(SHORT)?;
            reserved |= inode.nlink;
            reserved |= u32_at(bytes, 48) | u32_at(bytes, 52);
            reserved |= u32_at(bytes, 56) | u32_at(bytes, 60);
            inode.uid = u32_at(bytes, 24);
            inode.gid = u32_at(bytes, 28);
            inode.size = u64_at(bytes, 8);
            inode.nlink = u32_at(bytes, 44);
            inode.mtime = Mtime {
                seconds: u64_at(bytes, 32).cast_signed(),
                nanoseconds: u32_at(bytes, 40),
            };
        } else {
            reserved |= u32_at(compact, 12) | u32_at(compact, 28);
        }
        if reserved != 0 {
            return Err("has reserved fields that are not zero");
        }
        Ok(inode)
    }
}

/// The length of `bytes` of extended attributes as an inode states it.
fn xattr_words(bytes: usize) -> u16 {
    // `XATTR_BODY_MAX` lets nothing longer come here.
    match bytes {
        0 => 0,
        bytes => u16::try_from((bytes - XATTR_HEADER_LEN) / 4 + 1).unwrap_or(u16::MAX),
    }
}

/// Most bytes of extended attributes an inode can have: 65,535 words, the header counting as one.
pub(super) const XATTR_BODY_MAX: usize = XATTR_HEADER_LEN + (u16::MAX as usize - 1) * 4;

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

/// Blocks of a device that holds `tar_len` bytes; `None` beyond the format's limit.
pub(super) fn device_blocks(tar_len: u64) -> Option<u32> {
    if tar_len > limits::TAR_BYTES_MAX {
        return None;
    }
    u32::try_from(tar_len.div_ceil(limits::BLOCK)).ok()
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
