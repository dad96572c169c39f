//! Path resolution inside a layer, as containerd does it.
//!
//! containerd does not resolve a path component by component. It makes passes: each replaces
//! symlinks by their targets from left to right, joins what follows as text (so that `..` takes
//! away the component before it even if that is a symlink), and the passes end when one meets no
//! symlink. Between two passes a path may still lead through symlinks; the kernel follows these.
//! The results differ from plain resolution for a `..` behind a symlink to a symlink, and both
//! forms occur in real images, so the passes are reproduced here.

use super::name;
use crate::limits;
use crate::tree::{Kind, NodeId, ROOT, Tree};

/// Symlinks that containerd follows for one path.
const PASS_LINKS_MAX: usize = 255;

/// Symlinks that the kernel follows for one path.
const KERNEL_LINKS_MAX: usize = 40;

/// Look-ups that a layer may spend on paths with symlinks before its first entry, and more for
/// each entry. Real layers need some dozen per entry below a symlink; a hostile one, with chains of
/// 255 symlinks of 2,000 components each, would otherwise take days.
const LOOKUPS: u64 = 16 << 20;
const LOOKUPS_PER_ENTRY: u64 = 1 << 10;

/// Why a path cannot be resolved.
pub(super) type Reason = &'static str;

const NOT_A_DIRECTORY: Reason = "a parent of it is not a directory";
const TOO_MANY_LINKS: Reason = "its path leads through too many symbolic links";

/// What is at a path.
enum Found {
    Node(NodeId),
    Nothing,
}

/// The allowance for resolution through symlinks.
#[derive(Debug)]
pub(super) struct Budget(u64);

impl Default for Budget {
    fn default() -> Self {
        Self(LOOKUPS)
    }
}

impl Budget {
    /// One more entry of the tar was seen.
    pub(super) fn entry(&mut self) {
        self.0 += LOOKUPS_PER_ENTRY;
    }

    fn spend(&mut self) -> Result<(), Reason> {
        self.0 = self.0.checked_sub(1).ok_or(TOO_MANY_LINKS)?;
        Ok(())
    }
}

/// Where `path` leads: a path without symlinks, clean and from the root. Its last components
/// need not exist.
pub(super) fn root_path(tree: &Tree, path: &[u8], budget: &mut Budget) -> Result<Vec<u8>, Reason> {
    let mut path = path.to_vec();
    let mut links = 0;
    loop {
        let before = links;
        path = pass(tree, &path, &mut links, budget)?;
        if links == before {
            return Ok(path);
        }
    }
}

fn pass(
    tree: &Tree,
    path: &[u8],
    links: &mut usize,
    budget: &mut Budget,
) -> Result<Vec<u8>, Reason> {
    let mut so_far = Vec::with_capacity(path.len());
    for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
        if *links > PASS_LINKS_MAX {
            return Err(TOO_MANY_LINKS);
        }
        let mut next = so_far.clone();
        name::append(&mut next, part);
        if next.len() > limits::PATH_BYTES_MAX {
            return Err("its path is too long");
        }
        match at(tree, &next, budget)? {
            Found::Node(node) if let Kind::Symlink(target) = &tree.node(node).kind => {
                *links += 1;
                if target.starts_with(b"/") {
                    so_far.clear();
                }
                name::append(&mut so_far, target);
            }
            _ => so_far = next,
        }
    }
    Ok(so_far)
}

/// What the kernel finds at the clean path `path`, following symlinks except in the last
/// component. A symlink that leads out of the layer leads to the file system of the node, where
/// containerd, too, expects nothing.
fn at(tree: &Tree, path: &[u8], budget: &mut Budget) -> Result<Found, Reason> {
    let mut left: Vec<&[u8]> = path.rsplit(|&b| b == b'/').collect();
    let mut directories = vec![ROOT];
    let mut links = 0;
    while let Some(part) = left.pop() {
        budget.spend()?;
        if part.len() > limits::NAME_BYTES_MAX {
            return Err("a component of its path is too long");
        }
        match part {
            b"" | b"." => continue,
            b".." => {
                directories.pop();
                if directories.is_empty() {
                    return Ok(Found::Nothing);
                }
                continue;
            }
            _ => {}
        }
        let Some(&directory) = directories.last() else {
            return Ok(Found::Nothing);
        };
        let Some(node) = tree.child(directory, part) else {
            return Ok(Found::Nothing);
        };
        if left.is_empty() {
            return Ok(Found::Node(node));
        }
        match &tree.node(node).kind {
            Kind::Directory(_) => directories.push(node),
            Kind::Symlink(target) => {
                links += 1;
                if links > KERNEL_LINKS_MAX {
                    return Err(TOO_MANY_LINKS);
                }
                if target.starts_with(b"/") {
                    return Ok(Found::Nothing);
                }
                left.extend(target.rsplit(|&b| b == b'/'));
            }
            _ => return Err(NOT_A_DIRECTORY),
        }
    }
    Ok(directories
        .last()
        .map_or(Found::Nothing, |&id| Found::Node(id)))
}

/// How far a path leads through directories alone.
pub(super) enum Walk<'a> {
    /// All of it: the directory.
    Directory(NodeId),
    /// The rest of the path does not exist below this directory.
    Missing(NodeId, &'a [u8]),
    /// A component is a symlink: [`root_path`] must resolve the path.
    Symlink,
    /// A component is another kind of file.
    NotADirectory,
}

/// Walks the clean path `path`.
pub(super) fn walk<'a>(tree: &Tree, path: &'a [u8]) -> Walk<'a> {
    let mut at = ROOT;
    let mut rest = path;
    while !rest.is_empty() {
        let end = rest.iter().position(|&b| b == b'/').unwrap_or(rest.len());
        let Some(node) = tree.child(at, &rest[..end]) else {
            return Walk::Missing(at, rest);
        };
        match &tree.node(node).kind {
            Kind::Directory(_) => at = node,
            Kind::Symlink(_) => return Walk::Symlink,
            _ => return Walk::NotADirectory,
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    Walk::Directory(at)
}
