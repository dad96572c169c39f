//! Where the chunks of a tar are cut: a pure function of the tar and the target size.
//!
//! A layer rebuilt with new modification times differs from the old one in every header, yet in
//! few contents. So the payload of a file of at least [`limits::PAYLOAD_CHUNK_MIN`] bytes has
//! chunks of its own, which the next version has again. What lies between such payloads (headers
//! and small files) is *packed*: cut where an entry begins, at the entry whose name has the highest
//! rank among those in reach, so that versions which differ in a few entries soon cut at the same
//! entries again.
//!
//! ```text
//! |hdr small hdr small … hdr|payload ≥ 64 KiB, cut at the target|hdr small … hdr|payload|…|end
//! '——— packed, cut at entries ———'                              '——— packed ————'
//! ```
//!
//! A cut is known at the latest [`CUT_LAG_MAX`] bytes after its place.

mod pieces;

use std::collections::VecDeque;

use crate::limits;
use pieces::Pieces;

/// How far behind the scanned bytes a cut may lie, bytes: an undecided packed run or run of
/// zeros, with the headers of one entry.
pub const CUT_LAG_MAX: u64 =
    2 * limits::CHUNK_BYTES_MAX as u64 + limits::TAR_MEMBER_HEADERS_BYTES_MAX;

/// Chooses the cuts of one tar from what a parser reports about it.
#[derive(Debug)]
pub(crate) struct Cutter {
    /// Piece size inside payloads, bytes.
    target: u64,
    /// Mean size of packed chunks, bytes.
    packed: u64,
    /// Where the last cut is; the open chunk begins here.
    last: u64,
    /// Bytes told of so far.
    offset: u64,
    /// Beginnings of entries in the open packed run, with their ranks.
    candidates: VecDeque<(u64, u64)>,
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    Packed,
    /// Inside the payload of a large file.
    Payload(Pieces),
    /// After the end of the archive, at this offset: packed while there is little.
    Trailer(u64),
}

impl Cutter {
    /// A cutter for chunks of about `target` bytes, which is clamped to what the format allows
    /// and rounded down to whole blocks.
    pub(crate) fn new(target: u32) -> Self {
        let target = target.clamp(limits::CHUNK_TARGET_MIN, limits::CHUNK_BYTES_MAX);
        let target = u64::from(target) / limits::BLOCK * limits::BLOCK;
        Self {
            target,
            // A packed run is closed at twice its mean size, which must fit a chunk.
            packed: target.min(u64::from(limits::CHUNK_BYTES_MAX) / 2),
            last: 0,
            offset: 0,
            candidates: VecDeque::new(),
            mode: Mode::Packed,
        }
    }

    /// An entry named `name` begins at `start`; its payload of `data_len` bytes begins at
    /// `data_offset`.
    pub(crate) fn entry(
        &mut self,
        name: &[u8],
        start: u64,
        data_offset: u64,
        data_len: u64,
        cuts: &mut Vec<u64>,
    ) {
        self.candidates.push_back((start, rank(name)));
        self.settle(start, cuts);
        self.offset = data_offset;
        if data_len >= limits::PAYLOAD_CHUNK_MIN {
            self.close(data_offset, cuts);
            let end = data_offset + data_len.next_multiple_of(limits::BLOCK);
            self.mode = Mode::Payload(Pieces::new(data_offset, Some(end), self.target));
        }
    }

    /// The next bytes of a payload, of its padding, or after the end of the archive.
    pub(crate) fn bytes(&mut self, mut bytes: &[u8], cuts: &mut Vec<u64>) {
        if let Mode::Trailer(at) = self.mode {
            let packed = at + limits::PAYLOAD_CHUNK_MIN - self.offset;
            let packed = usize::try_from(packed).map_or(bytes.len(), |n| n.min(bytes.len()));
            bytes = &bytes[packed..];
            self.offset += packed as u64;
            if !bytes.is_empty() {
                self.close(self.offset, cuts);
                self.mode = Mode::Payload(Pieces::new(self.offset, None, self.target));
            }
        }
        self.offset += bytes.len() as u64;
        if let Mode::Payload(pieces) = &mut self.mode
            && pieces.bytes(bytes, &mut self.last, cuts)
        {
            self.mode = Mode::Packed;
        }
    }

    /// The archive ended: what follows `at` is not part of any entry.
    pub(crate) fn archive_end(&mut self, at: u64) {
        self.offset = at;
        self.mode = Mode::Trailer(at);
    }

    /// The tar ended, `len` bytes long.
    pub(crate) fn finish(mut self, len: u64, cuts: &mut Vec<u64>) {
        match &mut self.mode {
            Mode::Payload(pieces) => pieces.finish(len, &mut self.last, cuts),
            Mode::Packed | Mode::Trailer(_) => self.close(len, cuts),
        }
    }

    /// Cuts the packed run, of which everything before `end` is known, until less than two mean
    /// chunks are open.
    fn settle(&mut self, end: u64, cuts: &mut Vec<u64>) {
        while end - self.last >= 2 * self.packed {
            let (min, max) = (self.last + self.packed / 2, self.last + self.packed / 2 * 3);
            let cut = self
                .best(min, max)
                .or_else(|| self.first(max, self.last + 2 * self.packed))
                .unwrap_or(max);
            self.cut(cut, cuts);
        }
    }

    /// Ends the packed run at `end`, with at most one more cut inside it.
    fn close(&mut self, end: u64, cuts: &mut Vec<u64>) {
        self.settle(end, cuts);
        let half = self.packed / 2;
        if end - self.last > 3 * half
            && let Some(cut) = self.best(self.last + half, end - half)
        {
            self.cut(cut, cuts);
        }
        self.cut(end, cuts);
    }

    /// The candidate with the highest rank in `min..=max`; of equals, the first.
    fn best(&self, min: u64, max: u64) -> Option<u64> {
        let mut best: Option<(u64, u64)> = None;
        for &(at, rank) in &self.candidates {
            if (min..=max).contains(&at) && best.is_none_or(|(_, highest)| rank > highest) {
                best = Some((at, rank));
            }
        }
        best.map(|(at, _)| at)
    }

    /// The first candidate in `after + 1..=max`.
    fn first(&self, after: u64, max: u64) -> Option<u64> {
        let mut places = self.candidates.iter().map(|&(at, _)| at);
        places.find(|&at| after < at && at <= max)
    }

    fn cut(&mut self, at: u64, cuts: &mut Vec<u64>) {
        emit(at, &mut self.last, cuts);
        while self
            .candidates
            .front()
            .is_some_and(|&(place, _)| place <= at)
        {
            self.candidates.pop_front();
        }
    }
}

/// Records a cut at `at`, unless the open chunk is empty.
fn emit(at: u64, last: &mut u64, cuts: &mut Vec<u64>) {
    if at > *last {
        cuts.push(at);
        *last = at;
    }
}

/// The rank of an entry among cutting points: the first eight bytes of the BLAKE3 hash of its
/// name, little endian.
fn rank(name: &[u8]) -> u64 {
    let hash = blake3::hash(name);
    let (first, _) = hash.as_bytes().split_at(8);
    first
        .iter()
        .rev()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}
