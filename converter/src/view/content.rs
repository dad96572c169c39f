//! The bytes of one file, from the chunks that hold them.

use std::io::{self, Read, Write};
use std::ops::Range;

use larder_proto::digest::Digest;
use larder_proto::index::{Chunk, Index};
use larder_proto::tree::{Extent, Kind};
use larder_proto::verified::Verified;

use super::open::ViewError;
use super::{Found, PathError, PlainOrLarder, View};
use crate::decode::decode;
use crate::source::{Source, blocking};

/// Bytes of frames fetched by one request: at 200 Mbit/s they take a third of a second, of which a round
/// trip of 10 ms is 3 %. They are held in memory.
const FETCH_BYTES_MAX: u64 = 8 << 20;

/// Why a file's contents could not be given.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The path does not lead to a regular file.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The layer cannot be read or is damaged.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The reader of the output is gone, or it cannot be written.
    #[error("cannot write the output: {0}")]
    Write(#[from] io::Error),
}

/// Writes the contents of a regular file; only the chunks that hold them are fetched, unless the
/// layer has no index.
pub async fn copy_content(
    source: &Source,
    view: &View,
    found: &Found,
    out: &mut (impl Write + Send),
) -> Result<(), ContentError> {
    let (layer, node) = view.layer(found);
    let Kind::Regular { size, extents } = &node.kind else {
        let path = String::from_utf8_lossy(&found.path).into_owned();
        return Err(PathError::NotAFile(format!("/{path}")).into());
    };
    let digest = layer.descriptor.digest;
    let mut at = 0;
    match &layer.form {
        PlainOrLarder::Larder(index) => {
            for extent in extents {
                zeros(out, extent.file_offset - at)?;
                copy_extent(source, digest, index, extent, out).await?;
                at = extent.file_offset + extent.len;
            }
        }
        PlainOrLarder::Plain => {
            let blob = source.blob(&digest).await.map_err(ViewError::from)?;
            let extents = extents.clone();
            let (send, mut pieces) = tokio::sync::mpsc::channel::<Piece>(16);
            let reading = tokio::spawn(blocking(move || pick(blob, &extents, &send)));
            while let Some((offset, bytes)) = pieces.recv().await {
                zeros(out, offset - at)?;
                out.write_all(&bytes)?;
                at = offset + bytes.len() as u64;
            }
            let damaged = |reason: String| ViewError::Layer {
                layer: digest,
                reason,
            };
            let read = reading.await.map_err(|error| damaged(error.to_string()))?;
            read.map_err(|error| damaged(error.to_string()))?;
        }
    }
    zeros(out, size.saturating_sub(at))?;
    Ok(out.flush()?)
}

/// A run of a file's bytes and where it begins in the file.
type Piece = (u64, Vec<u8>);

/// Reads a whole layer and sends the bytes that lie in `extents`, which ascend in file and tar.
fn pick(
    blob: impl Read,
    extents: &[Extent],
    out: &tokio::sync::mpsc::Sender<Piece>,
) -> io::Result<()> {
    let mut tar = decode(blob)?;
    let mut at = 0;
    for extent in extents {
        let skip = extent.tar_offset.checked_sub(at);
        let skip = skip.ok_or_else(|| io::Error::other("a file's pieces lie in odd order"))?;
        io::copy(&mut tar.by_ref().take(skip), &mut io::sink())?;
        let mut left = extent.len;
        while left > 0 {
            let mut bytes = Vec::new();
            let count = tar
                .by_ref()
                .take(left.min(256 << 10))
                .read_to_end(&mut bytes)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if out
                .blocking_send((extent.file_offset + extent.len - left, bytes))
                .is_err()
            {
                return Ok(());
            }
            left -= count as u64;
        }
        at = extent.tar_offset + extent.len;
    }
    Ok(())
}

async fn copy_extent(
    source: &Source,
    layer: Digest,
    index: &Index<Vec<u8>>,
    extent: &Extent,
    out: &mut impl Write,
) -> Result<(), ContentError> {
    let wanted = extent.tar_offset..extent.tar_offset + extent.len;
    let rows = index.rows(wanted.clone());
    let mut next = rows.start;
    while next < rows.end {
        let run = run(index, next..rows.end);
        copy_run(source, layer, index, run.clone(), &wanted, out).await?;
        next = run.end;
    }
    Ok(())
}

/// As many of `rows` as one request may fetch, at least one.
fn run(index: &Index<Vec<u8>>, rows: Range<usize>) -> Range<usize> {
    let mut bytes = 0;
    let mut end = rows.start;
    while let Some(chunk) = index.chunk(end).filter(|_| end < rows.end) {
        bytes += u64::from(chunk.stored_len);
        if end > rows.start && bytes > FETCH_BYTES_MAX {
            break;
        }
        end += 1;
    }
    rows.start..end
}

async fn copy_run(
    source: &Source,
    layer: Digest,
    index: &Index<Vec<u8>>,
    rows: Range<usize>,
    wanted: &Range<u64>,
    out: &mut impl Write,
) -> Result<(), ContentError> {
    let chunks: Vec<_> = rows.filter_map(|row| index.chunk(row)).collect();
    let (Some(first), Some(last)) = (chunks.first(), chunks.last()) else {
        return Ok(());
    };
    let range = first.stored_offset..last.stored_range().end;
    let base = range.start;
    let stored = source.range(&layer, range).await.map_err(ViewError::from)?;
    for chunk in chunks {
        let damaged = |reason: String| ViewError::Layer {
            layer,
            reason: format!("the chunk at {} is damaged: {reason}", chunk.offset),
        };
        let start = usize::try_from(chunk.stored_offset - base).unwrap_or(usize::MAX);
        let frame = stored.get(start..start + chunk.stored_len as usize);
        let frame = frame.ok_or_else(|| damaged("it is cut off".into()))?;
        let content = open_frame(frame, &chunk).map_err(damaged)?;
        let from = wanted.start.max(chunk.offset) - chunk.offset;
        let to = wanted.end.min(chunk.end()) - chunk.offset;
        let (from, to) = (
            usize::try_from(from).unwrap_or(0),
            usize::try_from(to).unwrap_or(0),
        );
        out.write_all(content.get(from..to).unwrap_or_default())?;
    }
    Ok(())
}

/// The content of a chunk from its frame, both verified; `Err` says what is wrong.
pub(crate) fn open_frame(frame: &[u8], chunk: &Chunk) -> Result<Vec<u8>, String> {
    let frame = Verified::check(frame, &chunk.frame).map_err(|error| error.to_string())?;
    let content = zstd::bulk::decompress(frame.as_slice(), chunk.len as usize);
    let content = content.map_err(|error| error.to_string())?;
    let content = Verified::check(content, &chunk.content).map_err(|error| error.to_string())?;
    Ok(content.into_inner())
}

fn zeros(out: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), out).map(drop)
}
