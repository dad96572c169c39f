//! The fixed part of an inode.

use super::{COMPACT_LEN, EXTENDED_LEN, FileType, XATTR_HEADER_LEN, put, u16_at, u32_at, u64_at};
use crate::tree::Mtime;

/// Where an inode's data lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(in crate::erofs) enum Layout {
    /// In consecutive blocks.
    Plain = 0,
    /// In consecutive blocks, the last part right behind the inode.
    Inline = 2,
    /// Where a block map right behind the inode says.
    Chunked = 4,
}

/// One inode's fixed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::erofs) struct RawInode {
    pub(in crate::erofs) file_type: FileType,
    pub(in crate::erofs) layout: Layout,
    pub(in crate::erofs) extended: bool,
    /// Bytes of the extended attributes behind the inode: 0, or at least the header's.
    pub(in crate::erofs) xattr_len: usize,
    /// Permission bits.
    pub(in crate::erofs) mode: u16,
    pub(in crate::erofs) uid: u32,
    pub(in crate::erofs) gid: u32,
    pub(in crate::erofs) mtime: Mtime,
    pub(in crate::erofs) size: u64,
    pub(in crate::erofs) nlink: u32,
    /// Block address, device number or chunk format.
    pub(in crate::erofs) payload: u32,
}

impl RawInode {
    /// Bytes of the fixed part.
    pub(in crate::erofs) fn len(&self) -> usize {
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
    pub(in crate::erofs) fn encode(&self, out: &mut [u8]) {
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
    pub(in crate::erofs) fn decode(bytes: &[u8], epoch: Mtime) -> Result<Self, &'static str> {
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
pub(in crate::erofs) const XATTR_BODY_MAX: usize = XATTR_HEADER_LEN + (u16::MAX as usize - 1) * 4;
