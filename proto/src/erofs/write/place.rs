//! Where everything comes to lie in the image.

use super::WriteError;
use super::file::Data;
use super::walk::Walk;
use super::xattr::Plan;
use crate::erofs::format::{
    BLOCK, BLOCK_MAP_ENTRY_LEN, COMPACT_LEN, EXTENDED_LEN, Layout, SLOT, inodes_offset,
};
use crate::limits;
use crate::tree::{Kind, Mtime, NodeId, Tree};

/// The place of every inode and of its data in the image.
#[derive(Debug)]
pub(super) struct Placement {
    /// By place in the walk's order.
    pub(super) inodes: Vec<Placed>,
    /// By node: the inode's number.
    pub(super) nids: Vec<u32>,
    /// The mtime of compact inodes.
    pub(super) epoch: Mtime,
    /// First block of the shared extended attributes.
    pub(super) xattr_block: usize,
    /// Blocks of the image.
    pub(super) blocks: usize,
}

/// The place of one inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) nid: u32,
    pub(super) extended: bool,
    pub(super) layout: Layout,
    /// Size of the file, bytes.
    pub(super) size: u64,
    /// First block of a directory's or symlink's data in the image; 0 if there is none.
    pub(super) block: u32,
}

/// Lays out an image with so many devices.
pub(super) fn place(
    tree: &Tree,
    walk: &Walk,
    xattrs: &Plan,
    files: &[Data],
    devices: usize,
) -> Result<Placement, WriteError> {
    let epoch = epoch(tree, walk);
    let mut cursor = Cursor::new(devices);
    let mut nids = vec![0; tree.nodes.len()];
    let mut inodes = Vec::with_capacity(walk.order.len());
    for (i, &id) in walk.order.iter().enumerate() {
        let fits = fits_compact(tree, walk, id) && tree.node(id).mtime == epoch;
        let fixed = if fits { COMPACT_LEN } else { EXTENDED_LEN };
        let head = fixed + xattrs.bodies[i].len();
        let size = size(tree, walk, id);
        let (layout, behind) = layout(&tree.node(id).kind, &files[i], head, size);
        let offset = match layout {
            Layout::Inline => cursor.within_block(head + behind),
            Layout::Plain | Layout::Chunked => cursor.anywhere(head + behind),
        };
        let nid = narrow(offset / SLOT, offset)?;
        nids[id.0 as usize] = nid;
        inodes.push(Placed {
            nid,
            extended: !fits,
            layout,
            size,
            block: 0,
        });
    }
    let mut block = cursor.end.div_ceil(BLOCK);
    for (placed, &id) in inodes.iter_mut().zip(&walk.order) {
        let blocks = match (&tree.node(id).kind, placed.layout) {
            (Kind::Directory(_) | Kind::Symlink(_), Layout::Plain) => {
                placed.size.div_ceil(limits::BLOCK)
            }
            (_, Layout::Inline) => placed.size / limits::BLOCK,
            _ => 0,
        };
        if blocks > 0 {
            placed.block = narrow(block, block * BLOCK)?;
            block += usize::try_from(blocks).unwrap_or(usize::MAX / BLOCK);
        }
    }
    let xattr_block = block;
    let blocks = xattr_block + xattrs.shared.len().div_ceil(BLOCK);
    if (blocks * BLOCK) as u64 > limits::INDEX_BYTES_MAX {
        return Err(WriteError::TooLarge {
            bytes: (blocks * BLOCK) as u64,
        });
    }
    Ok(Placement {
        inodes,
        nids,
        epoch,
        xattr_block,
        blocks,
    })
}

/// Hands out the inode area from its beginning.
#[derive(Debug)]
struct Cursor {
    /// First byte after everything handed out.
    end: usize,
    /// What the last inode that had to go to the next block left free.
    gap: std::ops::Range<usize>,
}

impl Cursor {
    fn new(devices: usize) -> Self {
        Self {
            end: inodes_offset(devices),
            gap: 0..0,
        }
    }

    /// Room for `len` bytes, which may cross blocks.
    fn anywhere(&mut self, len: usize) -> usize {
        let len = len.next_multiple_of(SLOT);
        if len <= self.gap.len() {
            let offset = self.gap.start;
            self.gap.start += len;
            return offset;
        }
        let offset = self.end;
        self.end += len;
        offset
    }

    /// Room for `len` bytes, at most [`BLOCK`], in one block: the kernel reads what is inlined
    /// from one block only, and fast symlinks want it in the block where the inode ends.
    fn within_block(&mut self, len: usize) -> usize {
        let left = self.end.next_multiple_of(BLOCK) - self.end;
        if len > left && left > 0 {
            let gap = self.end..self.end + left;
            self.end = gap.end;
            if gap.len() > self.gap.len() {
                self.gap = gap;
            }
        }
        let offset = self.end;
        self.end += len.next_multiple_of(SLOT);
        offset
    }
}

/// How a file is laid out, and how many bytes of it come right behind the inode.
fn layout(kind: &Kind, data: &Data, head: usize, size: u64) -> (Layout, usize) {
    match (kind, data) {
        (_, Data::Chunks { count, .. }) => (Layout::Chunked, count * BLOCK_MAP_ENTRY_LEN),
        (Kind::Directory(_) | Kind::Symlink(_), _) => {
            // Targets are shorter than 4096 bytes, directories than 2^32.
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            let tail = if matches!(kind, Kind::Symlink(_)) {
                size
            } else {
                size % BLOCK
            };
            if tail > 0 && head + tail <= BLOCK {
                (Layout::Inline, tail)
            } else {
                (Layout::Plain, 0)
            }
        }
        _ => (Layout::Plain, 0),
    }
}

fn size(tree: &Tree, walk: &Walk, id: NodeId) -> u64 {
    match &tree.node(id).kind {
        Kind::Directory(_) => u64::from(walk.directory_size[id.0 as usize]),
        Kind::Regular { size, .. } => *size,
        Kind::Symlink(target) => target.len() as u64,
        _ => 0,
    }
}

/// Whether a compact inode holds everything about the node but its mtime.
fn fits_compact(tree: &Tree, walk: &Walk, id: NodeId) -> bool {
    let node = tree.node(id);
    let narrow = u32::from(u16::MAX);
    node.uid <= narrow
        && node.gid <= narrow
        && walk.links[id.0 as usize] <= narrow
        && u32::try_from(size(tree, walk, id)).is_ok()
}

/// The mtime that saves most: the commonest among nodes that otherwise fit a compact inode, the
/// earliest of equals.
fn epoch(tree: &Tree, walk: &Walk) -> Mtime {
    let mut mtimes: Vec<Mtime> = walk
        .order
        .iter()
        .filter(|&&id| fits_compact(tree, walk, id))
        .map(|&id| tree.node(id).mtime)
        .collect();
    mtimes.sort_unstable();
    let runs = mtimes.chunk_by(|a, b| a == b);
    runs.rev()
        .max_by_key(|run| run.len())
        .map_or_else(Mtime::default, |run| run[0])
}

/// A number that [`limits::INDEX_BYTES_MAX`] keeps small, in an image of at least `bytes`.
fn narrow(number: usize, bytes: usize) -> Result<u32, WriteError> {
    let bytes = bytes as u64;
    let fits = bytes <= limits::INDEX_BYTES_MAX;
    let number = u32::try_from(number).ok().filter(|_| fits);
    number.ok_or(WriteError::TooLarge { bytes })
}
