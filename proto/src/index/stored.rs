//! The index as it lies in a layer blob: compressed in a skippable frame, then the footer.

use super::header::{FOOTER_MAGIC, Fields, SKIPPABLE_HEADER_LEN, SKIPPABLE_MAGIC, VERSION};
use crate::annotation::IndexLocation;
use crate::digest::Digest;
use crate::limits;

/// Compression level of the index: read at every first mount and written once.
const LEVEL: i32 = 9;

/// Bytes of the footer's payload.
const FOOTER_LEN: u64 = 72;

/// Bytes of the footer with the header of its skippable frame: the last bytes of a layer blob.
pub const FOOTER_FRAME_LEN: u64 = SKIPPABLE_HEADER_LEN + FOOTER_LEN;

/// The end of a layer blob: index frame and footer frame, and where the index lies.
#[derive(Debug, Clone)]
pub struct StoredIndex {
    /// The two skippable frames, to be appended to the data frames.
    pub tail: Vec<u8>,
    /// What the layer descriptor's annotation says.
    pub location: IndexLocation,
}

/// A stored index that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// The index is beyond a limit of the format.
    #[error("the index is {0} bytes, more than the format allows")]
    TooLarge(u64),
    /// The bytes are not those the annotation vouches for.
    #[error("the stored index has digest {found}, its annotation says {expected}")]
    Digest {
        /// From the annotation.
        expected: Digest,
        /// Of the bytes that came.
        found: Digest,
    },
    /// The bytes do not decompress to the length the annotation gives.
    #[error("the stored index does not decompress to {0} bytes")]
    Decompress(u64),
}

impl StoredIndex {
    /// Compresses `index` for a blob whose data frames take `frames_len` bytes.
    pub fn seal(index: &[u8], frames_len: u64) -> Result<Self, StoredError> {
        let too_large = |len: usize| StoredError::TooLarge(len as u64);
        if index.len() as u64 > limits::INDEX_BYTES_MAX {
            return Err(too_large(index.len()));
        }
        let stored = zstd::bulk::compress(index, LEVEL).map_err(|_| too_large(index.len()))?;
        let location = IndexLocation {
            offset: frames_len + SKIPPABLE_HEADER_LEN,
            stored_len: stored.len() as u64,
            len: index.len() as u64,
            digest: Digest::of(&stored),
        };
        location.check().map_err(|_| too_large(stored.len()))?;
        let mut tail = Vec::with_capacity(stored.len() + 96);
        push_skippable(&mut tail, &stored);
        push_skippable(&mut tail, &Footer { location }.encode());
        Ok(Self { tail, location })
    }
}

/// Verifies the stored index against its location and decompresses it.
///
/// Memory is bounded by the location's length, which was checked against the format's limit.
pub fn open_stored(stored: &[u8], location: &IndexLocation) -> Result<Vec<u8>, StoredError> {
    let found = Digest::of(stored);
    if found != location.digest {
        return Err(StoredError::Digest {
            expected: location.digest,
            found,
        });
    }
    let refuse = || StoredError::Decompress(location.len);
    let len = usize::try_from(location.len).map_err(|_| refuse())?;
    let index = zstd::bulk::decompress(stored, len).map_err(|_| refuse())?;
    if index.len() == len {
        Ok(index)
    } else {
        Err(refuse())
    }
}

/// The payload of a layer blob's last frame. It finds an index; only an annotation vouches for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Where the index lies.
    pub location: IndexLocation,
}

/// The end of a blob that is not Larder's footer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the blob does not end in a footer of this version of Larder: {0}")]
pub struct FooterError(&'static str);

impl Footer {
    /// ```text
    ///  0  magic "LARDERFT"   16  index offset u64   24  stored length u64
    ///  8  version u16        32  length u64         40  sha256 of the stored index
    /// 10  zero, 6 bytes
    /// ```
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(72);
        out.extend(FOOTER_MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([0; 6]);
        out.extend(self.location.offset.to_le_bytes());
        out.extend(self.location.stored_len.to_le_bytes());
        out.extend(self.location.len.to_le_bytes());
        out.extend(self.location.digest.as_bytes());
        out
    }

    /// Reads the last [`FOOTER_FRAME_LEN`] bytes of a blob that is `blob_len` bytes long.
    pub fn decode(frame: &[u8], blob_len: u64) -> Result<Self, FooterError> {
        let short = || FooterError("it is too short");
        let mut fields = Fields(frame);
        let magic = fields.u32().ok_or_else(short)?;
        let len = fields.u32().ok_or_else(short)?;
        if magic != SKIPPABLE_MAGIC || u64::from(len) != FOOTER_LEN {
            return Err(FooterError("there is no skippable frame of its size"));
        }
        if fields.array::<8>().ok_or_else(short)? != FOOTER_MAGIC {
            return Err(FooterError("the magic number differs"));
        }
        if fields.u16().ok_or_else(short)? != VERSION {
            return Err(FooterError("the version differs"));
        }
        fields.bytes(6).ok_or_else(short)?;
        let location = IndexLocation {
            offset: fields.u64().ok_or_else(short)?,
            stored_len: fields.u64().ok_or_else(short)?,
            len: fields.u64().ok_or_else(short)?,
            digest: Digest::from_bytes(fields.array().ok_or_else(short)?),
        };
        let location = location.check().map_err(FooterError)?;
        if location.offset + location.stored_len + FOOTER_FRAME_LEN != blob_len {
            return Err(FooterError("the index does not lie before it"));
        }
        Ok(Self { location })
    }
}

fn push_skippable(out: &mut Vec<u8>, payload: &[u8]) {
    let len = u32::try_from(payload.len()).expect("INDEX_STORED_BYTES_MAX fits 32 bits");
    out.extend(SKIPPABLE_MAGIC.to_le_bytes());
    out.extend(len.to_le_bytes());
    out.extend(payload);
}
