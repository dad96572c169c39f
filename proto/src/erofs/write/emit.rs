//! Writing the bytes, once everything has its place.

use super::file::{Data, block_map};
use super::place::{Placed, Placement};
use super::walk::{Walk, ordered_names};
use super::xattr::Plan;
use crate::erofs::directory::{NewEntry, Packing, encode_block};
use crate::erofs::format::{
    BLOCK, Devices, FileType, HOLE, Layout, RawInode, SLOT, Superblock, encode_device, put,
};
use crate::tree::{Kind, NodeId, Tree};

/// The image's bytes.
pub(super) fn emit(
    tree: &Tree,
    walk: &Walk,
    xattrs: &Plan,
    files: &[Data],
    placement: &Placement,
    devices: Devices,
) -> Vec<u8> {
    let mut emission = Emission {
        tree,
        walk,
        placement,
        out: vec![0; placement.blocks * BLOCK],
    };
    for (i, &id) in walk.order.iter().enumerate() {
        emission.inode(id, &placement.inodes[i], &xattrs.bodies[i], &files[i]);
    }
    let shared = placement.xattr_block * BLOCK;
    emission.out[shared..shared + xattrs.shared.len()].copy_from_slice(&xattrs.shared);
    let superblock = Superblock {
        blocks: mapped(placement),
        devices,
        // The root comes first, so it lies in one of the first two blocks of inodes, below 2 MiB behind the
        // slots of as many devices as there may be.
        root: u16::try_from(placement.inodes[0].nid).unwrap_or(u16::MAX),
        inodes: walk.order.len() as u64,
        epoch: placement.epoch,
        xattr_block: block_number(placement.xattr_block),
        chunked: files.iter().any(|f| matches!(f, Data::Chunks { .. })),
    };
    superblock.write_into(&mut emission.out);
    emission.out
}

struct Emission<'a> {
    tree: &'a Tree,
    walk: &'a Walk,
    placement: &'a Placement,
    out: Vec<u8>,
}

impl Emission<'_> {
    /// Writes an inode, its extended attributes and, unless it lies in the tar, its data.
    fn inode(&mut self, id: NodeId, placed: &Placed, xattrs: &[u8], data: &Data) {
        let node = self.tree.node(id);
        let inode = RawInode {
            file_type: file_type(&node.kind),
            layout: placed.layout,
            extended: placed.extended,
            xattr_len: xattrs.len(),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            size: placed.size,
            nlink: self.walk.links[id.0 as usize],
            payload: self.payload(&node.kind, placed, data),
        };
        let at = placed.nid as usize * SLOT;
        inode.encode(&mut self.out[at..]);
        let body = at + inode.len();
        self.out[body..body + xattrs.len()].copy_from_slice(xattrs);
        let behind = body + xattrs.len();
        let blocks = placed.block as usize * BLOCK;
        match (&node.kind, data) {
            (Kind::Directory(entries), _) => {
                let entries: Vec<NewEntry<'_>> = self.entries(id, entries);
                self.directory(&entries, placed, blocks, behind);
            }
            (Kind::Symlink(target), _) => {
                let at = if placed.layout == Layout::Inline {
                    behind
                } else {
                    blocks
                };
                self.out[at..at + target.len()].copy_from_slice(target);
            }
            (
                _,
                Data::Chunks {
                    bits,
                    count,
                    extents,
                },
            ) => {
                let mapped = mapped(self.placement);
                for (i, block) in block_map(extents, *bits, *count).enumerate() {
                    let entry = block.map_or(HOLE, |block| mapped + block);
                    put(&mut self.out, behind + i * 4, entry.to_le_bytes());
                }
            }
            _ => {}
        }
    }

    fn payload(&self, kind: &Kind, placed: &Placed, data: &Data) -> u32 {
        match (kind, data) {
            (Kind::CharDevice(device) | Kind::BlockDevice(device), _) => encode_device(*device),
            (_, Data::Flat { block }) => mapped(self.placement) + block,
            (_, Data::Chunks { bits, .. }) => *bits,
            _ => placed.block,
        }
    }

    fn entries<'t>(
        &self,
        id: NodeId,
        entries: &'t std::collections::BTreeMap<Vec<u8>, NodeId>,
    ) -> Vec<NewEntry<'t>>
    where
        Self: 't,
    {
        let entry = |name, id: NodeId| NewEntry {
            name,
            nid: u64::from(self.placement.nids[id.0 as usize]),
            file_type: file_type(&self.tree.node(id).kind),
        };
        let mut ids = entries.values();
        ordered_names(entries.keys().map(Vec::as_slice))
            .filter_map(|name| match name {
                b"." => Some(entry(name, id)),
                b".." => Some(entry(name, self.walk.parent(id))),
                // One value per key, in the order of the keys.
                _ => ids.next().map(|&id| entry(name, id)),
            })
            .collect()
    }

    /// Writes the blocks of a directory to `blocks` and on; an inlined end goes to `behind`.
    fn directory(
        &mut self,
        entries: &[NewEntry<'_>],
        placed: &Placed,
        blocks: usize,
        behind: usize,
    ) {
        let mut packing = Packing::default();
        let mut rest = entries;
        let mut at = blocks;
        while !rest.is_empty() {
            let mut block = Packing::default();
            let len = rest
                .iter()
                .position(|entry| block.add(entry.name))
                .unwrap_or(rest.len());
            let (now, later) = rest.split_at(len);
            for entry in now {
                packing.add(entry.name);
            }
            let inlined = later.is_empty() && placed.layout == Layout::Inline;
            let to = if inlined { behind } else { at };
            encode_block(now, &mut self.out[to..]);
            at += BLOCK;
            rest = later;
        }
        debug_assert_eq!(packing.size() as u64, placed.size);
    }
}

/// The type of a node's file.
fn file_type(kind: &Kind) -> FileType {
    match kind {
        Kind::Directory(_) => FileType::Directory,
        Kind::Regular { .. } => FileType::Regular,
        Kind::Symlink(_) => FileType::Symlink,
        Kind::CharDevice(_) => FileType::CharDevice,
        Kind::BlockDevice(_) => FileType::BlockDevice,
        Kind::Fifo => FileType::Fifo,
        Kind::Socket => FileType::Socket,
    }
}

/// Where the devices are mapped: right behind the image.
fn mapped(placement: &Placement) -> u32 {
    block_number(placement.blocks)
}

/// Blocks of an image; `INDEX_BYTES_MAX` keeps them below 2^20.
fn block_number(block: usize) -> u32 {
    u32::try_from(block).unwrap_or(u32::MAX)
}
