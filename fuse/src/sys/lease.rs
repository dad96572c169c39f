//! Whether anybody else has a file open.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Sets the signal for whoever holds a lease; the same number on all architectures we build for.
const F_SETSIG: libc::c_int = 10;

/// Whether somebody but the holder of `file`, who may read and write it, has it open. The kernel's own mounts count,
/// which no table shows any more when they were detached.
///
/// It is found by asking for a lease, which only who is alone gets. Whoever opens the file in the moment until it is
/// given back waits for that, and we are sent a signal: one that is ignored.
pub(crate) fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    let asked = |what, argument: i32| {
        // SAFETY: the descriptor is open for the length of the call, which takes numbers alone.
        match unsafe { libc::fcntl(file.as_raw_fd(), what, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    asked(F_SETSIG, libc::SIGURG)?;
    match asked(libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => {
            asked(libc::F_SETLEASE, libc::F_UNLCK)?;
            Ok(false)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_reads_or_writes_the_file_is_noticed() {
        let ours = tempfile::NamedTempFile::new().unwrap();
        let is_open = || is_open_elsewhere(ours.as_file()).unwrap();
        assert!(!is_open());
        let reader = File::open(ours.path()).unwrap();
        assert!(is_open());
        drop(reader);
        assert!(!is_open());
        let writer = File::options().write(true).open(ours.path()).unwrap();
        assert!(is_open());
        drop(writer);
        let same = ours.as_file().try_clone().unwrap();
        assert!(!is_open());
        drop(same);
    }
}
