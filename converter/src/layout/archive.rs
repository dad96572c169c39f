//! Writing an image as a tar of an OCI layout.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;

use super::{DEFAULT_TAG, LayoutError, MARKER, blob_name, check_name, named};
use crate::files::Window;
use crate::spool;

const BLOCK_LEN: usize = 512;
const BLOCK: u64 = BLOCK_LEN as u64;

/// Bytes gathered before they are written: headers are small, blobs pass through.
const WRITE_BYTES: usize = 256 << 10;

/// A tar as a destination. It replaces a file of that name when it is complete, not before.
#[derive(Debug)]
pub struct ArchiveDestination {
    path: PathBuf,
    tag: String,
    tar: Mutex<Tar>,
}

#[derive(Debug)]
struct Tar {
    out: BufWriter<File>,
    blobs: HashSet<Digest>,
}

impl ArchiveDestination {
    /// A destination for the name `tag` in the tar `path`.
    pub fn new(path: &Path, tag: Option<&str>) -> Result<Self, LayoutError> {
        let file = spool::create(&parent(path)).map_err(|error| at(path, error))?;
        let out = BufWriter::with_capacity(WRITE_BYTES, file);
        Ok(Self {
            path: path.to_owned(),
            tag: tag.unwrap_or(DEFAULT_TAG).to_owned(),
            tar: Mutex::new(Tar {
                out,
                blobs: HashSet::new(),
            }),
        })
    }

    /// Refuses a name that is taken by something else; that the place can be written was seen
    /// when it was opened.
    ///
    /// The archive takes the place of what has its name: a file may be replaced, but not a device,
    /// which all of the machine uses, and no link, such as /dev/stdout.
    pub fn prepare(&self) -> Result<(), LayoutError> {
        check_name(&self.path, &self.tag)?;
        let Ok(there) = self.path.symlink_metadata() else {
            return Ok(());
        };
        if there.is_file() {
            return Ok(());
        }
        let what = match there.file_type() {
            kind if kind.is_dir() => "a directory",
            kind if kind.is_symlink() => "a symbolic link",
            _ => "a device, pipe or socket",
        };
        let reason = format!("it is {what}, and an archive replaces only a file: name a file");
        Err(at(&self.path, io::Error::other(reason)))
    }

    /// A directory on the same file system, for what is not finished.
    pub fn spool_dir(&self) -> PathBuf {
        parent(&self.path)
    }

    /// Whether the blob has been put.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.tar
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blobs
            .contains(digest)
    }

    /// That a blob cannot be read here.
    pub fn lacks(&self, digest: &Digest) -> LayoutError {
        LayoutError::NoSuchBlob {
            path: self.path.clone(),
            digest: *digest,
        }
    }

    /// Appends a blob, unless it is there.
    pub fn put_blob(&self, digest: &Digest, file: &File) -> Result<(), LayoutError> {
        let window = file.try_clone().and_then(Window::whole);
        let window = window.map_err(|error| at(&self.path, error))?;
        self.append(digest, window.len(), window.reader())
    }

    /// Appends a document, unless it is there.
    pub fn put_bytes(&self, digest: &Digest, bytes: &[u8]) -> Result<(), LayoutError> {
        self.append(digest, bytes.len() as u64, bytes)
    }

    fn append(&self, digest: &Digest, size: u64, bytes: impl Read) -> Result<(), LayoutError> {
        let mut tar = self.tar.lock().unwrap_or_else(PoisonError::into_inner);
        if tar.blobs.insert(*digest) {
            let wrote = tar.entry(&blob_name(digest), size, bytes);
            wrote.map_err(|error| at(&self.path, error))?;
        }
        Ok(())
    }

    /// Names the image, completes the tar and puts it in its place.
    pub fn finish(&self, root: Descriptor, referrers: &[Descriptor]) -> Result<(), LayoutError> {
        let index = named(None, root, &self.tag, referrers);
        let index = serde_json::to_vec(&index).expect("an index has text keys only");
        let mut tar = self.tar.lock().unwrap_or_else(PoisonError::into_inner);
        let mut complete = || {
            tar.entry("index.json", index.len() as u64, &index[..])?;
            tar.entry("oci-layout", MARKER.len() as u64, MARKER.as_bytes())?;
            tar.out.write_all(&[0; 2 * BLOCK_LEN])?;
            tar.out.flush()?;
            // A nameless file cannot replace one that has the name; a named one can.
            let dir = tempfile::Builder::new()
                .prefix(".larder-")
                .tempdir_in(parent(&self.path))?;
            let path = dir.path().join("archive");
            spool::keep(tar.out.get_ref(), &path)?;
            std::fs::rename(&path, &self.path)
        };
        complete().map_err(|error| at(&self.path, error))
    }
}

impl Tar {
    fn entry(&mut self, name: &str, size: u64, mut bytes: impl Read) -> io::Result<()> {
        self.out.write_all(&tar_entry(name, b'0', "", size))?;
        let copied = io::copy(&mut bytes, &mut self.out)?;
        debug_assert_eq!(copied, size);
        let padding = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
        self.out.write_all(&[0; BLOCK_LEN][..padding])
    }
}

/// A ustar header: mode 0644, owned by root, from 1970; `name` and `link` below 100 bytes.
pub fn tar_entry(name: &str, kind: u8, link: &str, size: u64) -> [u8; BLOCK_LEN] {
    let mut header = [0; BLOCK_LEN];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, &name.as_bytes()[..name.len().min(99)]);
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size < 1 << 33 {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link.as_bytes()[..link.len().min(99)]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn at(path: &Path, error: io::Error) -> LayoutError {
    LayoutError::Io {
        doing: "write",
        path: path.to_owned(),
        error,
    }
}
