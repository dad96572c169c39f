//! What an unclean end left in the device file and nobody wrote down.
//!
//! The bits on the disk are a hint, and so is the file itself: where it has data, a chunk may be.
//! Each such chunk is claimed, and verified at its first use like every other claim, so nothing
//! depends on the order in which bytes and bits became durable. A chunk of zeros leaves no data;
//! its digest says that it is one, and its place reads as zeros.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use larder_proto::digest::ChunkDigest;
use larder_proto::index::{Chunk, Index};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::presence::Presence;

/// Pieces of data looked at in one device file. Finding one costs about a microsecond, and all
/// layers together must be open within two seconds; a file in more pieces is rare, and what lies
/// behind them is fetched again.
const EXTENTS_MAX: usize = 50_000;

/// Zeros hashed at most for one layer, bytes: 20 ms. Chunks of zeros come in few lengths, and each
/// length is hashed once.
const ZEROS_HASHED_MAX: u64 = 64 << 20;

/// Claims the chunks of `index` that are all zeros: an empty device has them already, and no source
/// needs to be asked for them.
pub(super) fn claim_zeros<B: AsRef<[u8]>>(presence: &Presence, index: &Index<B>) {
    let mut zeros = Zeros::default();
    for (row, chunk) in index.chunks().enumerate() {
        if zeros.are(&chunk) {
            presence.claim(row);
        }
    }
}

/// Claims every chunk of `index` that `device` has some data of, or that is all zeros. False if
/// there may be more: the file is in too many pieces, or its file system cannot tell.
pub(super) fn claim_what_is_there<B: AsRef<[u8]>>(
    presence: &Presence,
    index: &Index<B>,
    device: &File,
) -> bool {
    let mut zeros = Zeros::default();
    let mut extents = Extents::of(device);
    let mut next = extents.next();
    for (row, chunk) in index.chunks().enumerate() {
        while next.as_ref().is_some_and(|data| data.end <= chunk.offset) {
            next = extents.next();
        }
        let has_data = next.as_ref().is_some_and(|data| data.start < chunk.end());
        if has_data || zeros.are(&chunk) {
            presence.claim(row);
        }
    }
    extents.were_all
}

/// The parts of a sparse file that hold data, ascending.
struct Extents<'a> {
    device: &'a File,
    at: u64,
    found: usize,
    were_all: bool,
}

impl<'a> Extents<'a> {
    fn of(device: &'a File) -> Self {
        Self {
            device,
            at: 0,
            found: 0,
            were_all: true,
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = Range<u64>;

    fn next(&mut self) -> Option<Range<u64>> {
        self.found += 1;
        let data = if self.found > EXTENTS_MAX {
            Err(Errno::FBIG)
        } else {
            let start = seek(self.device, SeekFrom::Data(self.at));
            start.and_then(|start| Ok(start..seek(self.device, SeekFrom::Hole(start))?))
        };
        match data {
            Ok(data) if data.start < data.end => {
                self.at = data.end;
                Some(data)
            }
            Err(Errno::NXIO) => None,
            _ => {
                self.were_all = false;
                None
            }
        }
    }
}

/// Whether a chunk's frame is as short as one of zeros: a header, and four bytes for each block of
/// 128 KiB.
pub(super) fn may_be_zeros(chunk: &Chunk) -> bool {
    chunk.stored_len <= 32 + chunk.len / (16 << 10)
}

/// Digests of zeros, by length.
#[derive(Default)]
struct Zeros {
    digests: HashMap<u32, ChunkDigest>,
    hashed: u64,
}

impl Zeros {
    fn are(&mut self, chunk: &Chunk) -> bool {
        if !may_be_zeros(chunk) {
            return false;
        }
        let known = self.digests.get(&chunk.len);
        if let Some(known) = known {
            return *known == chunk.content;
        }
        self.hashed += u64::from(chunk.len);
        if self.hashed > ZEROS_HASHED_MAX {
            return false;
        }
        let digest = chunk
            .content
            .algorithm()
            .digest(&vec![0; chunk.len as usize]);
        self.digests.insert(chunk.len, digest);
        digest == chunk.content
    }
}
