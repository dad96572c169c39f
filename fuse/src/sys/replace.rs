//! A descriptor in the place of another.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the number of `place` stand for the file of `by`; the file it stood for is closed.
///
/// Whoever owns `place` goes on owning it, and uses the other file from now on.
pub(crate) fn replace(place: BorrowedFd<'_>, by: BorrowedFd<'_>) -> io::Result<()> {
    let (from, to) = (by.as_raw_fd(), place.as_raw_fd());
    // SAFETY: both numbers are open for the length of the call, so no number is taken from anybody:
    // `to` keeps its owner, who only ever uses it as a descriptor and closes it once.
    if unsafe { libc::dup3(from, to, libc::O_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};
    use std::os::fd::AsFd;

    #[test]
    fn the_owner_of_the_place_uses_the_other_file() {
        let mut place = tempfile::tempfile().unwrap();
        let mut by = tempfile::tempfile().unwrap();
        replace(place.as_fd(), by.as_fd()).unwrap();
        place.write_all(b"here").unwrap();
        by.rewind().unwrap();
        let mut text = String::new();
        by.read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
    }
}
