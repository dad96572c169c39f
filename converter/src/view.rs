//! An image's files as a container sees them: the layers merged as overlayfs merges them.

mod content;
mod open;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;

use larder_proto::index::Index;
use larder_proto::tree::{DeviceNumber, Extent, Kind, Node, NodeId, ROOT, Tree};

pub(crate) use content::open_frame;
pub use content::{ContentError, copy_content};
pub use open::{PlainOrLarder, ViewError, ViewedLayer, choose_platform, open_view, own_platform};
pub(crate) use open::{indexed_layer, open_index};

/// Symlinks followed in one path, as many as Linux follows.
const SYMLINKS_MAX: usize = 40;

/// The merged file system of an image.
#[derive(Debug)]
pub struct View {
    /// The layers, the topmost first.
    layers: Vec<ViewedLayer>,
    /// The root directory of an image without layers.
    nothing: Node,
}

/// A file in one of the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct At {
    layer: usize,
    node: NodeId,
}

/// A file of the merged system: one place, or for a directory all that it is merged from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    places: Vec<At>,
    path: Vec<u8>,
}

impl Found {
    /// What it is in which layer: two names of one file have the same.
    pub(crate) fn place(&self) -> At {
        let root = At {
            layer: 0,
            node: ROOT,
        };
        // Only the root directory of an image without layers is in none.
        self.places.first().copied().unwrap_or(root)
    }

    /// Its path, every symlink resolved, without a leading slash.
    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }
}

impl At {
    /// Number of the layer; the topmost has 0.
    pub(crate) fn layer(self) -> usize {
        self.layer
    }
}

/// A path that leads nowhere, or not to what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// There is no such file.
    #[error("{0}: no such file or directory")]
    NotFound(String),
    /// Something on the way is no directory.
    #[error("{0}: not a directory")]
    NotADirectory(String),
    /// It is a directory, a device or another thing without contents.
    #[error("{0}: not a regular file")]
    NotAFile(String),
    /// Symlinks lead in a circle.
    #[error("{0}: too many levels of symbolic links")]
    Loop(String),
}

impl View {
    /// The view of these layers, the topmost first.
    pub(crate) fn new(layers: Vec<ViewedLayer>) -> Self {
        Self {
            layers,
            nothing: Node::directory(),
        }
    }

    fn tree(&self, at: At) -> &Tree {
        &self.layers[at.layer].tree
    }

    fn raw(&self, at: At) -> &Node {
        self.tree(at).node(at.node)
    }

    /// The root directory.
    pub fn root(&self) -> Found {
        let places = (0..self.layers.len())
            .map(|layer| At { layer, node: ROOT })
            .collect();
        Found {
            places,
            path: Vec::new(),
        }
    }

    /// The file's type and attributes.
    ///
    /// A directory that a layer only implies takes them from the layers below, as containerd
    /// gives it them when it unpacks.
    pub fn node(&self, found: &Found) -> &Node {
        let described = |at: &&At| !self.layers[at.layer].implied.contains(&found.path);
        let mut places = found.places.iter();
        let at = places.find(described).or(found.places.first());
        at.map_or(&self.nothing, |at| self.raw(*at))
    }

    /// The entry `name` of a directory.
    pub fn child(&self, directory: &Found, name: &[u8]) -> Option<Found> {
        let mut places: Vec<At> = Vec::new();
        for at in &directory.places {
            let Some(node) = self.tree(*at).child(at.node, name) else {
                continue;
            };
            let at = At {
                layer: at.layer,
                node,
            };
            let is_directory = matches!(self.raw(at).kind, Kind::Directory(_));
            // What is not a directory ends the merge, and a whiteout is nothing at all.
            if is_whiteout(self.raw(at)) || (!is_directory && !places.is_empty()) {
                break;
            }
            places.push(at);
            if !is_directory || is_opaque(self.raw(at)) {
                break;
            }
        }
        let mut path = directory.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend(name);
        (!places.is_empty()).then_some(Found { places, path })
    }

    /// The entries of a directory by name; nothing for other files.
    pub fn list(&self, directory: &Found) -> Vec<(Vec<u8>, Found)> {
        let mut names = BTreeSet::new();
        for at in &directory.places {
            if let Kind::Directory(entries) = &self.raw(*at).kind {
                names.extend(entries.keys());
            }
        }
        let entry = |name: &Vec<u8>| Some((name.clone(), self.child(directory, name)?));
        names.into_iter().filter_map(entry).collect()
    }

