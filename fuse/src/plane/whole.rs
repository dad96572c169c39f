//! Small layers, which come whole with their index: one request instead of two.

use bytes::Bytes;
use larder_proto::annotation::IndexLocation;
use tracing::debug;

use super::Plane;
use crate::fetch::open_frame;
use crate::source::Source;
use crate::store::{Published, StoredLayer};

/// What came before an index, in the blob: the layer's frames, not verified.
#[derive(Debug)]
pub(super) struct Frames {
    pub(super) bytes: Bytes,
    /// The name of the source.
    pub(super) source: String,
    /// The machine that sent them, where that is known.
    pub(super) host: Option<String>,
}

impl Plane {
    /// From where on a blob is asked for, to have its index.
    pub(super) fn asked_from(&self, source: &dyn Source, location: &IndexLocation) -> u64 {
        let end = location.offset + location.stored_len;
        let most = self.config.whole_layer_max;
        if end > most || self.store.caching_stopped().is_some() {
            return location.offset;
        }
        // More would keep Prepare waiting for longer than it spares the start.
        let product = self.context.lanes.to(source.link()).product();
        if end > product { location.offset } else { 0 }
    }
}

/// Puts the chunks among `frames`, which begin where the blob does, into the store, if they are what the index
/// says; what is not is fetched when it is wanted. How many stored bytes are there now.
pub(super) fn keep(layer: &StoredLayer, frames: &Bytes) -> u64 {
    let mut kept = 0;
    for row in 0..layer.index().chunk_count() {
        let Some(chunk) = layer.index().chunk(row) else {
            break;
        };
        let place = |at: u64| usize::try_from(at).ok().filter(|at| *at <= frames.len());
        let range = chunk.stored_range();
        let (Some(start), Some(end)) = (place(range.start), place(range.end)) else {
            continue;
        };
        match open_frame(&chunk, frames.slice(start..end)) {
            Ok(content) => match layer.publish(row, &chunk, &content, false) {
                Published::Stored => kept += u64::from(chunk.stored_len),
                // Without room for this one there is none for the others.
                Published::NotStored => break,
            },
            Err(wrong) => {
                debug!(
                    chunk = row,
                    wrong, "a chunk that came with its index is left"
                );
            }
        }
    }
    kept
}
