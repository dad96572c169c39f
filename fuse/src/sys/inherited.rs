//! Descriptors this process was started with.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes the descriptor `raw`, which whoever started this process opened for it, and keeps programs
/// started from here from getting it, too.
///
/// Called once for each number, before this process opens anything.
pub(crate) fn inherited(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers in, a number out; a number that is no descriptor is an error.
    if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above found it open. It was opened by whoever started this process and told
    // by its number alone, so nothing in this process owns it; see the condition above.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn a_number_that_is_no_descriptor_is_an_error() {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        let raw = file.into_raw_fd();
        drop(inherited(raw).unwrap());
        assert!(inherited(RawFd::MAX).is_err());
    }
}