    /// The names of a directory's entries that begin with `start`, in their order.
    pub(crate) fn names_from(&self, directory: &Found, start: &[u8]) -> Vec<Vec<u8>> {
        let mut names = BTreeSet::new();
        for at in &directory.places {
            if let Kind::Directory(entries) = &self.raw(*at).kind {
                let from = entries.range(start.to_vec()..).map(|(name, _)| name);
                names.extend(from.take_while(|name| name.starts_with(start)));
            }
        }
        let is_there = |name: &&Vec<u8>| self.child(directory, name).is_some();
        names.into_iter().filter(is_there).cloned().collect()
    }

    /// The file at `path`; symlinks on the way are followed within the image, the last one only
    /// if `follow` says so.
    pub fn find(&self, path: &[u8], follow: bool) -> Result<Found, PathError> {
        let text = || String::from_utf8_lossy(path).into_owned();
        let mut above = vec![self.root()];
        let mut todo: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let here = above.last().expect("the root is never left");
            if !matches!(self.node(here).kind, Kind::Directory(_)) {
                return Err(PathError::NotADirectory(text()));
            }
            match &name[..] {
                b"." => continue,
                b".." => {
                    above.truncate((above.len() - 1).max(1));
                    continue;
                }
                _ => {}
            }
            let found = self
                .child(here, &name)
                .ok_or_else(|| PathError::NotFound(text()))?;
            match &self.node(&found).kind {
                Kind::Symlink(target) if follow || !todo.is_empty() => {
                    links += 1;
                    if links > SYMLINKS_MAX {
                        return Err(PathError::Loop(text()));
                    }
                    if target.starts_with(b"/") {
                        above.truncate(1);
                    }
                    todo.extend(components(target));
                }
                _ => above.push(found),
            }
        }
        Ok(above.pop().expect("the root is never left"))
    }

    /// The number of names of the file's node within its layer; directories count as one.
    pub fn links(&self, found: &Found) -> usize {
        if matches!(self.node(found).kind, Kind::Directory(_)) {
            return 1;
        }
        let at = found.place();
        let counts = self.layers[at.layer].links();
        counts.get(at.node.0 as usize).copied().unwrap_or(1)
    }

    /// The index of the layer with this number, if it has one; the topmost has number 0.
    pub(crate) fn index(&self, layer: usize) -> Option<&Index<Vec<u8>>> {
        match &self.layers.get(layer)?.form {
            PlainOrLarder::Larder(index) => Some(index),
            PlainOrLarder::Plain => None,
        }
    }

    /// Where the bytes `range` of a regular file lie in its layer's tar, in the file's order; holes lie nowhere.
    pub(crate) fn extents(&self, found: &Found, range: &Range<u64>) -> Vec<Extent> {
        let Kind::Regular { extents, .. } = &self.raw(found.places[0]).kind else {
            return Vec::new();
        };
        let overlap = |extent: &Extent| {
            let from = range.start.max(extent.file_offset);
            let to = range.end.min(extent.file_offset + extent.len);
            (from < to).then(|| Extent {
                file_offset: from,
                tar_offset: extent.tar_offset + (from - extent.file_offset),
                len: to - from,
            })
        };
        extents.iter().filter_map(overlap).collect()
    }

    fn layer(&self, found: &Found) -> (&ViewedLayer, &Node) {
        (
            &self.layers[found.places[0].layer],
            self.raw(found.places[0]),
        )
    }
}

/// The components of a path, the first one last. A trailing slash asks for a directory.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let mut parts: Vec<Vec<u8>> = path
        .split(|&byte| byte == b'/')
        .filter(|part| !part.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    if path.ends_with(b"/") && !parts.is_empty() {
        parts.push(b".".to_vec());
    }
    parts.reverse();
    parts
}

fn is_whiteout(node: &Node) -> bool {
    node.kind == Kind::CharDevice(DeviceNumber::default())
}

fn is_opaque(node: &Node) -> bool {
    node.xattrs
        .get(&b"trusted.overlay.opaque"[..])
        .is_some_and(|value| value == b"y")
}

/// Names per node of a tree.
fn count_links(tree: &Tree) -> Vec<usize> {
    let mut counts = vec![0; tree.nodes.len()];
    let mut seen = HashSet::from([ROOT]);
    let mut todo = vec![ROOT];
    while let Some(id) = todo.pop() {
        if let Kind::Directory(entries) = &tree.node(id).kind {
            for &entry in entries.values() {
                counts[entry.0 as usize] += 1;
                if seen.insert(entry) {
                    todo.push(entry);
                }
            }
        }
    }
    counts
}
