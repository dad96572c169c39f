//! The file tree of one layer: what a tar describes, and what a metadata image holds.

mod difference;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub use difference::{Aspect, Difference, difference};

/// The place of a node in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

/// The root directory of every tree.
pub const ROOT: NodeId = NodeId(0);

/// A layer's files. Hard links are directory entries that lead to the same node.
///
/// Nodes that no directory leads to (a file that a later entry of the tar replaced) may be
/// present; writers and comparisons ignore them.
#[derive(Debug, Clone)]
pub struct Tree {
    /// The nodes; the first one is the root directory.
    pub nodes: Vec<Node>,
}

/// One file, of any type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What the file is, with what belongs to its type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: `0..=0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Mtime,
    /// Extended attributes by full name (`user.colour`).
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mtime {
    /// Seconds since 1970, UTC.
    pub seconds: i64,
    /// Nanoseconds within the second, `0..1_000_000_000`.
    pub nanoseconds: u32,
}

/// The type of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory, with its entries by name.
    Directory(BTreeMap<Vec<u8>, NodeId>),
    /// A regular file.
    Regular {
        /// Length, bytes.
        size: u64,
        /// Where its bytes lie in the tar, by file offset; what no extent covers is a hole.
        extents: Vec<Extent>,
    },
    /// A symbolic link with its target.
    Symlink(Vec<u8>),
    /// A character device; 0:0 is overlayfs's whiteout.
    CharDevice(DeviceNumber),
    /// A block device.
    BlockDevice(DeviceNumber),
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
}

/// A device number as Linux has it: 12 bits of major, 20 bits of minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DeviceNumber {
    /// `0..4096`.
    pub major: u32,
    /// `0..1 << 20`.
    pub minor: u32,
}

/// A run of a file's bytes that lies in one piece in the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// Where it begins in the file.
    pub file_offset: u64,
    /// Where it begins in the tar; a multiple of 512 when `file_offset` is one.
    pub tar_offset: u64,
    /// Bytes, never 0.
    pub len: u64,
}

impl Extent {
    /// `extents`, ascending, with those joined that continue each other in the file and the tar.
    pub fn merged(extents: impl Iterator<Item = Self>) -> impl Iterator<Item = Self> {
        let mut extents = extents.peekable();
        std::iter::from_fn(move || {
            let mut joined = extents.next()?;
            let continues = |joined: &Self, next: &Self| {
                joined.file_offset.checked_add(joined.len) == Some(next.file_offset)
                    && joined.tar_offset.checked_add(joined.len) == Some(next.tar_offset)
            };
            while let Some(next) = extents.next_if(|next| continues(&joined, next)) {
                joined.len += next.len;
            }
            Some(joined)
        })
    }
}

impl Tree {
    /// A tree with nothing but a root directory, mode 0755, owned by root.
    pub fn new() -> Self {
        Self {
            nodes: vec![Node::directory()],
        }
    }

    /// The node `id` names.
    ///
    /// # Panics
    /// If `id` is of another tree.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// The same, to change it.
    ///
    /// # Panics
    /// If `id` is of another tree.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    /// Adds a node that no directory leads to yet.
    ///
    /// # Panics
    /// If the tree has 2^32 nodes; [`crate::limits::ENTRIES_MAX`] keeps it far below.
    pub fn add(&mut self, node: Node) -> NodeId {
        let id = u32::try_from(self.nodes.len()).expect("ENTRIES_MAX bounds a tree");
        self.nodes.push(node);
        NodeId(id)
    }

    /// The entry `name` of directory `parent`.
    pub fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.node(parent).kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// The node at `path`, its components separated by `/`; symlinks are not followed.
    pub fn find(&self, path: &[u8]) -> Option<NodeId> {
        path.split(|&b| b == b'/')
            .filter(|name| !name.is_empty())
            .try_fold(ROOT, |at, name| self.child(at, name))
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    /// An empty directory as `mkdir -m 0755` by root would make it, with mtime 0.
    pub fn directory() -> Self {
        Self {
            kind: Kind::Directory(BTreeMap::new()),
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Mtime::default(),
            xattrs: BTreeMap::new(),
        }
    }
}
