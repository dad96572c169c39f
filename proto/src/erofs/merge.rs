//! Many layers as one: a metadata image that shows what overlayfs would show of their images, stacked.
//!
//! The data stays in the layers' tars. The merged image has a device for each, in the order of the layers, and
//! addresses them as one tar, the joined one. So it is written, and read, as the image of a single layer is.

mod directory;

use std::collections::HashMap;

use super::FileType;
use super::format::Devices;
use super::image::{Image, Inode, Nid};
use super::write::{WriteError, write_on};
use crate::limits;
use crate::tree::{DeviceNumber, Kind, Node, NodeId, ROOT, Tree};
use directory::{Found, Place, visible};

/// The attribute by which overlayfs knows a directory that hides what is below it.
const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Why layers have no merged image; they can be stacked all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// There is nothing to merge.
    #[error("there are no layers to merge")]
    NoLayers,
    /// More layers than overlayfs could stack.
    #[error("{layers} layers exceed the limit of {}", limits::MERGED_LAYERS_MAX)]
    TooManyLayers {
        /// Their number.
        layers: usize,
    },
    /// The tars are longer together than one image can address.
    #[error(
        "tars of {bytes} bytes together exceed the limit of {}",
        limits::TAR_BYTES_MAX
    )]
    TarsTooLong {
        /// Their length, each rounded up to whole blocks.
        bytes: u64,
    },
    /// More entries can be seen than one image may have.
    #[error("the layers show more than {} entries together", limits::ENTRIES_MAX)]
    TooManyEntries,
    /// Names, targets, attributes and maps take more than one image may hold.
    #[error("the layers have more metadata together than one image can hold")]
    TooMuch,
    /// The merged tree cannot be written.
    #[error("write the merged tree: {0}")]
    Write(#[from] WriteError),
}

/// The merged image of `layers`, the lowest first, each with the attributes of its implied directories filled in.
///
/// It shows what an overlay of the layers shows: entries of upper layers hide those of lower ones, directories
/// are joined and have the attributes of the topmost, whiteouts and opaque directories hide what is below and
/// are not seen themselves. A file says that it has as many links as its layer has. The same layers make the same bytes.
///
/// Costs memory for what can be seen, about 350 bytes for each entry and the image itself, and time for all
/// entries of all layers.
///
/// # Errors
/// See [`MergeError`]. A layer may be there once: overlayfs takes it once, and its topmost place shows all of it.
pub fn merge<B: AsRef<[u8]>>(layers: &[&Image<B>]) -> Result<Vec<u8>, MergeError> {
    if layers.is_empty() {
        return Err(MergeError::NoLayers);
    }
    if layers.len() > limits::MERGED_LAYERS_MAX {
        let layers = layers.len();
        return Err(MergeError::TooManyLayers { layers });
    }
    let lens: Vec<u64> = layers.iter().map(|layer| layer.tar_len()).collect();
    let bytes = layers.iter().map(|layer| layer.device_len()).sum();
    let devices = Devices::of(&lens).ok_or(MergeError::TarsTooLong { bytes })?;
    let tars = devices.tars(&lens);
    let mut merge = Merge {
        layers,
        starts: tars.iter().map(|tar| tar.start).collect(),
        tree: Tree { nodes: Vec::new() },
        links: HashMap::new(),
        stated: HashMap::new(),
        pending: Vec::new(),
        entries: 0,
        bytes: 0,
    };
    merge.walk()?;
    let joined_len = tars.last().map_or(0, |tar| tar.end);
    Ok(write_on(&merge.tree, joined_len, devices, &merge.stated)?)
}

/// A merged tree while it is made.
struct Merge<'a, B> {
    layers: &'a [&'a Image<B>],
    /// Where each layer's tar begins in the joined one.
    starts: Vec<u64>,
    tree: Tree,
    /// Files with several links that were met: only they can be met again.
    links: HashMap<Place, NodeId>,
    /// How many links these files have in their layers. Some may be hidden: overlayfs shows the number all the
    /// same.
    stated: HashMap<NodeId, u32>,
    /// Directories to be merged, each with its places, the topmost first.
    pending: Vec<(NodeId, Vec<Place>)>,
    entries: usize,
    /// What names, targets, attributes and extents take.
    bytes: u64,
}

