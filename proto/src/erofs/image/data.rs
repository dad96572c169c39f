//! Where a file's data lies: in the tar, or, for symlinks, in the image.

use std::ops::Range;

use super::{Image, Located, Nid};
use crate::erofs::format::{BLOCK, FileType, HOLE, Layout, u32_at};
use crate::limits;
use crate::tree::Extent;

/// The extents of a file, ascending, holes left out; see [`Image::extents`].
#[derive(Debug, Clone)]
pub struct Extents<'a> {
    map: BlockMap<'a>,
    next: Option<Extent>,
}

impl<B: AsRef<[u8]>> Image<B> {
    /// The extents of a regular file; none for other types.
    pub fn extents(&self, nid: Nid) -> Extents<'_> {
        self.extents_within(nid, 0..u64::MAX)
    }

    /// The extents that overlap `range` of a regular file, bytes; they may reach beyond it, at most
    /// to where [`Self::extents`] has them reach. Costs what the range is long, whatever the file is.
    pub fn extents_within(&self, nid: Nid, range: Range<u64>) -> Extents<'_> {
        let mut map = match self.located(nid) {
            Some(located) if located.raw.file_type == FileType::Regular => {
                self.block_map(&located).within(range)
            }
            _ => BlockMap::EMPTY,
        };
        let next = next_extent(&mut map);
        Extents { map, next }
    }

    /// The target of a symlink; `None` for other types.
    pub fn read_link(&self, nid: Nid) -> Option<&[u8]> {
        let located = self.located(nid)?;
        if located.raw.file_type != FileType::Symlink {
            return None;
        }
        let start = match located.raw.layout {
            Layout::Inline => located.inlined_at(),
            Layout::Plain => usize::try_from(located.raw.payload)
                .ok()?
                .checked_mul(BLOCK)?,
            Layout::Chunked => return None,
        };
        let len = usize::try_from(located.raw.size).ok()?;
        self.bytes().get(start..start.checked_add(len)?)
    }

    pub(super) fn block_map(&self, located: &Located) -> BlockMap<'_> {
        let mapped = self.superblock.blocks;
        if located.raw.layout != Layout::Chunked {
            return BlockMap {
                flat: (located.raw.size > 0).then_some(located.raw.payload),
                size: located.raw.size,
                mapped,
                ..BlockMap::EMPTY
            };
        }
        let start = located.inlined_at();
        let end = usize::try_from(located.inlined_len())
            .ok()
            .and_then(|len| start.checked_add(len));
        BlockMap {
            entries: end
                .and_then(|end| self.bytes().get(start..end))
                .unwrap_or(&[]),
            shift: located.chunk_shift(),
            size: located.raw.size,
            mapped,
            ..BlockMap::EMPTY
        }
    }
}

/// A file's runs of blocks, not yet joined.
#[derive(Debug, Clone)]
pub(super) struct BlockMap<'a> {
    /// The first block of a file that is one run.
    flat: Option<u32>,
    entries: &'a [u8],
    shift: u32,
    at: u64,
    size: u64,
    mapped: u32,
}

/// What a run of a file's blocks leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    /// Nothing: zeros.
    Hole,
    /// The tar.
    Tar(Extent),
    /// The image itself, which no file of ours does.
    Image,
}

impl BlockMap<'_> {
    const EMPTY: Self = Self {
        flat: None,
        entries: &[],
        shift: 0,
        at: 0,
        size: 0,
        mapped: 0,
    };

    /// The part of the map that `range` of the file needs.
    fn within(mut self, range: Range<u64>) -> Self {
        let clamped = |chunk: u64| {
            let entry = usize::try_from(chunk).map_or(usize::MAX, |at| at.saturating_mul(4));
            entry.min(self.entries.len())
        };
        let first = range.start >> self.shift;
        let end = clamped(range.end.div_ceil(1 << self.shift));
        self.entries = &self.entries[clamped(first).min(end)..end];
        self.at = first.saturating_mul(1 << self.shift);
        self
    }

    fn run(&self, file_offset: u64, len: u64, block: u32) -> Run {
        match block.checked_sub(self.mapped) {
            None => Run::Image,
            Some(block) => Run::Tar(Extent {
                file_offset,
                tar_offset: u64::from(block) * limits::BLOCK,
                len,
            }),
        }
    }
}

impl Iterator for BlockMap<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if let Some(block) = self.flat.take() {
            return Some(self.run(0, self.size, block));
        }
        let (entry, rest) = self.entries.split_at_checked(4)?;
        self.entries = rest;
        let at = self.at;
        self.at = at.saturating_add(1 << self.shift);
        let len = (1 << self.shift).min(self.size.saturating_sub(at));
        Some(match u32_at(entry, 0) {
            HOLE => Run::Hole,
            block => self.run(at, len, block),
        })
    }
}

impl Iterator for Extents<'_> {
    type Item = Extent;

    fn next(&mut self) -> Option<Extent> {
        let mut joined = self.next.take()?;
        while let Some(next) = next_extent(&mut self.map) {
            if joined.file_offset + joined.len != next.file_offset
                || joined.tar_offset + joined.len != next.tar_offset
            {
                self.next = Some(next);
                break;
            }
            joined.len += next.len;
        }
        Some(joined)
    }
}

fn next_extent(map: &mut BlockMap<'_>) -> Option<Extent> {
    map.find_map(|run| match run {
        Run::Tar(extent) => Some(extent),
        Run::Hole | Run::Image => None,
    })
}
