//! The fixed beginning of an index, its table of sections, and the footer of a layer blob.
//!
//! Everything is little-endian. Numbers are read and written field by field, so neither alignment
//! nor the byte order of the machine matters.

use crate::limits;

/// First bytes of a decoded index.
pub(super) const MAGIC: [u8; 8] = *b"LARDERIX";

/// First bytes of the footer's payload.
pub(super) const FOOTER_MAGIC: [u8; 8] = *b"LARDERFT";

/// Version of the layout this build writes and reads.
pub const VERSION: u16 = 1;

/// Magic number of the skippable frames Larder writes: zstd allows `0x184D2A50..=0x184D2A5F`,
/// zstd:chunked uses `…50` and the seekable format `…5E`.
pub const SKIPPABLE_MAGIC: u32 = 0x184D_2A5B;

/// Bytes of a skippable frame before its payload: magic and length, 32 bits each.
pub const SKIPPABLE_HEADER_LEN: u64 = 8;

/// Bytes of the header, before the section table.
pub(super) const HEADER_LEN: usize = 80;

/// Bytes of one row of the section table.
pub(super) const SECTION_LEN: usize = 24;

/// Sections begin at multiples of this many bytes.
pub(super) const SECTION_ALIGN: usize = 8;

/// What a section holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Section {
    /// The EROFS metadata image.
    Metadata = 1,
    /// The chunk table.
    Chunks = 2,
    /// The implied directories.
    Implied = 3,
    /// How frames are decoded beyond plain zstd; empty in version 1.
    Decoder = 4,
}

/// Fields of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) algorithm: u8,
    pub(super) chunk_target: u32,
    pub(super) tar_len: u64,
    pub(super) diff_id: [u8; 32],
    pub(super) sections: u32,
}

/// Reads fields off the front of a slice; `None` when it ends early.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len)?;
        self.0 = tail;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

impl Header {
    /// ```text
    ///  0  magic "LARDERIX"        16  algorithm u8, 3 zero bytes   32  tar length u64
    ///  8  version u16             20  chunk target u32             40  diffID, 32 bytes
    /// 10  incompatible flags u16  24  number of sections u32       72  zero, 8 bytes
    /// 12  compatible flags u32    28  zero u32                     80  section table
    /// ```
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(0_u16.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend([self.algorithm, 0, 0, 0]);
        out.extend(self.chunk_target.to_le_bytes());
        out.extend(self.sections.to_le_bytes());
        out.extend(0_u32.to_le_bytes());
        out.extend(self.tar_len.to_le_bytes());
        out.extend(self.diff_id);
        out.extend([0; 8]);
    }

    /// Reads what [`Header::encode`] wrote; an unknown incompatible flag is a refusal.
    pub(super) fn decode(fields: &mut Fields<'_>) -> Result<Self, &'static str> {
        const SHORT: &str = "shorter than its header";
        if fields.array::<8>().ok_or(SHORT)? != MAGIC {
            return Err("does not begin with LARDERIX");
        }
        if fields.u16().ok_or(SHORT)? != VERSION {
            return Err("is of another version; upgrade Larder");
        }
        if fields.u16().ok_or(SHORT)? != 0 {
            return Err("needs a feature this build does not have; upgrade Larder");
        }
        let _compatible = fields.u32().ok_or(SHORT)?;
        let [algorithm, ..] = fields.array::<4>().ok_or(SHORT)?;
        let chunk_target = fields.u32().ok_or(SHORT)?;
        let sections = fields.u32().ok_or(SHORT)?;
        let _zero = fields.u32().ok_or(SHORT)?;
        let tar_len = fields.u64().ok_or(SHORT)?;
        let diff_id = fields.array().ok_or(SHORT)?;
        let _zero = fields.u64().ok_or(SHORT)?;
        if sections as usize > limits::SECTIONS_MAX {
            return Err("has too many sections");
        }
        if tar_len > limits::TAR_BYTES_MAX {
            return Err("describes a tar beyond 2 TiB");
        }
        Ok(Self {
            algorithm,
            chunk_target,
            tar_len,
            diff_id,
            sections,
        })
    }
}
