//! The operations of a store on its disk, as they were asked for.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::super::disk::{Disk, StdDisk};

/// Names a file, whatever it is called.
pub(super) type FileId = usize;

/// One operation. Paths are below the root.
#[derive(Debug, Clone)]
pub(super) enum Op {
    MakeDirectory(PathBuf),
    /// A new name for a new, empty file.
    Create(PathBuf, FileId),
    Write(FileId, u64, Vec<u8>),
    SetLen(FileId, u64),
    Punch(FileId, Range<u64>),
    Sync(FileId),
    /// The names in a directory, not those in directories below it.
    SyncNames(PathBuf),
    Rename(PathBuf, PathBuf),
    RemoveFile(PathBuf),
    RemoveDirectory(PathBuf),
    /// In place of a sync that is left out.
    Nothing,
}

/// Does what it is asked for, and remembers it.
#[derive(Debug)]
pub(super) struct Recorder {
    root: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    trace: Vec<Op>,
    /// Inode → file. Inodes are used again, so a new file replaces the entry.
    files: HashMap<u64, FileId>,
    next: FileId,
}

impl Recorder {
    pub(super) fn new(root: &Path) -> Self {
        // The store works with the canonical path, of a directory it makes itself.
        std::fs::create_dir(root).unwrap();
        Self {
            root: root.canonicalize().unwrap(),
            kept: Mutex::default(),
        }
    }

    pub(super) fn trace(&self) -> Vec<Op> {
        self.lock().trace.clone()
    }

    fn note(&self, op: Op) {
        self.lock().trace.push(op);
    }

    fn of(&self, file: &File, op: impl FnOnce(FileId) -> Op) {
        let inode = file.metadata().unwrap().ino();
        let mut kept = self.lock();
        let id = kept.files[&inode];
        kept.trace.push(op(id));
    }

    fn created(&self, path: &Path, file: &File) {
        let mut kept = self.lock();
        let id = kept.next;
        kept.next += 1;
        kept.files.insert(file.metadata().unwrap().ino(), id);
        let path = self.below(path);
        kept.trace.push(Op::Create(path, id));
    }

    fn below(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap().to_owned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for Recorder {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.of(file, |id| Op::Write(id, offset, bytes.to_vec()));
        StdDisk.write_at(file, bytes, offset)
    }

    fn punch(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        self.of(file, |id| Op::Punch(id, range.clone()));
        StdDisk.punch(file, range)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.is_dir() {
            // The descriptor says which.
            let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
            self.note(Op::SyncNames(self.below(&path)));
        } else {
            self.of(file, Op::Sync);
        }
        StdDisk.sync_data(file)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.of(file, |id| Op::SetLen(id, len));
        StdDisk.set_len(file, len)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        let file = StdDisk.create(path)?;
        self.created(path, &file);
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        let is_new = !path.exists();
        let file = StdDisk.open(path)?;
        if is_new {
            self.created(path, &file);
        }
        Ok(file)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.note(Op::RemoveFile(self.below(path)));
        StdDisk.remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        self.note(Op::RemoveDirectory(self.below(path)));
        StdDisk.remove_directory(path)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.note(Op::MakeDirectory(self.below(path)));
        StdDisk.make_directory(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(Op::Rename(self.below(from), self.below(to)));
        StdDisk.rename(from, to)
    }
}
