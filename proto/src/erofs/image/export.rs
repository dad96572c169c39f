//! From an image back to a tree.

use std::collections::{BTreeMap, HashMap};

use super::{Image, Inode, Nid};
use crate::erofs::format::FileType;
use crate::tree::{Kind, Node, NodeId, ROOT, Tree};

impl<B: AsRef<[u8]>> Image<B> {
    /// The tree the image was written from, without unreachable nodes, numbered in the order of
    /// a walk.
    pub fn to_tree(&self) -> Tree {
        let mut tree = Tree { nodes: Vec::new() };
        // Only hard links are met twice.
        let mut links: HashMap<Nid, NodeId> = HashMap::new();
        let root = self.root();
        let Some(inode) = self.inode(root) else {
            return Tree::new();
        };
        tree.add(self.node(root, &inode));
        let mut pending = vec![(root, ROOT)];
        while let Some((nid, id)) = pending.pop() {
            let mut entries = BTreeMap::new();
            for entry in self.read_dir(nid, 0).filter(|entry| !entry.is_dot()) {
                let known = links.get(&entry.nid).copied();
                let child = known.or_else(|| {
                    let inode = self.inode(entry.nid)?;
                    let child = tree.add(self.node(entry.nid, &inode));
                    if inode.file_type == FileType::Directory {
                        pending.push((entry.nid, child));
                    } else if inode.nlink > 1 {
                        links.insert(entry.nid, child);
                    }
                    Some(child)
                });
                entries.extend(child.map(|child| (entry.name.to_vec(), child)));
            }
            tree.node_mut(id).kind = Kind::Directory(entries);
        }
        tree
    }

    /// One node; a directory without its entries.
    pub(in crate::erofs) fn node(&self, nid: Nid, inode: &Inode) -> Node {
        let kind = match inode.file_type {
            FileType::Directory => Kind::Directory(BTreeMap::new()),
            FileType::Regular => {
                let mut extents: Vec<_> = self.extents(nid).collect();
                // Nearly all files have one; a vector that grew has room for four.
                extents.shrink_to_fit();
                Kind::Regular {
                    size: inode.size,
                    extents,
                }
            }
            FileType::Symlink => Kind::Symlink(self.read_link(nid).unwrap_or_default().to_vec()),
            FileType::CharDevice => Kind::CharDevice(inode.rdev),
            FileType::BlockDevice => Kind::BlockDevice(inode.rdev),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
        };
        let xattrs = self.xattrs(nid).map(|x| (x.name(), x.value.to_vec()));
        Node {
            kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: xattrs.collect(),
        }
    }
}
