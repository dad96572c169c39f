//! Building a tree together with the tar its data lies in.

use std::collections::BTreeMap;
use std::fmt;

use larder_proto::tree::{DeviceNumber, Extent, Kind, Mtime, Node, NodeId, ROOT, Tree};

/// A tree and the bytes its extents point into.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) tree: Tree,
    pub(crate) tar: Vec<u8>,
}

impl fmt::Debug for Layer {
    /// The tree; the bytes of the tar would fill the screen.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.paths().into_iter();
        let nodes = nodes.map(|(path, id)| (path.escape_ascii().to_string(), self.tree.node(id)));
        f.debug_map().entries(nodes).finish()
    }
}

impl Layer {
    pub(crate) fn new() -> Self {
        let (tree, tar) = (Tree::new(), vec![0xEE; 512]);
        Self { tree, tar }
    }

    pub(crate) fn add(&mut self, parent: NodeId, name: impl AsRef<[u8]>, kind: Kind) -> NodeId {
        let id = self.tree.add(Node {
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Mtime {
                seconds: 1_700_000_000,
                nanoseconds: 0,
            },
            xattrs: BTreeMap::new(),
        });
        self.link(parent, name, id);
        id
    }

    /// Another name for a node.
    pub(crate) fn link(&mut self, parent: NodeId, name: impl AsRef<[u8]>, id: NodeId) {
        let Kind::Directory(entries) = &mut self.tree.node_mut(parent).kind else {
            panic!("{parent:?} is not a directory");
        };
        entries.insert(name.as_ref().to_vec(), id);
    }

    pub(crate) fn directory(&mut self, parent: NodeId, name: impl AsRef<[u8]>) -> NodeId {
        let id = self.add(parent, name, Kind::Directory(BTreeMap::new()));
        self.tree.node_mut(id).mode = 0o755;
        id
    }

    pub(crate) fn symlink(
        &mut self,
        parent: NodeId,
        name: impl AsRef<[u8]>,
        target: &[u8],
    ) -> NodeId {
        let id = self.add(parent, name, Kind::Symlink(target.to_vec()));
        self.tree.node_mut(id).mode = 0o777;
        id
    }

    pub(crate) fn device(&mut self, parent: NodeId, name: &str, major: u32, minor: u32) -> NodeId {
        self.add(
            parent,
            name,
            Kind::CharDevice(DeviceNumber { major, minor }),
        )
    }

    pub(crate) fn file(
        &mut self,
        parent: NodeId,
        name: impl AsRef<[u8]>,
        content: &[u8],
    ) -> NodeId {
        let pieces = [(0, content)];
        let pieces = if content.is_empty() {
            &pieces[1..]
        } else {
            &pieces[..]
        };
        self.sparse(parent, name, content.len() as u64, pieces)
    }

    /// A file with holes: `pieces` are offsets and bytes, which follow each other in the tar.
    pub(crate) fn sparse(
        &mut self,
        parent: NodeId,
        name: impl AsRef<[u8]>,
        size: u64,
        pieces: &[(u64, &[u8])],
    ) -> NodeId {
        // A header, which no file may show.
        self.tar.resize(self.tar.len() + 512, 0xEE);
        let mut extents = Vec::new();
        for &(file_offset, bytes) in pieces {
            extents.push(Extent {
                file_offset,
                tar_offset: self.tar.len() as u64,
                len: bytes.len() as u64,
            });
            self.tar.extend(bytes);
        }
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self.add(parent, name, Kind::Regular { size, extents })
    }

    pub(crate) fn xattr(&mut self, id: NodeId, name: &str, value: impl AsRef<[u8]>) {
        let xattrs = &mut self.tree.node_mut(id).xattrs;
        xattrs.insert(name.as_bytes().to_vec(), value.as_ref().to_vec());
    }

    /// The bytes a reader of the file must see.
    pub(crate) fn content(&self, id: NodeId) -> Vec<u8> {
        let Kind::Regular { size, extents } = &self.tree.node(id).kind else {
            panic!("{id:?} is not a regular file");
        };
        let mut content = vec![0; usize::try_from(*size).unwrap()];
        for extent in extents {
            let at = usize::try_from(extent.file_offset).unwrap();
            let from = usize::try_from(extent.tar_offset).unwrap();
            let len = usize::try_from(extent.len).unwrap();
            content[at..at + len].copy_from_slice(&self.tar[from..from + len]);
        }
        content
    }

    pub(crate) fn tar_len(&self) -> u64 {
        self.tar.len() as u64
    }

    pub(crate) fn write(&self) -> Vec<u8> {
        larder_proto::erofs::write(&self.tree, self.tar_len()).unwrap()
    }

    /// Paths of all entries, with their nodes, outer before inner.
    pub(crate) fn paths(&self) -> Vec<(Vec<u8>, NodeId)> {
        let mut found = vec![(Vec::new(), ROOT)];
        let mut at = 0;
        while at < found.len() {
            let (path, id) = found[at].clone();
            if let Kind::Directory(entries) = &self.tree.node(id).kind {
                found.extend(entries.iter().map(|(name, &child)| {
                    let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    ([&path, separator, name].concat(), child)
                }));
            }
            at += 1;
        }
        found
    }
}
