//! Named files of an image, in a directory or in a tar.

mod archive;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_registry::bounded;

pub use archive::ArchiveError;

/// A run of bytes in an open file, readable from any place and at any time.
#[derive(Debug, Clone)]
pub struct Window {
    file: Arc<File>,
    start: u64,
    len: u64,
}

/// A reader from the beginning of a [`Window`] to its end.
#[derive(Debug)]
pub struct WindowReader {
    window: Window,
    at: u64,
}

impl Window {
    /// All of `file`.
    pub fn whole(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file: Arc::new(file),
            start: 0,
            len,
        })
    }

    fn part(file: &Arc<File>, start: u64, len: u64) -> Self {
        Self {
            file: Arc::clone(file),
            start,
            len,
        }
    }

    /// Its length, bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads up to `buffer`'s length from `offset` on; 0 at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buffer.len());
        self.file.read_at(&mut buffer[..count], self.start + offset)
    }

    /// Fills `buffer` from `offset` on, or fails.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.file.read_exact_at(buffer, self.start + offset)
    }

    /// A reader of all of it.
    pub fn reader(&self) -> WindowReader {
        WindowReader {
            window: self.clone(),
            at: 0,
        }
    }

    /// The open file, for a window that is all of it.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Read for WindowReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.window.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Where files are found by name.
#[derive(Debug)]
pub enum Files {
    /// Below a directory.
    Directory(PathBuf),
    /// In a tar: the open file, and where each entry's bytes lie.
    Archive {
        /// Name of the tar, for messages.
        path: PathBuf,
        /// Its entries by name without a leading `./`.
        entries: BTreeMap<String, Window>,
    },
}

impl Files {
    /// The files below `dir`.
    pub fn directory(dir: &Path) -> Self {
        Self::Directory(dir.to_owned())
    }

    /// The files in the tar `path`, which may be compressed with gzip or zstd.
    pub fn archive(path: &Path) -> Result<Self, ArchiveError> {
        let entries = archive::read(path)?;
        Ok(Self::Archive {
            path: path.to_owned(),
            entries,
        })
    }

    /// Opens the file `name`; `None` if there is none.
    ///
    /// Names come from documents, so one that could leave the directory is no file's name.
    pub fn open(&self, name: &str) -> io::Result<Option<Window>> {
        match self {
            Self::Archive { entries, .. } => Ok(entries.get(name).cloned()),
            Self::Directory(dir) => {
                if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
                    return Ok(None);
                }
                match bounded::open(&dir.join(name)) {
                    Ok(file) => Window::whole(file).map(Some),
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(None),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// What to call it in a message.
    pub fn path(&self) -> &Path {
        match self {
            Self::Directory(dir) => dir,
            Self::Archive { path, .. } => path,
        }
    }
}
