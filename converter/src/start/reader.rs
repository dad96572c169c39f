//! Pieces of files from converted layers, wherever those are: in a file that waits to be pushed, at the
//! destination, or in the source.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_proto::index::Chunk;
use larder_proto::tree::Kind;

use super::Content;
use crate::destination::{Destination, read_at};
use crate::source::Source;
use crate::view::{Found, View, open_frame};

/// Chunks kept decompressed: a walk goes back and forth between a program, a library and a module. At 4 MiB
/// each they are 64 MiB, at 256 KiB they are 4.
const CHUNKS_KEPT: usize = 16;

/// Compressed bytes read for one list: a bound for what a hostile image costs, eight times what may be listed.
const READ_BYTES_MAX: u64 = 8 * super::chunks::LISTED_BYTES_MAX;

/// Where a converted layer can be read.
#[derive(Debug, Clone)]
pub(crate) enum Place<'a> {
    /// In this file.
    File(Arc<File>),
    /// In the image that is converted, which has it in this form already.
    Source(&'a Source),
    /// At the destination, from an earlier conversion.
    Destination(&'a Destination),
}

impl Place<'_> {
    /// The bytes `range` of the blob.
    pub(crate) async fn range(&self, blob: &Digest, range: Range<u64>) -> Result<Bytes, String> {
        let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let read = match self {
            Self::File(file) => {
                let read = read_at(Arc::clone(file), range.start, len).await;
                read.map_err(|error| error.to_string())
            }
            Self::Source(source) => {
                let read = source.range(blob, range).await;
                read.map_err(|error| error.to_string())
            }
            Self::Destination(destination) => {
                let read = destination.range(blob, range).await;
                read.map_err(|error| error.to_string())
            }
        };
        match read {
            Ok(bytes) if bytes.len() == len => Ok(bytes),
            Ok(_) => Err(format!("layer {blob} is cut off")),
            Err(error) => Err(error),
        }
    }
}

/// Reads files of a view.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    /// Digest and place of each layer, by its number.
    layers: Vec<(Digest, Place<'a>)>,
    /// Layer, row and content, the latest last.
    kept: VecDeque<(usize, usize, Arc<Vec<u8>>)>,
    read: u64,
}

impl<'a> Reader<'a> {
    /// Reads from these layers, which are those of the view in its order.
    pub(crate) fn new(layers: Vec<(Digest, Place<'a>)>) -> Self {
        Self {
            layers,
            kept: VecDeque::new(),
            read: 0,
        }
    }

    async fn chunk(
        &mut self,
        layer: usize,
        row: usize,
        chunk: &Chunk,
    ) -> Result<Arc<Vec<u8>>, String> {
        let kept = self
            .kept
            .iter()
            .position(|(of, at, _)| (*of, *at) == (layer, row));
        if let Some(kept) = kept.and_then(|place| self.kept.remove(place)) {
            let content = Arc::clone(&kept.2);
            self.kept.push_back(kept);
            return Ok(content);
        }
        self.read += u64::from(chunk.stored_len);
        let (blob, place) = self.layers.get(layer).ok_or("it has no such layer")?;
        let frame = place.range(blob, chunk.stored_range()).await?;
        let content = open_frame(&frame, chunk);
        let content = content.map_err(|error| format!("layer {blob} is damaged: {error}"))?;
        let content = Arc::new(content);
        if self.kept.len() >= CHUNKS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back((layer, row, Arc::clone(&content)));
        Ok(content)
    }
}

impl Content for Reader<'_> {
    async fn read(
        &mut self,
        view: &View,
        file: &Found,
        range: Range<u64>,
    ) -> Result<Vec<u8>, String> {
        let layer = file.place().layer();
        let Kind::Regular { size, .. } = view.node(file).kind else {
            return Ok(Vec::new());
        };
        let range = range.start.min(size)..range.end.min(size);
        // Whoever reads states a limit, so this is no more than that; holes are zeros.
        let len = usize::try_from(range.end - range.start).map_err(|error| error.to_string())?;
        let mut bytes = vec![0; len];
        let Some(index) = view.index(layer) else {
            return Ok(bytes);
        };
        for extent in view.extents(file, &range) {
            let end = extent.tar_offset + extent.len;
            for row in index.rows(extent.tar_offset..end) {
                let Some(chunk) = index.chunk(row) else {
                    continue;
                };
                // What is beyond reads as zeros, which name nothing.
                if self.read >= READ_BYTES_MAX {
                    return Ok(bytes);
                }
                let content = self.chunk(layer, row, &chunk).await?;
                let (from, to) = (chunk.offset.max(extent.tar_offset), chunk.end().min(end));
                let at = extent.file_offset - range.start + (from - extent.tar_offset);
                let place = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
                let part = content.get(place(from - chunk.offset)..place(to - chunk.offset));
                let into = bytes.get_mut(place(at)..place(at + (to - from)));
                if let (Some(part), Some(into)) = (part, into) {
                    into.copy_from_slice(part);
                }
            }
        }
        Ok(bytes)
    }
}
