//! Merged images: what a chain of layers shows, as one metadata image, beside the layers it was made of.
//!
//! ```text
//! store/merged/<name>.image   the metadata image
//! store/merged/<name>.json    its sum and its layers, written last: without it there is no image
//! ```
//!
//! They are made from what the store has, so one that is damaged is simply made again.

use std::io;
use std::path::{Path, PathBuf};

use larder_proto::digest::{Algorithm, Digest};
use larder_proto::erofs::Image;
use larder_registry::bounded;
use serde::{Deserialize, Serialize};

use super::occupied::Occupied;
use super::root::StoreRoot;
use super::stored::{LayerStoreError, map};
use crate::private::create_private;
use crate::sys::Mapping;

/// Version of [`Facts`], and of how layers are merged: an image of another is made again.
const VERSION: u32 = 1;

/// Longest [`Facts`] that are read, bytes: as many digests as one image may have layers, of 75 bytes each, and the rest.
const FACTS_BYTES_MAX: u64 = 64 << 10;

/// What is known of a merged image beside its bytes.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    version: u32,
    /// BLAKE3 of the image, hex.
    sum: String,
    /// The layers, the lowest first.
    layers: Vec<String>,
}

/// A merged image on the disk, counted as long as this is there.
#[derive(Debug)]
pub(crate) struct MergedFile {
    pub(crate) path: PathBuf,
    _occupied: Occupied,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> LayerStoreError + '_ {
    move |error| LayerStoreError::Io {
        path: path.to_owned(),
        error,
    }
}

impl StoreRoot {
    fn merged_path(&self, name: &str, kind: &str) -> PathBuf {
        let directory = self.root().join("store").join("merged");
        directory.join(format!("{name}.{kind}"))
    }

    /// The names of all merged images, also of those that are not whole.
    pub(crate) fn merged_names(&self) -> Vec<String> {
        let directory = self.root().join("store").join("merged");
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let name = |path: PathBuf| Some(path.file_stem()?.to_str()?.to_owned());
        let mut names: Vec<_> = entries.filter_map(|entry| name(entry.path())).collect();
        names.sort();
        names.dedup();
        names
    }

    /// What a merged image was made of, the lowest layer first, if it is whole.
    pub(crate) fn merged_layers(&self, name: &str) -> Option<Vec<Digest>> {
        let layers = self.merged_facts(name)?.layers;
        layers.iter().map(|layer| layer.parse().ok()).collect()
    }

    fn merged_facts(&self, name: &str) -> Option<Facts> {
        let bytes = bounded::read(&self.merged_path(name, "json"), FACTS_BYTES_MAX).ok()?;
        let facts: Facts = serde_json::from_slice(&bytes).ok()?;
        (facts.version == VERSION).then_some(facts)
    }

    /// The merged image called `name`, for tars of these lengths, if it is there and intact.
    pub(crate) fn find_merged(&self, name: &str, tar_lens: &[u64]) -> Option<MergedFile> {
        // A kill while it was written again may have left the beginning of another one.
        let _ = self.disk.remove_file(&self.merged_path(name, "new"));
        let facts = self.merged_facts(name)?;
        let image = map(&self.merged_path(name, "image"));
        let is_intact = |image: Mapping| {
            sum(image.as_ref()) == facts.sum && Image::open_merged(image, tar_lens).is_ok()
        };
        if !image.is_ok_and(is_intact) {
            tracing::warn!(name, "a merged image was damaged; making it again");
            return None;
        }
        Some(self.merged_file(name))
    }

    /// The same without a look: the kernel has it mounted.
    pub(crate) fn merged_file(&self, name: &str) -> MergedFile {
        let path = self.merged_path(name, "image");
        let occupied = Occupied::new(self.rules().ledger.clone());
        occupied.set_beside(blocks(&path) + blocks(&self.merged_path(name, "json")));
        MergedFile {
            path,
            _occupied: occupied,
        }
    }

    /// Writes a merged image of these layers down.
    pub(crate) fn put_merged(
        &self,
        name: &str,
        layers: &[Digest],
        bytes: &[u8],
    ) -> Result<MergedFile, LayerStoreError> {
        let _room = self.rules().room_for(bytes.len() as u64)?;
        let (image, json) = (
            self.merged_path(name, "image"),
            self.merged_path(name, "json"),
        );
        let directory = self.root().join("store").join("merged");
        create_private(&directory).map_err(at(&directory))?;
        let facts = Facts {
            version: VERSION,
            sum: sum(bytes),
            layers: layers.iter().map(Digest::to_string).collect(),
        };
        let facts = serde_json::to_vec(&facts).map_err(io::Error::from);
        let facts = facts.map_err(at(&json))?;
        // Whoever has the one of before mounted keeps it: both are new files.
        let written = self.disk.replace_durably(&image, bytes).map_err(at(&image));
        let written =
            written.and_then(|()| self.disk.replace_durably(&json, &facts).map_err(at(&json)));
        if let Err(error) = written {
            self.remove_merged(name);
            return Err(error);
        }
        Ok(self.merged_file(name))
    }

    /// Takes a merged image away. Whoever has it mounted goes on reading it.
    pub(crate) fn remove_merged(&self, name: &str) {
        // The facts first: without them the rest is no image.
        for kind in ["json", "image", "new"] {
            let path = self.merged_path(name, kind);
            match self.disk.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "a merged image stays");
                }
                _ => {}
            }
        }
        // Only the last one leaves it empty.
        let _ = std::fs::remove_dir(self.root().join("store").join("merged"));
    }

    /// What all of them take on the disk, bytes.
    pub(crate) fn merged_bytes(&self) -> u64 {
        let directory = self.root().join("store").join("merged");
        let entries = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten();
        let files: u64 = entries.map(|entry| blocks(&entry.path())).sum();
        blocks(&directory) + files
    }
}

fn blocks(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512)
}

fn sum(bytes: &[u8]) -> String {
    Digest::from_bytes(*Algorithm::Blake3.digest(bytes).as_bytes()).hex()
}
