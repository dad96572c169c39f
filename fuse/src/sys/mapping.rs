//! Read-only mappings of whole files.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A file of the store, mapped read-only.
///
/// The store's directory is 0700 and locked by one daemon, and that daemon never shortens or
/// rewrites a file that it maps: it writes a new one and renames it. Hence the bytes behind the
/// mapping do not change, and no access goes beyond the end of the file.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// Maps all of `file`, and asks the kernel to read it ahead: it is about to be validated.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        if len == 0 {
            return Ok(Self {
                start: NonNull::dangling(),
                len,
            });
        }
        // SAFETY: a new mapping at an address the kernel chooses disturbs no memory of ours; the
        // descriptor is open for the length of the call and the result is checked.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `start..start + len` was mapped a moment ago. Advice may fail; nothing is lost.
        unsafe { libc::madvise(start, len, libc::MADV_WILLNEED) };
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(Self { start, len })
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `start` is either dangling with length 0, or a mapping of `len` readable bytes
        // that lives as long as `self`; nobody writes to them (see the type).
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len > 0 {
            // SAFETY: the mapping is ours alone and no slice of it outlives `self`.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        }
    }
}

// SAFETY: the mapping is immutable memory, valid in every thread of the process.
unsafe impl Send for Mapping {}
// SAFETY: as above; shared reads of immutable memory do not race.
unsafe impl Sync for Mapping {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_mapping_holds_the_bytes_of_its_file() {
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(Mapping::of(&file).unwrap().as_ref(), b"");
        file.write_all(&[7; 10_000]).unwrap();
        assert_eq!(Mapping::of(&file).unwrap().as_ref(), [7; 10_000]);
    }
}
