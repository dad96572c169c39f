//! Sparse files in PAX archives: which parts of the file lie in the tar.

use super::TarError;
use super::header::BLOCK;
use super::number::decimal;
use super::pax::Records;
use crate::limits;

/// A part of a sparse file that lies in the tar; the parts lie there one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Whether a member is sparse, and where its map is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sparse {
    /// The payload is the file.
    No,
    /// The map was in the records (formats 0.0 and 0.1).
    Segments(Vec<Segment>),
    /// The payload begins with the map (format 1.0): see [`MapReader`].
    MapInPayload,
}

/// What the records say about sparseness: the form, the file's name and its size.
pub(super) struct Description {
    pub(super) form: Sparse,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
}

impl Description {
    /// Reads it from `records`; `None` if the member is not sparse, or in a form nobody knows.
    pub(super) fn of(records: &Records) -> Result<Option<Self>, TarError> {
        let in_payload = match (
            records.get("GNU.sparse.major"),
            records.get("GNU.sparse.minor"),
        ) {
            (Some(b"0"), Some(b"0" | b"1")) => false,
            (Some(b"1"), Some(b"0")) => true,
            (None, None) if records.sparse_map().is_some() => false,
            _ => return Ok(None),
        };
        let size = match records.number("GNU.sparse.size")? {
            None => records.number("GNU.sparse.realsize")?,
            some => some,
        };
        let form = if in_payload {
            Sparse::MapInPayload
        } else {
            Sparse::Segments(listed(records)?)
        };
        Ok(Some(Self {
            form,
            name: records.get("GNU.sparse.name").map(<[u8]>::to_vec),
            size,
        }))
    }
}

/// The segments of formats 0.0 and 0.1.
fn listed(records: &Records) -> Result<Vec<Segment>, TarError> {
    let blocks = records
        .number("GNU.sparse.numblocks")?
        .and_then(|n| usize::try_from(n).ok())
        .ok_or(TarError::SparseMap(
            "it does not say how many segments it has",
        ))?;
    let map = records.sparse_map().unwrap_or_default();
    let numbers: Vec<&[u8]> = match map {
        b"" => Vec::new(),
        _ => map.split(|&b| b == b',').collect(),
    };
    // The list fits one set of records, so `blocks` cannot ask for more memory than that.
    if blocks.checked_mul(2) != Some(numbers.len()) {
        return Err(TarError::SparseMap(
            "it has another number of segments than it says",
        ));
    }
    numbers
        .chunks_exact(2)
        .map(|pair| segment(pair[0], pair[1]))
        .collect()
}

fn segment(offset: &[u8], len: &[u8]) -> Result<Segment, TarError> {
    let number = |text| {
        decimal(text)
            .and_then(|n| u64::try_from(n).ok())
            .ok_or(TarError::SparseMap(
                "it contains something that is not a number",
            ))
    };
    Ok(Segment {
        offset: number(offset)?,
        len: number(len)?,
    })
}

/// Checks a map against the file's `size` and the bytes it has in the tar, and drops empty
/// segments.
pub(super) fn check(segments: &mut Vec<Segment>, size: u64, stored: u64) -> Result<(), TarError> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for segment in segments.iter() {
        if segment.offset < end {
            return Err(TarError::SparseMap("segments overlap or are out of order"));
        }
        end = segment
            .offset
            .checked_add(segment.len)
            .filter(|&end| end <= size)
            .ok_or(TarError::SparseMap(
                "a segment lies beyond the end of the file",
            ))?;
        sum += segment.len;
    }
    if sum != stored {
        return Err(TarError::SparseMap(
            "the segments have another length than the data",
        ));
    }
    segments.retain(|segment| segment.len > 0);
    Ok(())
}

/// Reads the map at the beginning of a payload in format 1.0: decimal lines, the number of
/// segments first, then offset and length of each; padded to 512 bytes.
#[derive(Debug)]
pub struct MapReader {
    size: u64,
    payload: u64,
    read: u64,
    line: Vec<u8>,
    lines_left: Option<u64>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl MapReader {
    /// For a file of `size` bytes whose map and data take `payload` bytes in the tar.
    pub fn new(size: u64, payload: u64) -> Self {
        Self {
            size,
            payload,
            read: 0,
            line: Vec::new(),
            lines_left: None,
            offset: None,
            segments: Vec::new(),
        }
    }

    /// Takes the next bytes of the payload. When the map is complete, returns the checked
    /// segments and the length of the map in the payload.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<(Vec<Segment>, u64)>, TarError> {
        for &byte in bytes {
            self.read += 1;
            if self.lines_left != Some(0) {
                self.byte(byte)?;
            }
            if self.lines_left == Some(0) && self.read.is_multiple_of(BLOCK as u64) {
                let mut segments = std::mem::take(&mut self.segments);
                check(&mut segments, self.size, self.payload - self.read)?;
                return Ok(Some((segments, self.read)));
            }
            if self.read >= limits::TAR_RECORDS_BYTES_MAX {
                return Err(TarError::TooLong {
                    what: "sparse map",
                    len: self.read,
                    max: limits::TAR_RECORDS_BYTES_MAX,
                });
            }
        }
        if self.read >= self.payload {
            return Err(TarError::SparseMap("it is cut off"));
        }
        Ok(None)
    }

    fn byte(&mut self, byte: u8) -> Result<(), TarError> {
        if byte != b'\n' {
            self.line.push(byte);
            return Ok(());
        }
        let number = decimal(&self.line)
            .and_then(|n| u64::try_from(n).ok())
            .ok_or(TarError::SparseMap(
                "it contains something that is not a number",
            ))?;
        self.line.clear();
        let Some(left) = self.lines_left else {
            let lines = number.checked_mul(2);
            self.lines_left = Some(lines.ok_or(TarError::SparseMap("it has too many segments"))?);
            return Ok(());
        };
        self.lines_left = Some(left - 1);
        match self.offset.take() {
            None => self.offset = Some(number),
            Some(offset) => self.segments.push(Segment {
                offset,
                len: number,
            }),
        }
        Ok(())
    }
}
