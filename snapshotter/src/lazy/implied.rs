//! Attributes of directories that a layer implies: they come from the parents.
//!
//! Unpacking a layer, containerd makes a directory that has no entry of its own with mode, owner
//! and extended attributes of the topmost parent layer that has it, so the same layer gives
//! different trees on different parents. Lazily mounted, it must give the same ones.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use larder_proto::digest::Digest;
use rustix::fs as xattr;

use crate::plane::{Node, NodeKind, Plane};
use crate::store::{ImpliedEntry, Owner};

/// Symbolic links followed for one path: containerd's own limit.
const LINKS_MAX: usize = 255;

/// One layer below the new one.
#[derive(Debug, Clone)]
pub(crate) enum Parent {
    /// Unpacked into a directory.
    Directory(PathBuf),
    /// Loaded lazily, with its own implied directories.
    Layer {
        /// Digest of its stored index.
        index: Digest,
        /// Its implied directories as they are mounted.
        implied: Vec<ImpliedEntry>,
    },
}

/// Attributes for those of `paths` that some parent defines; `parents` are topmost first.
pub(crate) fn implied(
    plane: &dyn Plane,
    paths: &[Vec<u8>],
    parents: &[Parent],
) -> io::Result<Vec<ImpliedEntry>> {
    let mut entries = Vec::new();
    for path in paths {
        for parent in parents {
            let Some(node) = parent.find(plane, path)? else {
                continue;
            };
            if node.kind == NodeKind::Directory {
                entries.push(entry(path, node));
            }
            // The topmost layer that has the path decides; if it is no directory there, the
            // layer replaces it by one with default attributes.
            break;
        }
    }
    Ok(entries)
}

fn entry(path: &[u8], node: Node) -> ImpliedEntry {
    // containerd copies all but the trusted ones, which belong to overlayfs.
    let kept = |(name, _): &(Vec<u8>, Vec<u8>)| !name.starts_with(b"trusted.");
    ImpliedEntry {
        path: path.to_owned(),
        mode: node.mode,
        owner: node.owner,
        xattrs: node.xattrs.into_iter().filter(kept).collect(),
    }
}

impl Parent {
    /// The entry `path` leads to within this layer, symbolic links resolved inside its root.
    fn find(&self, plane: &dyn Plane, path: &[u8]) -> io::Result<Option<Node>> {
        let mut pending: VecDeque<Vec<u8>> = components(path).collect();
        let mut resolved: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let mut found = self.node(plane, b"")?;
        while let Some(component) = pending.pop_front() {
            if component == b".." {
                resolved.pop();
                continue;
            }
            resolved.push(component);
            let Some(node) = self.node(plane, &resolved.join(&b'/'))? else {
                return Ok(None);
            };
            match node.kind {
                NodeKind::Symlink(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Ok(None);
                    }
                    resolved.pop();
                    if target.starts_with(b"/") {
                        resolved.clear();
                    }
                    for component in components(&target).rev() {
                        pending.push_front(component);
                    }
                    found = self.node(plane, &resolved.join(&b'/'))?;
                }
                NodeKind::Other if !pending.is_empty() => return Ok(Some(node)),
                NodeKind::Directory | NodeKind::Other => found = Some(node),
            }
        }
        Ok(found)
    }

    /// The entry at `path`, whose directories are known not to be symbolic links.
    fn node(&self, plane: &dyn Plane, path: &[u8]) -> io::Result<Option<Node>> {
        match self {
            Self::Directory(root) => on_disk(&root.join(OsStr::from_bytes(path))),
            Self::Layer { index, implied } => {
                let Some(mut node) = plane.node(index, path) else {
                    return Ok(None);
                };
                if let Some(entry) = implied.iter().find(|entry| entry.path == path) {
                    node.mode = entry.mode;
                    node.owner = entry.owner;
                    node.xattrs.clone_from(&entry.xattrs);
                }
                Ok(Some(node))
            }
        }
    }
}

fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/');
    parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
}

fn on_disk(path: &Path) -> io::Result<Option<Node>> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
        Err(error) => return Err(error),
    };
    let kind = if found.is_dir() {
        NodeKind::Directory
    } else if found.is_symlink() {
        NodeKind::Symlink(fs::read_link(path)?.into_os_string().into_vec())
    } else {
        NodeKind::Other
    };
    let xattrs = match kind {
        NodeKind::Directory => xattrs(path)?,
        NodeKind::Symlink(_) | NodeKind::Other => Vec::new(),
    };
    Ok(Some(Node {
        kind,
        mode: u16::try_from(found.mode() & 0o7777).unwrap_or_default(),
        owner: Owner {
            uid: found.uid(),
            gid: found.gid(),
        },
        xattrs,
    }))
}

/// Extended attributes of a directory. Sizes are the kernel's own limits, so one call is enough.
fn xattrs(path: &Path) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    /// Linux XATTR_LIST_MAX and XATTR_SIZE_MAX.
    const BYTES_MAX: usize = 64 << 10;
    let mut names = vec![0; BYTES_MAX];
    let len = match xattr::llistxattr(path, names.as_mut_slice()) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    names.truncate(len);
    let mut pairs = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; BYTES_MAX];
        let len = xattr::lgetxattr(path, name, value.as_mut_slice())?;
        value.truncate(len);
        pairs.push((name.to_vec(), value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests;
