//! Builds the tree entry by entry, in the steps in which containerd unpacks one.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use super::resolve::{self, Budget, Walk};
use super::{ScanError, acl, attributes, name, segments};
use crate::limits;
use crate::tar::{Member, Type};
use crate::tree::{DeviceNumber, Extent, Kind, Mtime, Node, NodeId, ROOT, Tree};

/// Prefix of the names that hide a file of the layers below.
const WHITEOUT: &[u8] = b".wh.";

/// Name of the entry that hides everything the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Metadata of one node without its variable parts, bytes: the least that the metadata image
/// needs for it.
const NODE_BYTES: u64 = 64;

/// Why a hard link to a directory is refused, which the kernel refuses too.
const LINK_TO_DIRECTORY: &str =
    "it is a hard link to a directory; containerd cannot unpack it either";

/// Said of layers beyond [`limits::ENTRIES_MAX`].
const TOO_MANY: &str =
    "it is one too many: a layer of more than 1,048,576 entries takes too much memory";

const _: () = assert!(limits::ENTRIES_MAX == 1_048_576);

type Reason = Cow<'static, str>;

/// The tree of the entries so far.
#[derive(Debug, Default)]
pub(super) struct Builder {
    tree: Tree,
    /// Directories made for an entry below them, not listed themselves.
    implied: HashSet<NodeId>,
    budget: Budget,
    entries: usize,
    /// Variable-length metadata kept so far; bounds the memory of the tree.
    bytes: u64,
    /// The directory of the entry before, by its path; entries of one directory come together.
    latest: Option<(Vec<u8>, NodeId)>,
    /// Listed directories with their times, in order: times are set again when all is unpacked.
    listed: Vec<(Vec<u8>, Mtime)>,
    /// A directory or a symlink was removed, so a listed name may lead elsewhere at the end.
    names_moved: bool,
}

impl Builder {
    /// Adds one entry of the tar.
    pub(super) fn add(&mut self, mut member: Member) -> Result<(), ScanError> {
        self.entries += 1;
        self.budget.entry();
        let path = std::mem::take(&mut member.name);
        self.place(&name::clean(&path), member)
            .map_err(|reason| unrepresentable(&path, reason))
    }

    /// The tree, and the paths of its implied directories.
    pub(super) fn finish(mut self) -> Result<(Tree, Vec<Vec<u8>>), ScanError> {
        if self.names_moved {
            for (path, mtime) in std::mem::take(&mut self.listed) {
                self.set_listed_time(&path, mtime)
                    .map_err(|reason| unrepresentable(&path, reason))?;
            }
        }
        let implied = self.implied_paths();
        Ok((self.tree, implied))
    }

