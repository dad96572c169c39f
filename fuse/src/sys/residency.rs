//! Which pages of a file the kernel has in memory.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use super::page_size;

/// Pages that one call asks about, on the stack: a read has 32 of them in most cases, a chunk up to a few
/// hundred.
const PAGES_AT_ONCE: usize = 64;

/// Addresses for the pages of a file, by which the kernel is asked for them. They cannot be read, so whatever becomes of
/// the file nobody is killed for it; and to ask brings nothing into memory.
#[derive(Debug)]
pub(crate) struct Residency {
    start: NonNull<u8>,
    len: u64,
    page: u64,
}

impl Residency {
    /// Of the first `len` bytes of `file`.
    pub(crate) fn of(file: &File, len: u64) -> io::Result<Self> {
        let wanted = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address the kernel chooses disturbs no memory of ours; the
        // descriptor is open for the length of the call and the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                wanted,
                libc::PROT_NONE,
                libc::MAP_PRIVATE,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        let page = page_size();
        Ok(Self { start, len, page })
    }

    /// Whether the kernel has all of `range` in memory. A place that was never written, or taken away, it has not
    /// until somebody reads it.
    pub(crate) fn has(&self, range: Range<u64>) -> bool {
        if range.end > self.len {
            return false;
        }
        let pages = range.start / self.page..range.end.div_ceil(self.page);
        let mut at = pages.start;
        while at < pages.end {
            let count = (pages.end - at).min(PAGES_AT_ONCE as u64);
            if !self.has_pages(at, count) {
                return false;
            }
            at += count;
        }
        true
    }

    /// Of `count` pages, not more than are asked for at once, from `first` on, all in the mapping.
    fn has_pages(&self, first: u64, count: u64) -> bool {
        let sizes = (
            usize::try_from(first * self.page),
            usize::try_from(count * self.page),
            usize::try_from(count),
        );
        let (Ok(offset), Ok(len), Ok(count)) = sizes else {
            return false;
        };
        let mut found = [0_u8; PAGES_AT_ONCE];
        let Some(found) = found.get_mut(..count) else {
            return false;
        };
        // SAFETY: the kernel is given addresses within the mapping, which it does not read, and a byte to write
        // for each of their pages.
        let asked = unsafe {
            let start = self.start.as_ptr().wrapping_add(offset);
            libc::mincore(start.cast(), len, found.as_mut_ptr())
        };
        asked == 0 && found.iter().all(|page| page & 1 != 0)
    }
}

impl Drop for Residency {
    fn drop(&mut self) {
        if let Ok(len) = usize::try_from(self.len) {
            // SAFETY: the mapping is ours alone, and nobody has a reference into it.
            unsafe { libc::munmap(self.start.as_ptr().cast(), len) };
        }
    }
}

// SAFETY: addresses that are never read or written, valid in every thread of the process.
unsafe impl Send for Residency {}
// SAFETY: as above.
unsafe impl Sync for Residency {}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::os::unix::fs::FileExt;

    use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;

    const PAGE: u64 = 65536;

    fn read(file: &File, offset: u64) -> usize {
        let mut bytes = [1; 16];
        let mut bytes = [IoSliceMut::new(&mut bytes)];
        preadv2(file, &mut bytes, offset, ReadWriteFlags::NOWAIT).unwrap_or(0)
    }

    /// Promise: a hole, a place that was taken away and one behind the end are not in memory. A read that waits for
    /// nothing answers a hole with zeros all the same, which is why it is not asked.
    #[test]
    fn holes_are_not_in_memory_until_they_are_read() {
        // Where the sources lie is a file system that has its pages in memory only when they were read.
        let place = std::env::current_dir().unwrap();
        let file = tempfile::tempfile_in(place).unwrap();
        let len = 70 * PAGE;
        file.set_len(len).unwrap();
        let residency = Residency::of(&file, len).unwrap();
        assert!(!residency.has(0..16));
        assert_eq!(read(&file, 0), 16, "zeros that nobody looked at");
        assert!(residency.has(0..16), "they are there now");

        file.write_all_at(&vec![7; usize::try_from(len).unwrap()], 0)
            .unwrap();
        assert!(residency.has(0..len) && residency.has(len - 1..len));
        assert!(!residency.has(len - 1..len + 1));

        // Until it is written, a hole in it may stay in memory as zeros.
        file.sync_all().unwrap();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&file, flags, 66 * PAGE, PAGE).unwrap();
        assert!(!residency.has(0..len) && residency.has(0..66 * PAGE));
        assert!(residency.has(67 * PAGE..len));

        file.set_len(2 * PAGE).unwrap();
        assert!(residency.has(0..2 * PAGE) && !residency.has(2 * PAGE..3 * PAGE));
        assert_eq!(read(&file, 2 * PAGE), 0);
        file.set_len(len).unwrap();
        assert!(!residency.has(2 * PAGE..2 * PAGE + 1));

        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert!(!residency.has(0..1));
    }
}
