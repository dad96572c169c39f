//! Writing an image into an OCI layout directory.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;

use super::{DEFAULT_TAG, LayoutError, MARKER, blob_name, check_name, io, named, read_index};
use crate::files::{Files, Window};
use crate::spool;

/// A layout directory as a destination. Nothing is created before the first blob arrives.
#[derive(Debug)]
pub struct LayoutDestination {
    dir: PathBuf,
    tag: String,
}

impl LayoutDestination {
    /// A destination for the name `tag` in `dir`, which need not exist.
    pub fn new(dir: &Path, tag: Option<&str>) -> Self {
        Self {
            dir: dir.to_owned(),
            tag: tag.unwrap_or(DEFAULT_TAG).to_owned(),
        }
    }

    /// Refuses a directory that holds something else, and one that cannot be written.
    pub fn prepare(&self) -> Result<(), LayoutError> {
        check_name(&self.dir, &self.tag)?;
        if self.dir.exists() {
            let is_layout = self.dir.join("oci-layout").is_file();
            let mut entries = fs::read_dir(&self.dir).map_err(io("write to", &self.dir))?;
            if !is_layout && entries.next().is_some() {
                return Err(LayoutError::Occupied(self.dir.clone()));
            }
        }
        let dir = self.spool_dir();
        spool::create(&dir).map_err(io("write to", &dir)).map(drop)
    }

    /// A directory on the same file system, for what is not finished.
    pub fn spool_dir(&self) -> PathBuf {
        let existing = self.dir.ancestors().find(|dir| dir.is_dir());
        // The relative path `dir` has the empty path for its parent.
        existing.map_or_else(|| PathBuf::from("."), Path::to_owned)
    }

    /// Whether a blob of this digest and length is there.
    pub fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        let found = fs::metadata(self.dir.join(blob_name(digest)));
        found.is_ok_and(|found| found.is_file() && found.len() == size)
    }

    /// The bytes `range` of a blob: exactly those, or an error.
    pub fn range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, LayoutError> {
        let path = self.dir.join(blob_name(digest));
        let len = range.end.saturating_sub(range.start);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let file = File::open(&path).and_then(Window::whole);
        let read = file.and_then(|file| file.read_exact_at(&mut bytes, range.start));
        read.map_err(io("read", &path))?;
        Ok(bytes.into())
    }

    /// The layout as a source, if the name is in it already.
    pub fn existing(&self) -> Option<super::LayoutSource> {
        super::LayoutSource::open(Files::directory(&self.dir), Some(&self.tag)).ok()
    }

    /// Gives a nameless file of [`LayoutDestination::spool_dir`] its place.
    pub fn put_blob(&self, digest: &Digest, size: u64, file: &File) -> Result<(), LayoutError> {
        let path = self.place(digest)?;
        if path.exists() && !self.has_blob(digest, size) {
            // Cut off by somebody else's crash; it has the wrong length, so it is no use.
            fs::remove_file(&path).map_err(io("replace", &path))?;
        }
        spool::keep(file, &path).map_err(io("write", &path))
    }

    /// Writes a document among the blobs.
    pub fn put_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), LayoutError> {
        let path = self.place(digest)?;
        spool::replace(&path, bytes).map_err(io("write", &path))
    }

    /// Names the image; other names in the layout stay as they are.
    pub fn finish(&self, root: Descriptor, referrers: &[Descriptor]) -> Result<(), LayoutError> {
        // Two conversions into one layout must not lose each other's names.
        let lock = File::open(&self.dir).map_err(io("open", &self.dir))?;
        lock.lock().map_err(io("lock", &self.dir))?;
        let marker = self.dir.join("oci-layout");
        if !marker.exists() {
            spool::replace(&marker, MARKER.as_bytes()).map_err(io("write", &marker))?;
        }
        let old = read_index(&Files::directory(&self.dir))?;
        let index = named(old, root, &self.tag, referrers);
        let bytes = serde_json::to_vec(&index).expect("an index has text keys only");
        let path = self.dir.join("index.json");
        spool::replace(&path, &bytes).map_err(io("write", &path))
    }

    fn place(&self, digest: &Digest) -> Result<PathBuf, LayoutError> {
        let path = self.dir.join(blob_name(digest));
        let dir = self.dir.join("blobs/sha256");
        fs::create_dir_all(&dir).map_err(io("create", &dir))?;
        Ok(path)
    }
}