    fn place(&mut self, path: &[u8], member: Member) -> Result<(), Reason> {
        if path.is_empty() {
            return Ok(());
        }
        if path.contains(&0) {
            return Err("its name contains a NUL".into());
        }
        let (parent, base) = name::split(path);
        if base.len() > limits::NAME_BYTES_MAX {
            return Err("its name is longer than 255 bytes".into());
        }
        let parent = self.directory(parent)?;
        if base == OPAQUE {
            let xattrs = &mut self.tree.node_mut(parent).xattrs;
            xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
            return Ok(());
        }
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, hidden, &member);
        }
        let merged = match self.tree.child(parent, base) {
            Some(old) if member.kind == Type::Directory && self.is_directory(old) => Some(old),
            Some(old) => {
                self.remove(parent, base, old);
                None
            }
            None => None,
        };
        self.create(path, parent, base, merged, member)
    }

    /// Makes what the entry describes, or merges it into a directory that is there.
    fn create(
        &mut self,
        path: &[u8],
        parent: NodeId,
        base: &[u8],
        merged: Option<NodeId>,
        mut member: Member,
    ) -> Result<(), Reason> {
        let kind = match member.kind {
            Type::GlobalRecords => return Ok(()),
            Type::Other(flag) => return Err(unknown_type(flag)),
            Type::HardLink => {
                let target = self.link_target(&member.link)?;
                self.attach(parent, base, target)?;
                return attributes::apply(self.tree.node_mut(target), &mut member);
            }
            Type::Directory => Kind::Directory(BTreeMap::new()),
            Type::Regular => regular(&member)?,
            Type::Symlink => symlink(std::mem::take(&mut member.link))?,
            Type::CharDevice => Kind::CharDevice(attributes::device(&member)),
            Type::BlockDevice => Kind::BlockDevice(attributes::device(&member)),
            Type::Fifo => Kind::Fifo,
        };
        let node = match merged {
            Some(node) => {
                self.implied.remove(&node);
                node
            }
            None => self.new_node(parent, base, kind)?,
        };
        let xattrs = member
            .xattrs
            .iter()
            .map(|(name, value)| name.len() + value.len());
        self.account(xattrs.sum())?;
        attributes::apply(self.tree.node_mut(node), &mut member)?;
        if member.kind == Type::Directory {
            let mtime = attributes::bounded(member.mtime);
            self.listed.push((path.to_vec(), mtime));
        }
        Ok(())
    }

    /// A whiteout: what overlayfs takes for "removed", a character device 0:0.
    fn whiteout(&mut self, parent: NodeId, hidden: &[u8], member: &Member) -> Result<(), Reason> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("it is a whiteout of no name".into());
        }
        if self.tree.child(parent, hidden).is_some() {
            return Err("it is a whiteout over an entry of the same layer".into());
        }
        let node = self.new_node(parent, hidden, Kind::CharDevice(DeviceNumber::default()))?;
        attributes::own(self.tree.node_mut(node), member);
        Ok(())
    }

    /// The directory at the clean path `path`; makes it, and those above it, if need be.
    fn directory(&mut self, path: &[u8]) -> Result<NodeId, Reason> {
        if let Some((latest, node)) = &self.latest
            && latest == path
        {
            return Ok(*node);
        }
        let resolved = match resolve::walk(&self.tree, path) {
            Walk::Symlink => Cow::Owned(resolve::root_path(&self.tree, path, &mut self.budget)?),
            _ => Cow::Borrowed(path),
        };
        if resolved.len() >= limits::PATH_BYTES_MAX {
            return Err("its path is too long".into());
        }
        let node = match resolve::walk(&self.tree, &resolved) {
            Walk::Directory(node) => node,
            Walk::Missing(mut node, rest) => {
                for part in rest.split(|&b| b == b'/') {
                    node = self.imply(node, part)?;
                }
                node
            }
            Walk::Symlink | Walk::NotADirectory => {
                return Err("a parent of it is not a directory".into());
            }
        };
        self.latest = Some((path.to_vec(), node));
        Ok(node)
    }

    fn imply(&mut self, parent: NodeId, name: &[u8]) -> Result<NodeId, Reason> {
        if name.len() > limits::NAME_BYTES_MAX {
            return Err("a component of its path is longer than 255 bytes".into());
        }
        let node = self.new_node(parent, name, Kind::Directory(BTreeMap::new()))?;
        self.implied.insert(node);
        Ok(node)
    }

    /// What a hard link to `link` leads to. The last component is not followed, unless a slash
    /// or `.` behind it makes it a parent.
    fn link_target(&mut self, link: &[u8]) -> Result<NodeId, Reason> {
        let (parent, base) = name::split(link);
        let mut path = self.existing(parent)?;
        match base {
            b"" | b"." => {}
            b".." => return Err(Reason::from(LINK_TO_DIRECTORY)),
            _ => name::append(&mut path, base),
        }
        let (parent, base) = name::split(&path);
        let target = match resolve::walk(&self.tree, parent) {
            _ if path.is_empty() => Some(ROOT),
            Walk::Directory(parent) => self.tree.child(parent, base),
            _ => None,
        };
        match target {
            None => Err(format!(
                "it is a hard link to {}, which this layer does not have before it; \
                 containerd cannot unpack it either",
                name::shown(link)
            )
            .into()),
            Some(target) if self.is_directory(target) => Err(LINK_TO_DIRECTORY.into()),
            Some(target) => Ok(target),
        }
    }

    /// Where `path`, as written in the tar, leads.
    fn existing(&mut self, path: &[u8]) -> Result<Vec<u8>, Reason> {
        if let Cow::Borrowed(clean) = name::clean(path)
            && matches!(resolve::walk(&self.tree, clean), Walk::Directory(_))
        {
            return Ok(clean.to_vec());
        }
        Ok(resolve::root_path(&self.tree, path, &mut self.budget)?)
    }

    /// Sets the time of a directory once more by its name, which may lead to something else now.
    fn set_listed_time(&mut self, path: &[u8], mtime: Mtime) -> Result<(), Reason> {
        let resolved = resolve::root_path(&self.tree, path, &mut self.budget)?;
        let gone = "a later entry took its place away";
        let (parent, base) = name::split(&resolved);
        let node = match resolve::walk(&self.tree, parent) {
            _ if resolved.is_empty() => ROOT,
            Walk::Directory(parent) => self.tree.child(parent, base).ok_or(gone)?,
            _ => return Err(gone.into()),
        };
        self.tree.node_mut(node).mtime = mtime;
        Ok(())
    }

    /// A node with the owner and mode it has before its attributes are set.
    fn new_node(&mut self, parent: NodeId, base: &[u8], kind: Kind) -> Result<NodeId, Reason> {
        let above = self.tree.node(parent);
        let mode = match kind {
            Kind::Directory(_) => 0o755,
            Kind::Symlink(_) => 0o777,
            _ => 0,
        };
        let xattrs = match &kind {
            Kind::Symlink(_) => BTreeMap::new(),
            _ => acl::inherited(&above.xattrs, matches!(kind, Kind::Directory(_)), mode),
        };
        let variable = xattrs.values().map(Vec::len).sum::<usize>()
            + match &kind {
                Kind::Symlink(target) => target.len(),
                Kind::Regular { extents, .. } => size_of_val(extents.as_slice()),
                _ => 0,
            };
        let node = Node {
            kind,
            mode,
            uid: 0,
            // A directory with the setgid bit passes its group on.
            gid: if above.mode & 0o2000 == 0 {
                0
            } else {
                above.gid
            },
            mtime: Mtime::default(),
            xattrs,
        };
        self.account(variable)?;
        let node = self.tree.add(node);
        self.attach(parent, base, node)?;
        Ok(node)
    }

    fn attach(&mut self, parent: NodeId, base: &[u8], node: NodeId) -> Result<(), Reason> {
        self.account(base.len())?;
        if let Kind::Directory(entries) = &mut self.tree.node_mut(parent).kind {
            entries.insert(base.to_vec(), node);
        }
        Ok(())
    }

    /// Counts metadata against what the largest index could hold.
    fn account(&mut self, bytes: usize) -> Result<(), Reason> {
        self.bytes += bytes as u64;
        let nodes = self.tree.nodes.len();
        let sum = self.bytes + nodes as u64 * NODE_BYTES;
        // The root directory is no entry.
        if (nodes - 1).max(self.entries) > limits::ENTRIES_MAX {
            return Err(TOO_MANY.into());
        }
        if sum > limits::INDEX_BYTES_MAX {
            return Err("the layer has more metadata than an index can hold".into());
        }
        Ok(())
    }

    fn is_directory(&self, node: NodeId) -> bool {
        matches!(self.tree.node(node).kind, Kind::Directory(_))
    }

    /// Takes an entry away, with everything below it.
    fn remove(&mut self, parent: NodeId, base: &[u8], node: NodeId) {
        if let Kind::Directory(entries) = &mut self.tree.node_mut(parent).kind {
            entries.remove(base);
        }
        if matches!(
            self.tree.node(node).kind,
            Kind::Directory(_) | Kind::Symlink(_)
        ) {
            self.names_moved = true;
            self.latest = None;
        }
    }

    /// Paths of the implied directories that are still there, sorted.
    fn implied_paths(&self) -> Vec<Vec<u8>> {
        let mut paths = Vec::new();
        if self.implied.is_empty() {
            return paths;
        }
        let mut left = vec![(ROOT, Vec::new())];
        while let Some((node, path)) = left.pop() {
            let Kind::Directory(entries) = &self.tree.node(node).kind else {
                continue;
            };
            for (name, &child) in entries {
                if self.is_directory(child) {
                    let mut below = path.clone();
                    name::append(&mut below, name);
                    left.push((child, below));
                }
            }
            if self.implied.contains(&node) {
                paths.push(path);
            }
        }
        paths.sort_unstable();
        paths
    }
}

