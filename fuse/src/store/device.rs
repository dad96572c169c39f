//! The device file of a layer: the tar, filled chunk by chunk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use larder_proto::index::Chunk;
use larder_proto::verified::Verified;

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
    file: File,
    disk: Arc<dyn Disk>,
}

impl Device {
    /// Takes `file`, and gives it the length of the tar, rounded up to whole blocks.
    pub(crate) fn new(file: File, disk: Arc<dyn Disk>, len: u64) -> io::Result<Self> {
        if file.metadata()?.len() != len {
            disk.set_len(&file, len)?;
        }
        Ok(Self { file, disk })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Writes the content of `chunk`, leaving out what is zero anyway.
    ///
    /// What a file never had written to it reads as zeros; [`Device::clear`] restores that where a
    /// chunk turned out damaged.
    pub(crate) fn write(&self, chunk: &Chunk, content: &Verified<Vec<u8>>) -> io::Result<()> {
        for run in data_runs(chunk.offset, content.as_slice()) {
            let bytes = &content.as_slice()[run.clone()];
            self.disk
                .write_at(&self.file, bytes, chunk.offset + run.start as u64)?;
        }
        Ok(())
    }

    /// Turns the place of a damaged chunk into a hole.
    pub(crate) fn clear(&self, chunk: &Chunk) -> io::Result<()> {
        self.disk.punch(&self.file, chunk.offset..chunk.end())
    }

    pub(crate) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(&self.file, bytes, offset)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.disk.sync_data(&self.file)
    }
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
    use super::*;

    #[test]
    fn only_blocks_with_data_are_written() {
        let mut content = vec![0; 20_000];
        assert_eq!(data_runs(512, &content), []);
        content[3583] = 1; // the last byte of the first block of the file
        content[3584] = 1; // the first byte of the second
        content[19_999] = 1;
        assert_eq!(data_runs(512, &content), [0..7680, 19_968..20_000]);
        assert_eq!(data_runs(0, &[1]).first(), Some(&(0..1)));
        assert_eq!(data_runs(7, &[]), []);
    }
}
