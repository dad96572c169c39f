//! Metadata images with the attributes of implied directories filled in.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};

use larder_proto::digest::Digest;
use larder_proto::erofs::{self, Image};
use larder_proto::tree::Kind;

use super::{Layer, MountError};
use crate::store::StoreRoot;
use crate::sys::Mapping;

/// A directory that the layer's tar implies, with the attributes it has in the layers below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImpliedDirectory {
    /// Path without leading slash; empty for the root.
    pub path: Vec<u8>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes by full name, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A metadata image of a layer, and where it is served.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) path: PathBuf,
    pub(crate) image: Arc<Image<Mapping>>,
    pub(crate) slot: u32,
}

impl Layer {
    /// The layer's own image, or the one patched with `implied`, made now or earlier.
    pub(crate) fn view(
        &self,
        implied: &[ImpliedDirectory],
        store: &StoreRoot,
    ) -> Result<View, MountError> {
        if implied.is_empty() {
            return Ok(View {
                path: self.stored().directory().join("meta"),
                image: self.stored().image().clone(),
                slot: self.0.slot,
            });
        }
        let make = || patch(self.stored().image(), implied);
        let key = key(implied);
        let former = store.former_patch(&self.id().0, &key);
        let stored = self.stored();
        let patched = stored.patched(&key, former, || store.new_slot(), make);
        store.own(&self.id().0, &stored.record());
        let (path, image, slot) = patched.map_err(|error| MountError::Patch {
            layer: self.id(),
            error,
        })?;
        self.lock_filled_in()
            .entry(key)
            .or_insert_with(|| implied.to_vec());
        Ok(View {
            path,
            image: Arc::new(image),
            slot,
        })
    }
}

impl Layer {
    /// The image called `key` once more, if somebody mounted it in this run: the one on the disk rotted.
    pub(crate) fn patch_again(&self, key: &str) -> Option<Vec<u8>> {
        let implied = self.lock_filled_in().get(key)?.clone();
        patch(self.stored().image(), &implied).ok()
    }

    fn lock_filled_in(&self) -> MutexGuard<'_, HashMap<String, Vec<ImpliedDirectory>>> {
        let filled_in = self.0.filled_in.lock();
        filled_in.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Names a patch: the same directories with the same attributes have the same name.
pub(crate) fn key(implied: &[ImpliedDirectory]) -> String {
    let mut sorted: Vec<_> = implied.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    let mut text = Vec::new();
    let mut field = |bytes: &[u8]| {
        text.extend((bytes.len() as u64).to_le_bytes());
        text.extend(bytes);
    };
    for directory in sorted {
        field(&directory.path);
        field(&directory.mode.to_le_bytes());
        field(&directory.uid.to_le_bytes());
        field(&directory.gid.to_le_bytes());
        field(&(directory.xattrs.len() as u64).to_le_bytes());
        for (name, value) in &directory.xattrs {
            field(name);
            field(value);
        }
    }
    Digest::of(&text).hex()
}

fn patch(image: &Image<Mapping>, implied: &[ImpliedDirectory]) -> Result<Vec<u8>, String> {
    let mut tree = image.to_tree();
    for directory in implied {
        let name = String::from_utf8_lossy(&directory.path).into_owned();
        let node = tree.find(&directory.path);
        let id = node.ok_or_else(|| format!("the layer has no directory {name:?}"))?;
        let node = tree.node_mut(id);
        if !matches!(node.kind, Kind::Directory(_)) {
            return Err(format!("{name:?} is not a directory of the layer"));
        }
        node.mode = directory.mode & 0o7777;
        node.uid = directory.uid;
        node.gid = directory.gid;
        // Marks of overlayfs that the layer set itself, such as an opaque directory, stay.
        node.xattrs
            .retain(|name, _| name.starts_with(b"trusted.overlay."));
        node.xattrs.extend(directory.xattrs.iter().cloned());
    }
    erofs::write(&tree, image.tar_len()).map_err(|error| error.to_string())
}
