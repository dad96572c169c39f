//! Cuts inside a large payload: pieces of the target size, runs of zeros joined.

use super::emit;
use crate::limits;

/// The pieces of one payload, or of what follows the end of the archive.
#[derive(Debug)]
pub(super) struct Pieces {
    target: u64,
    /// Where the payload ends, padding included; unknown after the end of the archive.
    end: Option<u64>,
    /// Bytes told of so far.
    at: u64,
    start: u64,
    piece_end: u64,
    /// The piece has had nothing but zeros.
    zeros: bool,
    /// The piece before was nothing but zeros and is not closed yet.
    joined: bool,
}

impl Pieces {
    pub(super) fn new(start: u64, end: Option<u64>, target: u64) -> Self {
        let mut pieces = Self {
            target,
            end,
            at: start,
            start,
            piece_end: start,
            zeros: true,
            joined: false,
        };
        pieces.begin(start);
        pieces
    }

    fn begin(&mut self, start: u64) {
        self.start = start;
        self.zeros = true;
        self.piece_end = match self.end {
            // The last piece takes what is left, so that it is at least half a target long.
            Some(end)
                if end - start < self.target / 2 * 3
                    && end - start <= u64::from(limits::CHUNK_BYTES_MAX) =>
            {
                end
            }
            _ => start + self.target,
        };
    }

    /// Takes the next bytes; true when they complete the payload.
    pub(super) fn bytes(&mut self, mut bytes: &[u8], last: &mut u64, cuts: &mut Vec<u64>) -> bool {
        while !bytes.is_empty() {
            let left = usize::try_from(self.piece_end - self.at).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(left.min(bytes.len()));
            bytes = rest;
            self.at += part.len() as u64;
            if self.zeros && !is_zero(part) {
                self.zeros = false;
                self.separate(last, cuts);
            }
            if self.at == self.piece_end {
                self.end_piece(last, cuts);
                if self.end == Some(self.at) {
                    return true;
                }
            }
        }
        false
    }

    fn end_piece(&mut self, last: &mut u64, cuts: &mut Vec<u64>) {
        if self.piece_end - *last > u64::from(limits::CHUNK_BYTES_MAX) {
            self.separate(last, cuts);
        }
        self.joined = self.zeros;
        if !self.zeros || self.end == Some(self.piece_end) {
            emit(self.piece_end, last, cuts);
        }
        self.begin(self.piece_end);
    }

    /// Closes the run of zeros before the piece, if one is open.
    fn separate(&mut self, last: &mut u64, cuts: &mut Vec<u64>) {
        if self.joined {
            emit(self.start, last, cuts);
            self.joined = false;
        }
    }

    /// The tar ended at `len`, which is known to be the end only now.
    pub(super) fn finish(&mut self, len: u64, last: &mut u64, cuts: &mut Vec<u64>) {
        if len - *last > u64::from(limits::CHUNK_BYTES_MAX) {
            self.separate(last, cuts);
        }
        emit(len, last, cuts);
    }
}

/// Whether all bytes are zero; for other contents, one look at the first bytes.
fn is_zero(bytes: &[u8]) -> bool {
    bytes
        .chunks(256)
        .all(|part| part.iter().fold(0, |any, &byte| any | byte) == 0)
}
