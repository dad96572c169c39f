//! The order in which inodes are written, and what only a walk of the whole tree tells.

use super::{Refusal, WriteError};
use crate::erofs::directory::Packing;
use crate::limits;
use crate::tree::{Kind, Node, NodeId, ROOT, Tree};

/// Marks a node the walk has not reached.
const NONE: u32 = u32::MAX;

/// The reachable nodes of a tree.
#[derive(Debug)]
pub(super) struct Walk {
    /// The nodes: the root, then for each directory, outer before inner, all its entries by name.
    /// What `ls -l` and `find` touch together lies together.
    pub(super) order: Vec<NodeId>,
    /// By node: its number of links.
    pub(super) links: Vec<u32>,
    /// By node: the directory that first led to it. The root is its own parent.
    parent: Vec<u32>,
    /// By node: bytes of a directory's entries.
    pub(super) directory_size: Vec<u32>,
}

/// Walks `tree` and checks that it is one.
pub(super) fn walk(tree: &Tree) -> Result<Walk, WriteError> {
    let nodes = tree.nodes.len();
    let mut walk = Walk {
        order: Vec::with_capacity(nodes),
        links: vec![0; nodes],
        parent: vec![NONE; nodes],
        directory_size: vec![0; nodes],
    };
    let not_a_tree = |reason| Refusal::NotATree(reason).at(Vec::new());
    if !matches!(
        tree.nodes.first().map(|n| &n.kind),
        Some(Kind::Directory(_))
    ) {
        return Err(not_a_tree("the first node of a tree is its root directory"));
    }
    if nodes - 1 > limits::ENTRIES_MAX {
        return Err(Refusal::Unrepresentable("the layer has too many entries").at(Vec::new()));
    }
    check_attributes(tree.node(ROOT)).map_err(|refusal| refusal.at(Vec::new()))?;
    walk.order.push(ROOT);
    walk.parent[0] = ROOT.0;
    let mut pending = vec![(ROOT, 0)];
    let (mut subdirectories, mut entries) = (Vec::new(), 0);
    while let Some((directory, path_len)) = pending.pop() {
        if let Kind::Directory(here) = &tree.node(directory).kind {
            entries += here.len();
        }
        if entries > limits::ENTRIES_MAX {
            return Err(Refusal::Unrepresentable("the layer has too many entries").at(Vec::new()));
        }
        walk.directory(tree, directory, path_len, &mut subdirectories)
            .map_err(|(name, refusal)| {
                let mut path = walk.path(tree, directory);
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend(name);
                refusal.at(path)
            })?;
        pending.extend(subdirectories.drain(..).rev());
    }
    Ok(walk)
}

