//! Taking an answer apart while it comes: a chunk that is whole goes on before the next one has come.

use std::ops::Range;
use std::sync::PoisonError;

use bytes::Bytes;
use larder_proto::index::Chunk;
use larder_registry::Origin;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::lane::Asked;
use crate::source::{Arrivals, Delivery};
use crate::store::StoredLayer;
use crate::sync::Mutex;

/// A chunk's frame as it came, not verified.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) row: usize,
    pub(super) chunk: Chunk,
    pub(super) bytes: Bytes,
    pub(super) origin: Option<Origin>,
}

/// One answer on its way. Its frames wait unbounded: a request has at most
/// [`super::RUN_BYTES_MAX`], or one chunk.
#[derive(Debug)]
pub(super) struct Arriving<'a> {
    layer: &'a StoredLayer,
    /// Of the request, in the blob.
    start: u64,
    end_row: usize,
    /// The first row that is not handed on.
    next: Mutex<usize>,
    asked: Asked,
    frames: UnboundedSender<Frame>,
}

impl<'a> Arriving<'a> {
    /// The answer to `asked`, which is for `rows` and begins at `start` of the blob.
    pub(super) fn new(
        layer: &'a StoredLayer,
        rows: Range<usize>,
        start: u64,
        asked: Asked,
    ) -> (Self, UnboundedReceiver<Frame>) {
        let (frames, receiver) = unbounded_channel();
        let arriving = Self {
            layer,
            start,
            end_row: rows.end,
            next: Mutex::new(rows.start),
            asked,
            frames,
        };
        (arriving, receiver)
    }

    /// Hands on what was not shown before the answer was whole.
    pub(super) fn finish(&self, delivery: &Delivery) {
        self.arrived(&delivery.bytes, delivery.origin.as_ref());
    }

    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// The next frame, if all of it is among the bytes `so_far`.
    fn whole(&self, row: usize, so_far: &[u8]) -> Option<(Chunk, Bytes)> {
        let chunk = self
            .layer
            .index()
            .chunk(row)
            .filter(|_| row < self.end_row)?;
        let place = |at: u64| usize::try_from(at.checked_sub(self.start)?).ok();
        let range = chunk.stored_range();
        let frame = so_far.get(place(range.start)?..place(range.end)?)?;
        Some((chunk, Bytes::copy_from_slice(frame)))
    }
}

impl Arrivals for Arriving<'_> {
    fn arrived(&self, so_far: &[u8], origin: Option<&Origin>) {
        self.asked.arrived(so_far.len() as u64);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((chunk, bytes)) = self.whole(*next, so_far) {
            let (row, origin) = (*next, origin.cloned());
            // Nobody takes it: the runtime ends.
            let _ = self.frames.send(Frame {
                row,
                chunk,
                bytes,
                origin,
            });
            *next += 1;
        }
    }
}