fn unrepresentable(path: &[u8], reason: Reason) -> ScanError {
    ScanError::Unrepresentable {
        entry: format!("entry {}", name::shown(path)),
        reason,
    }
}

fn unknown_type(flag: u8) -> Reason {
    match flag {
        b'S' => "it is an old GNU sparse file (type 'S'), which containerd does not unpack".into(),
        _ => format!(
            "containerd does not unpack entries of type {:?}",
            char::from(flag)
        )
        .into(),
    }
}

fn symlink(target: Vec<u8>) -> Result<Kind, Reason> {
    if target.is_empty() || target.len() > limits::PATH_BYTES_MAX {
        return Err("its target is empty or longer than 4095 bytes".into());
    }
    Ok(Kind::Symlink(target))
}

/// A regular file: its pieces in the tar, neighbours joined, none sharing a block with a hole.
fn regular(member: &Member) -> Result<Kind, Reason> {
    if member.size > limits::TAR_BYTES_MAX {
        return Err("it is a file of more than 2 TiB".into());
    }
    let mut extents: Vec<Extent> = Vec::new();
    let mut tar_offset = member.data_offset;
    for segment in segments(member).iter() {
        match extents.last_mut() {
            Some(last) if last.file_offset + last.len == segment.offset => last.len += segment.len,
            _ => extents.push(Extent {
                file_offset: segment.offset,
                tar_offset,
                len: segment.len,
            }),
        }
        tar_offset += segment.len;
    }
    let is_aligned = |extent: &Extent| {
        let end = extent.file_offset + extent.len;
        extent.file_offset.is_multiple_of(limits::BLOCK)
            && extent.tar_offset.is_multiple_of(limits::BLOCK)
            && (end == member.size || end.is_multiple_of(limits::BLOCK))
    };
    if !extents.iter().all(is_aligned) {
        return Err("it is a sparse file whose pieces are not in whole blocks of 512 bytes".into());
    }
    // Nearly all files have one; a vector that grew has room for four.
    extents.shrink_to_fit();
    Ok(Kind::Regular {
        size: member.size,
        extents,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tar::{Sparse, Time};

    fn directory(name: &str) -> Member {
        Member {
            start: 0,
            name: name.into(),
            link: Vec::new(),
            kind: Type::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            device_major: 0,
            device_minor: 0,
            xattrs: BTreeMap::new(),
            size: 0,
            data_offset: 512,
            data_len: 0,
            sparse: Sparse::No,
        }
    }

    /// Promise: a layer of more entries than a node may be asked to keep in memory is copied, and the reason
    /// says how many there may be.
    #[test]
    fn a_layer_of_too_many_entries_is_copied_with_the_reason() {
        let mut builder = Builder {
            entries: limits::ENTRIES_MAX - 1,
            ..Builder::default()
        };
        builder.add(directory("last")).unwrap();
        let refused = builder.add(directory("more")).unwrap_err();
        assert!(matches!(refused, ScanError::Unrepresentable { .. }));
        let told = refused.to_string();
        assert!(
            told.contains("more") && told.contains("1,048,576 entries"),
            "{told}"
        );
    }
}