impl Walk {
    /// Takes in one directory's entries; its subdirectories, with the lengths of their paths, go
    /// to `subdirectories`. A refusal comes with the entry's name.
    fn directory<'t>(
        &mut self,
        tree: &'t Tree,
        directory: NodeId,
        path_len: usize,
        subdirectories: &mut Vec<(NodeId, usize)>,
    ) -> Result<(), (&'t [u8], Refusal)> {
        let Kind::Directory(entries) = &tree.node(directory).kind else {
            return Ok(());
        };
        let mut packing = Packing::default();
        for name in ordered_names(entries.keys().map(Vec::as_slice)) {
            packing.add(name);
        }
        for (name, &child) in entries {
            let path_len = path_len + usize::from(path_len > 0) + name.len();
            let subdirectory = self
                .entry(tree, directory, name, path_len, child)
                .map_err(|refusal| (name.as_slice(), refusal))?;
            if subdirectory {
                subdirectories.push((child, path_len));
            }
        }
        let at = directory.0 as usize;
        // "." and "..", and the ".." of each subdirectory.
        self.links[at] = 2 + count(subdirectories.len());
        self.directory_size[at] = u32::try_from(packing.size()).map_err(|_| {
            (
                &b""[..],
                Refusal::Unrepresentable("the directory is too large"),
            )
        })?;
        Ok(())
    }

    /// Takes in one entry; true if it is a directory.
    fn entry(
        &mut self,
        tree: &Tree,
        directory: NodeId,
        name: &[u8],
        path_len: usize,
        child: NodeId,
    ) -> Result<bool, Refusal> {
        if path_len > limits::PATH_BYTES_MAX {
            return Err(Refusal::Unrepresentable(
                "the path is longer than 4095 bytes",
            ));
        }
        check_name(name)?;
        let at = child.0 as usize;
        let node = tree.nodes.get(at).ok_or(Refusal::NotATree(
            "the entry leads to a node that is not there",
        ))?;
        check_attributes(node)?;
        let is_directory = matches!(node.kind, Kind::Directory(_));
        let new = self.parent[at] == NONE;
        if is_directory && !new {
            return Err(Refusal::NotATree("a directory has two parents"));
        }
        if new {
            self.parent[at] = directory.0;
            self.order.push(child);
        }
        if !is_directory {
            self.links[at] = self.links[at]
                .checked_add(1)
                .ok_or(Refusal::Unrepresentable("the file has too many links"))?;
        }
        Ok(is_directory)
    }

    /// A path that leads to `node`.
    pub(super) fn path(&self, tree: &Tree, node: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = node;
        while at != ROOT {
            let parent = NodeId(self.parent[at.0 as usize]);
            let Some(Kind::Directory(entries)) = tree.nodes.get(parent.0 as usize).map(|n| &n.kind)
            else {
                break;
            };
            names.extend(
                entries
                    .iter()
                    .find(|&(_, &id)| id == at)
                    .map(|(name, _)| name),
            );
            at = parent;
        }
        names.reverse();
        names
            .iter()
            .map(|n| n.as_slice())
            .collect::<Vec<_>>()
            .join(&b'/')
    }

    /// The directory that first led to `node`.
    pub(super) fn parent(&self, node: NodeId) -> NodeId {
        NodeId(self.parent[node.0 as usize])
    }
}

/// The names of a directory as they lie in its blocks: with "." and "..", in byte order.
pub(super) fn ordered_names<'a>(
    names: impl Iterator<Item = &'a [u8]>,
) -> impl Iterator<Item = &'a [u8]> {
    let mut dots = [&b"."[..], b".."].into_iter().peekable();
    let mut names = names.peekable();
    std::iter::from_fn(move || {
        let dot_is_next = match (dots.peek(), names.peek()) {
            (Some(dot), Some(name)) => dot < name,
            (dot, _) => dot.is_some(),
        };
        if dot_is_next {
            dots.next()
        } else {
            names.next()
        }
    })
}

fn check_name(name: &[u8]) -> Result<(), Refusal> {
    if name.is_empty() || name == b"." || name == b".." {
        return Err(Refusal::NotATree("an entry is named \"\", \".\" or \"..\""));
    }
    if name.iter().any(|&b| b == b'/' || b == 0) {
        return Err(Refusal::NotATree("a name has a slash or a NUL"));
    }
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(Refusal::Unrepresentable(
            "the name is longer than 255 bytes",
        ));
    }
    Ok(())
}

fn check_attributes(node: &Node) -> Result<(), Refusal> {
    if node.mode > 0o7777 {
        return Err(Refusal::NotATree("the mode has more than permission bits"));
    }
    if node.mtime.nanoseconds >= 1_000_000_000 {
        return Err(Refusal::NotATree(
            "the mtime has a second or more of nanoseconds",
        ));
    }
    if node.uid == u32::MAX || node.gid == u32::MAX {
        // chown(2) takes it for "leave as it is", and the kernel shows the overflow user instead.
        return Err(Refusal::Unrepresentable(
            "the owner 4294967295 is not one that Linux has",
        ));
    }
    match &node.kind {
        Kind::Symlink(target) if target.is_empty() || target.contains(&0) => Err(
            Refusal::NotATree("the symlink's target is empty or has a NUL"),
        ),
        Kind::Symlink(target) if target.len() > limits::PATH_BYTES_MAX => Err(
            Refusal::Unrepresentable("the symlink's target is longer than 4095 bytes"),
        ),
        Kind::CharDevice(device) | Kind::BlockDevice(device)
            if device.major >= 1 << 12 || device.minor >= 1 << 20 =>
        {
            Err(Refusal::Unrepresentable(
                "the device number is beyond what Linux has",
            ))
        }
        _ => Ok(()),
    }
}

/// Counts of nodes fit 32 bits because [`limits::ENTRIES_MAX`] does.
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
