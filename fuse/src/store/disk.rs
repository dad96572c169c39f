//! The file operations of the store, behind a trait so that tests can make them fail.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FallocateFlags;

/// Whoever leaves a link in the place of one of our files would have us write over what it leads to. `O_NOFOLLOW`.
const NO_LINK: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();

/// What the store asks of the disk below it. [`StdDisk`] does it; tests fail the nth call.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Reads exactly `bytes.len()` bytes at `offset`.
    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        file.read_exact_at(bytes, offset)
    }

    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Turns `range` into a hole.
    fn punch(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(file, flags, range.start, range.end - range.start)?;
        Ok(())
    }

    /// Makes the data written so far durable.
    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    /// Gives `file` the length `len`; what is new reads as zeros.
    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    /// A new, empty file at `path`, mode 0600; one that is there is emptied, and a link is an error.
    fn create(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.custom_flags(NO_LINK).open(path)
    }

    /// The file at `path`, to be read and written, mode 0600; an empty one if there is none. A link is an error.
    fn open(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.mode(0o600).custom_flags(NO_LINK).open(path)
    }

    /// Takes the name `path` away; whoever has the file open keeps it.
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    /// Takes the directory `path` away with all in it.
    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    /// A new directory at `path`, mode 0700.
    fn make_directory(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    /// Gives what is at `from` the name `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    /// Puts a file of `bytes` at `path`, whole or not at all; mode 0600.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let file = self.create(&fresh)?;
        self.write_at(&file, bytes, 0)?;
        drop(file);
        self.rename(&fresh, path)
    }

    /// The same, and it is there after a power cut.
    fn replace_durably(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let fresh = path.with_extension("new");
        let file = self.create(&fresh)?;
        self.write_at(&file, bytes, 0)?;
        self.sync_data(&file)?;
        drop(file);
        self.rename(&fresh, path)?;
        match path.parent() {
            Some(directory) => self.sync_data(&File::open(directory)?),
            None => Ok(()),
        }
    }

    /// The room on the file system that holds `directory`.
    fn space(&self, directory: &Path) -> io::Result<Space> {
        let stat = rustix::fs::statvfs(directory)?;
        Ok(Space {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

/// The disk, with nothing in between.
#[derive(Debug, Clone, Copy, Default)]
pub struct StdDisk;

impl Disk for StdDisk {}

/// Room on a file system, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// What is left to ordinary processes.
    pub available: u64,
}
