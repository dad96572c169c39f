//! Files of a layer that are read without being verified: the index, which is mapped, and the metadata images, which
//! the kernel reads past us. They are looked at now and then, and what the disk changed is written over in place:
//! whoever has the file open sees the right bytes again.

use std::io;
use std::path::{Path, PathBuf};

use larder_proto::index::Index;

use super::disk::Disk;
use super::record::{Record, sum};
use super::stored::{LayerStoreError, StoredLayer, at, map};
use crate::sys::Mapping;

impl StoredLayer {
    /// Whether the index is as it was written.
    pub(crate) fn is_index_right(&self) -> bool {
        is_right(&self.directory().join("index"), &self.record().index_sum)
    }

    /// Writes `index`, which came once more, over what the disk made of it.
    pub(crate) fn mend_index(&self, index: &[u8]) -> Result<(), LayerStoreError> {
        self.mend_file("index", index, &self.record().index_sum)
    }

    /// Looks at the metadata images, and puts right what the disk changed: the layer's own from the index, and the
    /// patched ones from what `patched` makes of their keys, where it can. The files that were wrong, and whether they
    /// are right now.
    pub(crate) fn mend_metadata(
        &self,
        patched: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Vec<(PathBuf, Result<(), LayerStoreError>)> {
        let (record, directory) = (self.record(), self.directory());
        let mut wrong = Vec::new();
        let path = directory.join("meta");
        if !is_right(&path, &record.meta_sum) {
            let mended = open_meta(&directory, &self.index, &record, &*self.disk);
            wrong.push((path, mended.map(drop)));
        }
        for patch in &record.patches {
            let name = format!("meta-{}", patch.key);
            if !is_right(&directory.join(&name), &patch.sum) {
                // Without it, what was filled in is known to who mounts it.
                let mended = patched(&patch.key)
                    .ok_or(LayerStoreError::Changed("a patched image"))
                    .and_then(|image| self.mend_file(&name, &image, &patch.sum));
                wrong.push((directory.join(name), mended));
            }
        }
        wrong
    }

    fn mend_file(&self, name: &str, bytes: &[u8], wanted: &str) -> Result<(), LayerStoreError> {
        // Another build may make another image of the same.
        if sum(bytes) != wanted {
            return Err(LayerStoreError::Changed("a file of the layer"));
        }
        let path = self.directory().join(name);
        write_over(&*self.disk, &path, bytes).map_err(at(&path))
    }
}

/// Whether the file at `path` has the sum `wanted`. One that is gone is no rot: the layer is being removed.
fn is_right(path: &Path, wanted: &str) -> bool {
    match map(path) {
        Ok(bytes) => sum(bytes.as_ref()) == wanted,
        Err(error) => !matches!(error, LayerStoreError::Changed(_)),
    }
}

/// The metadata image as it was written; what the disk changed of it is in the index as well.
pub(super) fn open_meta(
    directory: &Path,
    index: &Index<Mapping>,
    record: &Record,
    disk: &dyn Disk,
) -> Result<Mapping, LayerStoreError> {
    let path = directory.join("meta");
    if let Ok(meta) = map(&path)
        && sum(meta.as_ref()) == record.meta_sum
    {
        return Ok(meta);
    }
    if sum(index.metadata()) != record.meta_sum {
        return Err(LayerStoreError::Changed("meta"));
    }
    tracing::warn!(
        layer = %record.blob,
        "the disk changed the metadata of a layer; it is written anew from its index"
    );
    write_over(disk, &path, index.metadata()).map_err(at(&path))?;
    map(&path)
}

/// Puts `bytes` into the file at `path`, which stays the same file: the kernel may have it mounted.
pub(super) fn write_over(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = disk.open(path)?;
    disk.write_at(&file, bytes, 0)?;
    disk.set_len(&file, bytes.len() as u64)
}
