//! How a regular file's data is addressed: one run of blocks, or a map of chunks with holes.

use super::{Refusal, WriteError};
use crate::erofs::format::CHUNK_BITS_MAX;
use crate::limits::BLOCK;
use crate::tree::{Extent, Kind, NodeId, Tree};

/// Most entries of one file's block map: 16 MiB of metadata. A sparse file beyond it is made of
/// more, and smaller, pieces than any tool but a hostile one writes.
const CHUNKS_MAX: u64 = 4 << 20;

/// Where a file's data lies; addresses are blocks of the tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Data {
    /// Not a regular file, or an empty one.
    None,
    /// One run of blocks.
    Flat {
        /// The first.
        block: u32,
    },
    /// Equal chunks, each either a run of blocks or a hole.
    Chunks {
        /// Size of a chunk as a shift of the block size.
        bits: u32,
        /// Number of chunks.
        count: usize,
        /// The file's data; what lies between is a hole.
        extents: Vec<Extent>,
    },
}

/// How each file of `order` is addressed.
pub(super) fn plan(
    tree: &Tree,
    order: &[NodeId],
    tar_len: u64,
    refuse: &impl Fn(NodeId, Refusal) -> WriteError,
) -> Result<Vec<Data>, WriteError> {
    let plan_one = |&id: &NodeId| match &tree.node(id).kind {
        Kind::Regular { size, extents } => {
            address(*size, extents, tar_len).map_err(|refusal| refuse(id, refusal))
        }
        _ => Ok(Data::None),
    };
    order.iter().map(plan_one).collect()
}

fn address(size: u64, extents: &[Extent], tar_len: u64) -> Result<Data, Refusal> {
    check(size, extents, tar_len)?;
    if size == 0 {
        return Ok(Data::None);
    }
    let merged: Vec<Extent> = Extent::merged(extents.iter().copied()).collect();
    if let [one] = merged[..]
        && one.len == size
        && one.tar_offset.is_multiple_of(BLOCK)
    {
        let block = block_of(one.tar_offset);
        return Ok(Data::Flat { block });
    }
    // Every place where the mapping changes must be a boundary of a chunk.
    let boundaries = merged.iter().fold(0, |bits, extent| {
        let end = extent.file_offset + extent.len;
        bits | extent.file_offset | if end == size { 0 } else { end }
    });
    let aligned = boundaries.is_multiple_of(BLOCK)
        && merged.iter().all(|e| e.tar_offset.is_multiple_of(BLOCK));
    if !aligned {
        return Err(Refusal::Unrepresentable(
            "the pieces of the sparse file do not begin and end at multiples of 512 bytes",
        ));
    }
    let covering = size.div_ceil(BLOCK).next_power_of_two().trailing_zeros();
    let bits = (boundaries / BLOCK)
        .trailing_zeros()
        .min(covering)
        .min(CHUNK_BITS_MAX);
    let count = size.div_ceil(BLOCK << bits);
    if count > CHUNKS_MAX {
        return Err(Refusal::Unrepresentable(
            "the sparse file needs a map of more places than an index may have: its holes begin and end at places too uneven for its length",
        ));
    }
    Ok(Data::Chunks {
        bits,
        count: usize::try_from(count).unwrap_or(usize::MAX),
        extents: merged,
    })
}

fn check(size: u64, extents: &[Extent], tar_len: u64) -> Result<(), Refusal> {
    if size > i64::MAX.cast_unsigned() {
        return Err(Refusal::Unrepresentable(
            "the file is longer than 2^63 - 1 bytes",
        ));
    }
    let mut end = 0;
    for extent in extents {
        let file_end = extent.file_offset.checked_add(extent.len);
        let tar_end = extent.tar_offset.checked_add(extent.len);
        let inside = file_end.is_some_and(|e| e <= size) && tar_end.is_some_and(|e| e <= tar_len);
        if extent.len == 0 || extent.file_offset < end || !inside {
            return Err(Refusal::NotATree(
                "an extent is empty, out of order, or beyond the file or the tar",
            ));
        }
        end = extent.file_offset + extent.len;
    }
    Ok(())
}

/// The entries of a block map over `extents`, by chunk: blocks of the tar, or `None` for a hole.
pub(super) fn block_map(
    extents: &[Extent],
    bits: u32,
    count: usize,
) -> impl Iterator<Item = Option<u32>> {
    let chunk = BLOCK << bits;
    let mut extents = extents.iter().copied().peekable();
    (0..count as u64).map(move |i| {
        let at = i * chunk;
        while extents.next_if(|e| e.file_offset + e.len <= at).is_some() {}
        let extent = extents.peek().filter(|e| e.file_offset <= at)?;
        Some(block_of(extent.tar_offset + (at - extent.file_offset)))
    })
}

/// The block of the tar at `offset`; `TAR_BYTES_MAX` keeps it below 2^32.
fn block_of(offset: u64) -> u32 {
    u32::try_from(offset / BLOCK).unwrap_or(u32::MAX)
}
