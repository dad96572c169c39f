//! Writing an index.

use super::Chunk;
use super::header::{HEADER_LEN, Header, SECTION_ALIGN, SECTION_LEN, Section};
use crate::digest::{Algorithm, Digest};

/// What an index is made of.
#[derive(Debug)]
pub struct IndexParts<'a> {
    /// SHA-256 of the tar, as the image's config lists it.
    pub diff_id: Digest,
    /// Length of the tar, bytes.
    pub tar_len: u64,
    /// The chunk size that was asked for.
    pub chunk_target: u32,
    /// The algorithm of all digests in `chunks`.
    pub algorithm: Algorithm,
    /// The EROFS metadata image.
    pub metadata: &'a [u8],
    /// The chunks in tar order, without gaps in the tar or in the blob.
    pub chunks: &'a [Chunk],
    /// Paths of the implied directories, sorted, without leading or trailing slash.
    pub implied: &'a [Vec<u8>],
}

impl IndexParts<'_> {
    /// The bytes of the index.
    ///
    /// The caller vouches for the parts; [`super::Index::open`] refuses what does not fit together.
    pub fn encode(&self) -> Vec<u8> {
        let sections = [
            (Section::Metadata, self.metadata.to_vec()),
            (Section::Chunks, self.encode_chunks()),
            (Section::Implied, self.encode_implied()),
            (Section::Decoder, Vec::new()),
        ];
        let mut out = Vec::new();
        Header {
            algorithm: self.algorithm.id(),
            chunk_target: self.chunk_target,
            tar_len: self.tar_len,
            diff_id: *self.diff_id.as_bytes(),
            sections: 4,
        }
        .encode(&mut out);
        let mut offset = HEADER_LEN + SECTION_LEN * sections.len();
        for (section, bytes) in &sections {
            offset = offset.next_multiple_of(SECTION_ALIGN);
            out.extend((*section as u32).to_le_bytes());
            out.extend(0_u32.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            out.extend((bytes.len() as u64).to_le_bytes());
            offset += bytes.len();
        }
        for (_, bytes) in &sections {
            out.resize(out.len().next_multiple_of(SECTION_ALIGN), 0);
            out.extend(bytes);
        }
        out
    }

    fn encode_chunks(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.chunks.len() * super::read::CHUNK_ROW_LEN);
        for chunk in self.chunks {
            out.extend(chunk.offset.to_le_bytes());
            out.extend(chunk.stored_offset.to_le_bytes());
            out.extend(chunk.len.to_le_bytes());
            out.extend(chunk.stored_len.to_le_bytes());
            out.extend(chunk.frame.as_bytes());
            out.extend(chunk.content.as_bytes());
        }
        out
    }

    fn encode_implied(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for path in self.implied {
            let len = u16::try_from(path.len()).expect("PATH_BYTES_MAX fits 16 bits");
            out.extend(len.to_le_bytes());
            out.extend(path);
        }
        out
    }
}
