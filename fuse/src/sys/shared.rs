//! Memory that two processes share, one after the other.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, memfd_create};

/// Numbers in memory that lives as long as any process has its descriptor. All zero at first; pages
/// that nobody wrote to take no memory.
#[derive(Debug)]
pub(crate) struct SharedNumbers {
    file: Arc<File>,
    start: NonNull<AtomicU64>,
    len: usize,
}

impl SharedNumbers {
    /// New memory for `len` numbers, all zero; `name` is for people who look.
    pub(crate) fn new(name: &str, len: usize) -> io::Result<Self> {
        let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.set_len(len as u64 * size_of::<AtomicU64>() as u64)?;
        Self::of(file, len)
    }

    /// Memory that another process made for `len` numbers or more.
    pub(crate) fn of(file: File, len: usize) -> io::Result<Self> {
        Self::part(&Arc::new(file), 0, len)
    }

    /// The `len` numbers of `file` that begin at byte `at`, a multiple of the page.
    pub(crate) fn part(file: &Arc<File>, at: u64, len: usize) -> io::Result<Self> {
        let bytes = len * size_of::<AtomicU64>();
        let end = at.checked_add(bytes as u64);
        let there = file.metadata()?.len();
        if len == 0 || end.is_none_or(|end| there < end) {
            return Err(io::Error::other("the shared memory is too short"));
        }
        let place = libc::off_t::try_from(at).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address the kernel chooses disturbs no memory of ours; the
        // descriptor is open for the length of the call and the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                place,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        let file = Arc::clone(file);
        Ok(Self { file, start, len })
    }

    /// All of them.
    pub(crate) fn numbers(&self) -> &[AtomicU64] {
        // SAFETY: `start` is a mapping of `len` numbers, aligned to a page, that lives as long as
        // `self`; any bits are a number; whoever else has it mapped changes it atomically, too.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsFd for SharedNumbers {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedNumbers {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: the mapping is ours alone and no slice of it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
    }
}

// SAFETY: the mapping is memory of atomic numbers, valid in every thread of the process.
unsafe impl Send for SharedNumbers {}
// SAFETY: as above; atomic numbers may be used from several threads.
unsafe impl Sync for SharedNumbers {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn numbers_stay_when_their_first_user_is_gone() {
        let first = SharedNumbers::new("test", 1 << 30).unwrap();
        first.numbers()[1 << 29].fetch_add(3, Ordering::Relaxed);
        let descriptor = first.as_fd().try_clone_to_owned().unwrap();
        drop(first);
        let second = SharedNumbers::of(File::from(descriptor), 1 << 30).unwrap();
        assert_eq!(second.numbers()[1 << 29].load(Ordering::Relaxed), 3);
        let file = Arc::new(File::from(second.as_fd().try_clone_to_owned().unwrap()));
        let part = SharedNumbers::part(&file, 8 << 29, 512).unwrap();
        assert_eq!(part.numbers()[0].load(Ordering::Relaxed), 3);
        let beyond = [(0, (1 << 30) + 1), (8 << 30, 1), (u64::MAX - 7, 1)];
        for (at, len) in beyond {
            assert!(SharedNumbers::part(&file, at, len).is_err(), "{at}");
        }
    }
}
