//! The device file of a layer: the tar, filled chunk by chunk.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use larder_proto::index::Chunk;
use larder_proto::verified::Verified;
use rustix::fs::{Advice, SeekFrom, fadvise, seek};
use rustix::io::Errno;

use super::disk::Disk;

/// Zeros are looked for in pieces of this size, at multiples of it: the block of the file systems
/// the store lies on, hence the smallest hole they make.
const HOLE: usize = 4096;

/// What became of a chunk's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Published {
    /// They are in the device file.
    Stored,
    /// There is no room, or the disk failed: the caller keeps them while it needs them.
    NotStored,
}

/// The sparse file.
#[derive(Debug)]
pub(crate) struct Device {
    /// Replaced when the whole layer is evicted: the kernel may still read the old one.
    file: RwLock<Arc<File>>,
    disk: Arc<dyn Disk>,
    len: u64,
}

impl Device {
    /// Takes the file at `path`, or makes it, and gives it the length of the tar, rounded up to
    /// whole blocks.
    pub(crate) fn open(path: &Path, disk: Arc<dyn Disk>, len: u64) -> io::Result<Self> {
        let file = disk.open(path)?;
        if file.metadata()?.len() != len {
            disk.set_len(&file, len)?;
        }
        let file = RwLock::new(Arc::new(file));
        Ok(Self { file, disk, len })
    }

    pub(crate) fn file(&self) -> Arc<File> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        file.clone()
    }

    /// Whether somebody made the file shorter than it is to be.
    pub(crate) fn is_cut(&self) -> bool {
        let found = self.file().metadata();
        found.is_ok_and(|found| found.len() < self.len)
    }

    pub(crate) fn restore_length(&self) -> io::Result<()> {
        if self.is_cut() {
            return self.disk.set_len(&self.file(), self.len);
        }
        Ok(())
    }

    /// Writes the content of `chunk`, leaving out what is zero anyway: what a file never had
    /// written to it reads as zeros. What a power cut, a failed write or a rotten disk left there
    /// is overwritten.
    pub(crate) fn write(&self, chunk: &Chunk, content: &Verified<Vec<u8>>) -> io::Result<()> {
        let (file, content) = (self.file(), content.as_slice());
        let place = |offset: u64| usize::try_from(offset - chunk.offset).map_err(io::Error::other);
        let mut zeros = 0;
        for run in data_runs(chunk.offset, content) {
            let at = chunk.offset + run.start as u64;
            for left in data_within(&file, chunk.offset + zeros as u64..at) {
                let bytes = &content[place(left.start)?..place(left.end)?];
                self.disk.write_at(&file, bytes, left.start)?;
            }
            self.disk.write_at(&file, &content[run.clone()], at)?;
            zeros = run.end;
        }
        for left in data_within(&file, chunk.offset + zeros as u64..chunk.end()) {
            let bytes = &content[place(left.start)?..place(left.end)?];
            self.disk.write_at(&file, bytes, left.start)?;
        }
        Ok(())
    }

    /// Turns `range` into a hole.
    pub(crate) fn clear(&self, range: Range<u64>) -> io::Result<()> {
        self.disk.punch(&self.file(), range)
    }

    /// Puts an empty file in place of the one at `path`. The old one is given back: closing it
    /// frees its blocks, unless the kernel still reads it.
    pub(crate) fn replace(&self, path: &Path) -> io::Result<Arc<File>> {
        let fresh = path.with_extension("new");
        self.disk.set_len(&self.disk.create(&fresh)?, self.len)?;
        let file = self.disk.open(&fresh)?;
        self.disk.rename(&fresh, path)?;
        let mut now = self.file.write().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::replace(&mut *now, Arc::new(file)))
    }

    /// Whether nothing was ever written to `range`, or all of it was taken away: to its whole blocks, since it
    /// shares the others with its neighbours.
    pub(crate) fn is_hole(&self, range: &Range<u64>) -> bool {
        let block = HOLE as u64;
        let blocks = range.start.next_multiple_of(block)..range.end / block * block;
        !blocks.is_empty() && data_within(&self.file(), blocks).is_empty()
    }

    pub(crate) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(&self.file(), bytes, offset)
    }

    /// Asks the kernel to read `range` from the disk the next time. Pages at its ends that hold something else, too, and
    /// what is not on the disk yet stay.
    pub(crate) fn forget_cached(&self, range: Range<u64>) {
        // No length would mean all that follows.
        if let Some(len) = NonZeroU64::new(range.end.saturating_sub(range.start)) {
            let _ = fadvise(self.file(), range.start, Some(len), Advice::DontNeed);
        }
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.disk.sync_data(&self.file())
    }
}

