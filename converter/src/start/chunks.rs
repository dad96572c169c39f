//! From pieces of files to chunks of layers.

use std::collections::HashSet;
use std::ops::Range;

use larder_proto::access::Access;

use crate::view::{Found, View};

/// Compressed bytes up to which an image's list has what a start only may read: what 200 Mbit/s brings in 0.67 s, the
/// longest that a start with everything local took. What comes later than that, the program has asked for itself.
pub(super) const LIKELY_BYTES_MAX: u64 = 16 << 20;

/// Compressed bytes of an image's list, which has beyond the first limit only what a start surely reads: about
/// as much as the largest start that was measured reads in all, and twice that time at 200 Mbit/s.
pub(super) const LISTED_BYTES_MAX: u64 = 2 * LIKELY_BYTES_MAX;

/// Layers up to this length are listed whole, compressed bytes, when anything in them is: at 200 Mbit/s they
/// come in 40 ms, which is what few round trips take.
const SMALL_LAYER_BYTES_MAX: u64 = 1 << 20;

/// Bytes per microsecond at 200 Mbit/s. A chunk's time is when it would have come, which puts the chunks of
/// all layers into one order.
const BYTES_PER_MICROSECOND: u64 = 25;

/// Bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) file: Found,
    pub(super) range: Range<u64>,
}

/// What a start reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Pieces {
    /// What it surely reads, in that order.
    pub(super) sure: Vec<Piece>,
    /// What it may read, of large files.
    pub(super) likely: Vec<Piece>,
}

/// The chunks that hold these pieces, for each layer by its number, up to the limits.
pub(super) fn accesses(view: &View, pieces: &Pieces) -> Vec<Vec<Access>> {
    let mut list = List {
        view,
        layers: Vec::new(),
        seen: HashSet::new(),
        bytes: 0,
        limit: LISTED_BYTES_MAX,
    };
    pieces.sure.iter().for_each(|piece| list.piece(piece));
    list.limit = LIKELY_BYTES_MAX;
    pieces.likely.iter().for_each(|piece| list.piece(piece));
    list.layers
}

struct List<'a> {
    view: &'a View,
    layers: Vec<Vec<Access>>,
    seen: HashSet<(usize, usize)>,
    /// Compressed bytes listed so far.
    bytes: u64,
    /// And no more than that.
    limit: u64,
}

impl List<'_> {
    fn piece(&mut self, piece: &Piece) {
        let layer = piece.file.place().layer();
        let Some(index) = self.view.index(layer) else {
            return;
        };
        if index.frames_len() <= SMALL_LAYER_BYTES_MAX {
            self.rows(layer, 0..index.chunk_count());
            return;
        }
        for extent in self.view.extents(&piece.file, &piece.range) {
            let rows = index.rows(extent.tar_offset..extent.tar_offset + extent.len);
            self.rows(layer, rows);
        }
    }

    fn rows(&mut self, layer: usize, rows: Range<usize>) {
        for row in rows {
            let chunk = self.view.index(layer).and_then(|index| index.chunk(row));
            let Some(chunk) = chunk.filter(|_| !self.seen.contains(&(layer, row))) else {
                continue;
            };
            let bytes = self.bytes + u64::from(chunk.stored_len);
            if bytes > self.limit {
                return;
            }
            let micros = std::mem::replace(&mut self.bytes, bytes) / BYTES_PER_MICROSECOND;
            self.seen.insert((layer, row));
            if self.layers.len() <= layer {
                self.layers.resize_with(layer + 1, Vec::new);
            }
            // An index has fewer than 2^28 / 88 rows.
            let chunk = u32::try_from(row).unwrap_or(u32::MAX);
            self.layers[layer].push(Access { micros, chunk });
        }
    }
}
