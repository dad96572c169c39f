//! From a tree to its metadata image.
//!
//! The image is a function of the tree alone: the order of nodes in memory, unreachable nodes and
//! the machine do not matter.

mod emit;
mod file;
mod place;
mod walk;
mod xattr;

use std::collections::HashMap;

use super::format::Devices;
use crate::limits;
use crate::tree::{NodeId, Tree};

/// Why a tree has no metadata image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A file has something EROFS, or our use of it, cannot hold.
    #[error(
        "cannot be mounted lazily, entry {:?}: {reason}",
        String::from_utf8_lossy(path)
    )]
    Unrepresentable {
        /// Path from the root, without leading slash; empty for the root itself.
        path: Vec<u8>,
        /// What cannot be held.
        reason: &'static str,
    },
    /// The tree contradicts itself: a bug of whoever built it.
    #[error("{}: {reason}; this is a bug", String::from_utf8_lossy(path))]
    NotATree {
        /// Path from the root, without leading slash.
        path: Vec<u8>,
        /// What is wrong.
        reason: &'static str,
    },
    /// The image would be longer than an index can be.
    #[error(
        "metadata of {bytes} bytes exceeds the format's limit of {}",
        limits::INDEX_BYTES_MAX
    )]
    TooLarge {
        /// Bytes the image would have, as far as they were counted.
        bytes: u64,
    },
    /// The tar is longer than the format can address.
    #[error(
        "a tar of {tar_len} bytes exceeds the format's limit of {}",
        limits::TAR_BYTES_MAX
    )]
    TarTooLong {
        /// Length of the tar.
        tar_len: u64,
    },
}

/// What is wrong with one node; the caller knows its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Unrepresentable(&'static str),
    NotATree(&'static str),
}

impl Refusal {
    fn at(self, path: Vec<u8>) -> WriteError {
        match self {
            Self::Unrepresentable(reason) => WriteError::Unrepresentable { path, reason },
            Self::NotATree(reason) => WriteError::NotATree { path, reason },
        }
    }
}

/// The metadata image of `tree`, whose file data lies in a tar of `tar_len` bytes.
///
/// # Errors
/// See [`WriteError`]; a layer that is [`WriteError::Unrepresentable`] or too large is one to
/// leave as it is.
pub fn write(tree: &Tree, tar_len: u64) -> Result<Vec<u8>, WriteError> {
    let devices = Devices::of(&[tar_len]).ok_or(WriteError::TarTooLong { tar_len })?;
    write_on(tree, tar_len, devices, &HashMap::new())
}

/// The same with the data in the tars of `devices`, joined: `tar_len` bytes, the padding between them included.
/// Files of `links` say that they have so many, however many the tree has.
pub(super) fn write_on(
    tree: &Tree,
    tar_len: u64,
    devices: Devices,
    links: &HashMap<NodeId, u32>,
) -> Result<Vec<u8>, WriteError> {
    let mut walk = walk::walk(tree)?;
    for (id, links) in links {
        walk.links[id.0 as usize] = *links;
    }
    let refuse = |node, refusal: Refusal| refusal.at(walk.path(tree, node));
    let xattrs = xattr::plan(tree, &walk.order, &refuse)?;
    let files = file::plan(tree, &walk.order, tar_len, &refuse)?;
    let placement = place::place(tree, &walk, &xattrs, &files, devices.len())?;
    Ok(emit::emit(
        tree, &walk, &xattrs, &files, &placement, devices,
    ))
}
