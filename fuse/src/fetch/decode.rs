//! From the bytes of a range to verified chunks.

use std::cell::RefCell;

use bytes::Bytes;
use larder_proto::index::Chunk;
use larder_proto::verified::Verified;

thread_local! {
    /// One decompressor per worker of the bounded pool: setting one up costs more than a chunk.
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        const { RefCell::new(None) };
}

/// Verifies a chunk's frame, decompresses it and verifies the content. `Err` says what is wrong.
///
/// The decoder sees only bytes that the index vouches for, and writes at most `chunk.len` bytes.
pub(crate) fn open_frame(chunk: &Chunk, frame: Bytes) -> Result<Verified<Vec<u8>>, String> {
    let frame = Verified::check(frame, &chunk.frame).map_err(|bad| format!("its frame: {bad}"))?;
    let content = decompress(frame.as_slice(), chunk.len as usize)?;
    if content.len() != chunk.len as usize {
        return Err(format!(
            "its frame holds {} bytes instead of {}",
            content.len(),
            chunk.len
        ));
    }
    Verified::check(content, &chunk.content).map_err(|bad| format!("its content: {bad}"))
}

fn decompress(frame: &[u8], len: usize) -> Result<Vec<u8>, String> {
    DECOMPRESSOR.with_borrow_mut(|slot| {
        let decompressor = match slot {
            Some(decompressor) => decompressor,
            None => slot.insert(zstd::bulk::Decompressor::new().map_err(|e| e.to_string())?),
        };
        decompressor
            .decompress(frame, len)
            .map_err(|error| format!("its frame does not decompress: {error}"))
    })
}