impl<B: AsRef<[u8]>> Merge<'_, B> {
    fn walk(&mut self) -> Result<(), MergeError> {
        // overlayfs stacks the roots whatever they are marked with.
        let roots = self.layers.iter().enumerate().rev();
        let roots: Vec<_> = roots
            .map(|(layer, i)| Place::new(layer, i.root()))
            .collect();
        let root = self.directory(roots)?;
        debug_assert_eq!(root, ROOT);
        while let Some((directory, places)) = self.pending.pop() {
            let mut entries = Vec::new();
            for (name, found) in visible(self.layers, &places) {
                let child = match found {
                    Found::Hidden => continue,
                    Found::File(place) => self.file(place)?,
                    Found::Directory { places, .. } => self.directory(places)?,
                };
                self.entries += 1;
                if self.entries > limits::ENTRIES_MAX {
                    return Err(MergeError::TooManyEntries);
                }
                self.account(name.len())?;
                entries.push((name.to_vec(), child));
            }
            // In the order of their names already.
            let entries = entries.into_iter().collect();
            self.tree.node_mut(directory).kind = Kind::Directory(entries);
        }
        Ok(())
    }

    /// A directory that is at these places: the first one says what it is like.
    fn directory(&mut self, places: Vec<Place>) -> Result<NodeId, MergeError> {
        let Some((&first, inode)) = places.first().and_then(|p| Some((p, self.inode(*p)?))) else {
            return Ok(self.tree.add(Node::directory()));
        };
        let id = self.node(first, &inode)?;
        self.pending.push((id, places));
        Ok(id)
    }

    /// Anything but a directory.
    fn file(&mut self, place: Place) -> Result<NodeId, MergeError> {
        if let Some(&known) = self.links.get(&place) {
            return Ok(known);
        }
        // A validated image has every inode that its entries lead to.
        let inode = self.inode(place).ok_or(MergeError::TooMuch)?;
        let id = self.node(place, &inode)?;
        if inode.nlink > 1 {
            self.links.insert(place, id);
            self.stated.insert(id, inode.nlink);
        }
        Ok(id)
    }

    fn node(&mut self, place: Place, inode: &Inode) -> Result<NodeId, MergeError> {
        let mut node = self.layers[place.layer].node(place.nid, inode);
        node.xattrs.remove(OPAQUE);
        if let Kind::Regular { extents, .. } = &mut node.kind {
            for extent in extents {
                extent.tar_offset += self.starts[place.layer];
            }
        }
        let variable = match &node.kind {
            Kind::Symlink(target) => target.len(),
            Kind::Regular { extents, .. } => size_of_val(extents.as_slice()),
            _ => 0,
        };
        let xattrs = node.xattrs.iter();
        let xattrs = xattrs.map(|(name, value)| name.len() + value.len());
        self.account(variable + xattrs.sum::<usize>())?;
        Ok(self.tree.add(node))
    }

    /// Counts what the tree takes beside its nodes, as the scan of a tar does.
    fn account(&mut self, bytes: usize) -> Result<(), MergeError> {
        self.bytes += bytes as u64;
        let fits = self.bytes <= limits::INDEX_BYTES_MAX;
        fits.then_some(()).ok_or(MergeError::TooMuch)
    }

    fn inode(&self, place: Place) -> Option<Inode> {
        self.layers[place.layer].inode(place.nid)
    }
}

/// Whether an entry says that what has its name below is gone.
fn is_whiteout<B: AsRef<[u8]>>(image: &Image<B>, file_type: FileType, nid: Nid) -> bool {
    let rdev = || image.inode(nid).map(|inode| inode.rdev);
    file_type == FileType::CharDevice && rdev() == Some(DeviceNumber::default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::write;

    /// Promise: layers that show more than an image may have are refused before anybody makes their tree.
    #[test]
    fn one_entry_or_byte_too_many_is_refused() {
        let mut tree = Tree::new();
        let link = tree.add(Node {
            kind: Kind::Symlink(b"target".to_vec()),
            ..Node::directory()
        });
        if let Kind::Directory(entries) = &mut tree.node_mut(ROOT).kind {
            entries.insert(b"name".to_vec(), link);
        }
        let bytes = write(&tree, 1024).unwrap();
        let image = Image::open(&bytes[..], 1024).unwrap();
        let bytes_max = limits::INDEX_BYTES_MAX;
        let cases = [
            (limits::ENTRIES_MAX - 1, bytes_max - 10, Ok(())),
            (limits::ENTRIES_MAX, 0, Err(MergeError::TooManyEntries)),
            (0, bytes_max - 9, Err(MergeError::TooMuch)),
        ];
        for (entries, bytes, expected) in cases {
            let mut merge = Merge {
                layers: &[&image],
                starts: vec![0],
                tree: Tree { nodes: Vec::new() },
                links: HashMap::new(),
                stated: HashMap::new(),
                pending: Vec::new(),
                entries,
                bytes,
            };
            assert_eq!(merge.walk(), expected);
        }
    }
}