/// The parts of `range` that are no holes. Where a file system cannot tell, that is all of it.
fn data_within(file: &File, range: Range<u64>) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        if start >= range.end {
            break;
        }
        let end = seek(file, SeekFrom::Hole(start)).unwrap_or(range.end);
        let end = end.clamp(start + 1, range.end);
        parts.push(start..end);
        at = end;
    }
    parts
}

/// The parts of `content`, which lies at `offset` of the file, that are not zero.
fn data_runs(offset: u64, content: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    // The place of the first byte in its block.
    let in_block = usize::try_from(offset % HOLE as u64).unwrap_or(0);
    let mut start = 0;
    while start < content.len() {
        let end = content.len().min(start + HOLE - (in_block + start) % HOLE);
        if content[start..end].iter().any(|&byte| byte != 0) {
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        start = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use larder_proto::digest::Algorithm;

    use super::*;

    #[test]
    fn only_blocks_with_data_are_written() {
        let mut content = vec![0; 20_000];
        assert!(data_runs(512, &content).is_empty());
        content[3583] = 1; // the last byte of the first block of the file
        content[3584] = 1; // the first byte of the second
        content[19_999] = 1;
        assert_eq!(data_runs(512, &content), [0..7680, 19_968..20_000]);
        assert_eq!(data_runs(0, &[1]).first(), Some(&(0..1)));
        assert!(data_runs(7, &[]).is_empty());
    }

    /// Promise: whatever lay in a chunk's place before, it reads as its content once it is written,
    /// and zeros where nothing lay take no room.
    #[test]
    fn leftovers_are_overwritten_also_with_zeros() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("device");
        let disk: Arc<dyn Disk> = Arc::new(super::super::disk::StdDisk);
        let device = Device::open(&path, disk, 1 << 20).unwrap();
        let (from, to) = (512, 512 + 600_000);
        device.disk.write_at(&device.file(), &[7; 512], 0).unwrap();
        device.disk.write_at(&device.file(), &[7; 512], to).unwrap();
        let mut content = vec![0; 600_000];
        content[300_000] = 1;
        let chunk = Chunk {
            offset: from,
            len: 600_000,
            stored_offset: 0,
            stored_len: 1,
            frame: Algorithm::Blake3.digest(b""),
            content: Algorithm::Blake3.digest(&content),
        };
        let verified = || Verified::check(content.clone(), &chunk.content).unwrap();
        device.write(&chunk, &verified()).unwrap();
        let sparse = device.file().metadata().unwrap().blocks() * 512;
        assert!(sparse <= 4 * 4096, "{sparse} bytes");
        for left in [from..from + 1, from + 20_000..from + 90_000, to - 1..to] {
            let junk = vec![9; usize::try_from(left.end - left.start).unwrap()];
            device
                .disk
                .write_at(&device.file(), &junk, left.start)
                .unwrap();
        }
        device.write(&chunk, &verified()).unwrap();
        let mut found = vec![0; content.len() + 1024];
        device.read(&mut found, 0).unwrap();
        assert!(found[..512] == [7; 512] && found[512 + content.len()..] == [7; 512]);
        assert!(found[512..512 + content.len()] == content);
    }
}
