//! Reading an index where it lies.

use std::ops::Range;

use super::Chunk;
use super::header::{Fields, HEADER_LEN, Header, SECTION_ALIGN, SECTION_LEN, Section};
use crate::digest::{Algorithm, ChunkDigest, Digest};
use crate::limits;

/// Bytes of one row of the chunk table.
pub(super) const CHUNK_ROW_LEN: usize = 88;

/// A validated index over the bytes it was opened on: a vector, or a read-only mapping.
#[derive(Debug, Clone)]
pub struct Index<B> {
    bytes: B,
    header: Header,
    algorithm: Algorithm,
    metadata: Range<usize>,
    chunks: Range<usize>,
    implied: Range<usize>,
}

/// Bytes that are not an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// The header or the section table is damaged, or of another version.
    #[error("the index {0}")]
    Header(&'static str),
    /// A row of the chunk table contradicts the rows before it, or a limit.
    #[error("chunk {row} of the index {reason}")]
    Chunk {
        /// Place in the table, from 0.
        row: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The list of implied directories is damaged.
    #[error("the index's implied directories {0}")]
    Implied(&'static str),
}

impl<B: AsRef<[u8]>> Index<B> {
    /// Checks every field of the index except its metadata image, which has a reader of its own.
    pub fn open(bytes: B) -> Result<Self, IndexError> {
        let all = bytes.as_ref();
        if all.len() as u64 > limits::INDEX_BYTES_MAX {
            return Err(IndexError::Header("is larger than INDEX_BYTES_MAX"));
        }
        let mut fields = Fields(all);
        let header = Header::decode(&mut fields).map_err(IndexError::Header)?;
        let algorithm = Algorithm::from_id(header.algorithm).ok_or(IndexError::Header(
            "uses an unknown digest algorithm; upgrade Larder",
        ))?;
        let table = SectionTable::read(&mut fields, header.sections as usize, all.len())?;
        let index = Self {
            header,
            algorithm,
            metadata: table.find(Section::Metadata)?,
            chunks: table.find(Section::Chunks)?,
            implied: table.find(Section::Implied)?,
            bytes,
        };
        if !table.find(Section::Decoder)?.is_empty() {
            return Err(IndexError::Header(
                "needs a decoder this build does not have",
            ));
        }
        index.check_chunks()?;
        index.check_implied()?;
        Ok(index)
    }

    /// SHA-256 of the tar, by the index's own account.
    pub fn diff_id(&self) -> Digest {
        Digest::from_bytes(self.header.diff_id)
    }

    /// Length of the tar, bytes.
    pub fn tar_len(&self) -> u64 {
        self.header.tar_len
    }

    /// The chunk size the layer was cut with.
    pub fn chunk_target(&self) -> u32 {
        self.header.chunk_target
    }

    /// The algorithm of the chunk digests.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Number of chunks.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len() / CHUNK_ROW_LEN
    }

    /// The chunk in row `row`, if there is one. Its lengths were checked when the index was opened, and are held to
    /// their limits all the same: a file that is mapped may rot.
    pub fn chunk(&self, row: usize) -> Option<Chunk> {
        let mut chunk = self.chunk_as_written(row)?;
        chunk.len = chunk.len.min(limits::CHUNK_BYTES_MAX);
        chunk.stored_len = chunk.stored_len.min(limits::FRAME_BYTES_MAX);
        Some(chunk)
    }

    /// Whether the chunk of row `row` begins where the one before it ends, and the next one where it does: so it was
    /// when the index was opened, and is not where the table rots while it is mapped. Whoever writes or reads by
    /// places of the table asks.
    pub fn is_in_place(&self, row: usize) -> bool {
        let Some(chunk) = self.chunk_as_written(row) else {
            return false;
        };
        let before = row.checked_sub(1).map_or(Some(0), |before| {
            self.chunk_as_written(before).map(|before| before.end())
        });
        let behind = self.chunk_as_written(row + 1);
        let behind = behind.map_or(self.tar_len(), |behind| behind.offset);
        before == Some(chunk.offset) && behind == chunk.end()
    }

    fn chunk_as_written(&self, row: usize) -> Option<Chunk> {
        let start = row.checked_mul(CHUNK_ROW_LEN)?;
        let rows = &self.bytes.as_ref()[self.chunks.clone()];
        let mut fields = Fields(rows.get(start..start.checked_add(CHUNK_ROW_LEN)?)?);
        Some(Chunk {
            offset: fields.u64()?,
            stored_offset: fields.u64()?,
            len: fields.u32()?,
            stored_len: fields.u32()?,
            frame: ChunkDigest::new(self.algorithm, fields.array()?),
            content: ChunkDigest::new(self.algorithm, fields.array()?),
        })
    }

    /// All chunks in tar order.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = Chunk> + '_ {
        (0..self.chunk_count()).map(|row| self.chunk(row).expect("row is below chunk_count"))
    }

    /// The row of the chunk that holds tar offset `offset`; `None` at and beyond the end.
    pub fn row_at(&self, offset: u64) -> Option<usize> {
        if offset >= self.tar_len() {
            return None;
        }
        let (mut low, mut high) = (0, self.chunk_count());
        while low < high {
            let middle = low + (high - low) / 2;
            if self.chunk(middle)?.end() <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    /// The rows of the chunks that cover the bytes `range` of the tar, cut at the tar's end.
    pub fn rows(&self, range: Range<u64>) -> Range<usize> {
        let end = range.end.min(self.tar_len());
        match (
            self.row_at(range.start),
            end.checked_sub(1).and_then(|last| self.row_at(last)),
        ) {
            (Some(first), Some(last)) if range.start < end => first..last + 1,
            _ => 0..0,
        }
    }

    /// Bytes of the blob before the index: where the last frame ends.
    pub fn frames_len(&self) -> u64 {
        self.chunk_count()
            .checked_sub(1)
            .and_then(|last| self.chunk(last))
            .map_or(0, |chunk| chunk.stored_range().end)
    }

    /// The EROFS metadata image, not yet validated.
    pub fn metadata(&self) -> &[u8] {
        &self.bytes.as_ref()[self.metadata.clone()]
    }

    /// Paths of the directories that no tar entry describes, sorted, without leading slash.
    pub fn implied(&self) -> impl Iterator<Item = &[u8]> {
        let mut fields = Fields(&self.bytes.as_ref()[self.implied.clone()]);
        std::iter::from_fn(move || {
            let len = fields.u16()?;
            fields.bytes(usize::from(len))
        })
    }

    /// The bytes the index was opened on.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    fn check_chunks(&self) -> Result<(), IndexError> {
        if !self.chunks.len().is_multiple_of(CHUNK_ROW_LEN) {
            return Err(IndexError::Header(
                "has a chunk table that ends inside a row",
            ));
        }
        let (mut offset, mut stored_offset) = (0_u64, 0_u64);
        let written = (0..self.chunk_count()).map_while(|row| self.chunk_as_written(row));
        for (row, chunk) in written.enumerate() {
            let refuse = |reason| Err(IndexError::Chunk { row, reason });
            if chunk.len == 0 || chunk.len > limits::CHUNK_BYTES_MAX {
                return refuse("has a length outside 1..=CHUNK_BYTES_MAX");
            }
            if chunk.stored_len == 0 || chunk.stored_len > limits::FRAME_BYTES_MAX {
                return refuse("has a frame length outside 1..=FRAME_BYTES_MAX");
            }
            if chunk.offset != offset || chunk.stored_offset != stored_offset {
                return refuse("does not begin where the one before it ends");
            }
            // No overflow: the table has at most 2^28 / 88 rows of at most 2^23 bytes.
            offset += u64::from(chunk.len);
            stored_offset += u64::from(chunk.stored_len);
        }
        if offset != self.tar_len() {
            return Err(IndexError::Header("has chunks that do not cover the tar"));
        }
        Ok(())
    }

    fn check_implied(&self) -> Result<(), IndexError> {
        let mut fields = Fields(&self.bytes.as_ref()[self.implied.clone()]);
        let mut before: &[u8] = &[];
        while !fields.0.is_empty() {
            let path = fields.u16().and_then(|len| fields.bytes(usize::from(len)));
            let path = path.ok_or(IndexError::Implied("end inside a path"))?;
            if path.len() > limits::PATH_BYTES_MAX || path.contains(&0) {
                return Err(IndexError::Implied("hold a path Linux does not allow"));
            }
            let odd = |name: &[u8]| matches!(name, b"" | b"." | b"..");
            if path.split(|&b| b == b'/').any(odd) {
                return Err(IndexError::Implied(
                    "hold a path that is not in its plain form",
                ));
            }
            if path <= before {
                return Err(IndexError::Implied("are not sorted"));
            }
            before = path;
        }
        Ok(())
    }
}

/// The section table, bounds checked, each kind at most once, unknown kinds passed over.
struct SectionTable(Vec<(u32, Range<usize>)>);

impl SectionTable {
    fn read(fields: &mut Fields<'_>, count: usize, len: usize) -> Result<Self, IndexError> {
        let first = HEADER_LEN + SECTION_LEN * count;
        let mut rows: Vec<(u32, Range<usize>)> = Vec::with_capacity(count);
        for _ in 0..count {
            let row = (|| Some((fields.u32()?, fields.u32()?, fields.u64()?, fields.u64()?)))();
            let (kind, _zero, offset, size) =
                row.ok_or(IndexError::Header("ends inside its section table"))?;
            let end = offset.checked_add(size).filter(|&end| end <= len as u64);
            let (Ok(start), Some(Ok(end))) = (usize::try_from(offset), end.map(usize::try_from))
            else {
                return Err(IndexError::Header("has a section outside its bytes"));
            };
            if start < first {
                return Err(IndexError::Header("has a section inside its header"));
            }
            if !start.is_multiple_of(SECTION_ALIGN) {
                return Err(IndexError::Header("has a section that is not aligned"));
            }
            if rows.iter().any(|(other, _)| *other == kind) {
                return Err(IndexError::Header("has a section twice"));
            }
            // Bytes that are two things at once are a way to get past the check of one of them.
            let overlaps = |other: &Range<usize>| start < other.end && other.start < end;
            if rows.iter().any(|(_, other)| overlaps(other)) {
                return Err(IndexError::Header("has sections that overlap"));
            }
            rows.push((kind, start..end));
        }
        Ok(Self(rows))
    }

    fn find(&self, section: Section) -> Result<Range<usize>, IndexError> {
        let row = self.0.iter().find(|(kind, _)| *kind == section as u32);
        row.map(|(_, range)| range.clone())
            .ok_or(IndexError::Header("lacks a section"))
    }
}
