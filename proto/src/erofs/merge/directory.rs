//! One directory of many layers.

use std::collections::BTreeMap;

use super::super::image::{DirEntry, Image, Nid};
use super::{OPAQUE, is_whiteout};
use crate::erofs::FileType;

/// An inode of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    /// The layer, counted from the lowest.
    pub(super) layer: usize,
    pub(super) nid: Nid,
}

impl Place {
    pub(super) fn new(layer: usize, nid: Nid) -> Self {
        Self { layer, nid }
    }
}

/// What a name leads to.
#[derive(Debug)]
pub(super) enum Found {
    /// Nothing: a whiteout was met first.
    Hidden,
    /// Anything but a directory.
    File(Place),
    /// A directory, at these places, the topmost first.
    Directory {
        places: Vec<Place>,
        /// Whether layers further down can add to it.
        is_open: bool,
    },
}

/// The entries of the directory that is at `places`, the topmost first, in the order of their names.
pub(super) fn visible<'a, B: AsRef<[u8]>>(
    layers: &[&'a Image<B>],
    places: &[Place],
) -> BTreeMap<&'a [u8], Found> {
    let mut found = BTreeMap::new();
    for place in places {
        let image = layers[place.layer];
        let entries = image.read_dir(place.nid, 0);
        for entry in entries.filter(|entry| !entry.is_dot()) {
            meet(image, place.layer, &entry, &mut found);
        }
    }
    found
}

/// Takes in what a layer has by a name, after all layers above it.
fn meet<'a, B: AsRef<[u8]>>(
    image: &Image<B>,
    layer: usize,
    entry: &DirEntry<'a>,
    found: &mut BTreeMap<&'a [u8], Found>,
) {
    let place = Place::new(layer, entry.nid);
    let is_directory = entry.file_type == FileType::Directory;
    let lets_through = || is_directory && image.xattr(entry.nid, OPAQUE).is_none();
    match found.get_mut(entry.name) {
        None => {
            let new = if is_directory {
                Found::Directory {
                    places: vec![place],
                    is_open: lets_through(),
                }
            } else if is_whiteout(image, entry.file_type, entry.nid) {
                Found::Hidden
            } else {
                Found::File(place)
            };
            found.insert(entry.name, new);
        }
        Some(Found::Directory { places, is_open }) if *is_open => {
            if is_directory {
                places.push(place);
            }
            // What is no directory hides the directories below it, and is hidden itself.
            *is_open = lets_through();
        }
        Some(_) => {}
    }
}
