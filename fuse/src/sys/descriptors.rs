//! A table of descriptors of a thread's own.

use std::io;

/// The first descriptor after standard input, output and error.
const FIRST: libc::c_uint = 3;

/// Gives the calling thread a table of descriptors of its own, with nothing but the standard ones.
///
/// For a thread that enters a FUSE session of its own process: if the process is killed while it
/// waits for an answer, the kernel lets it wait on, and a descriptor it had would keep the
/// session from ending. From here on the thread must not use or drop what has a descriptor from
/// before. Fails on kernels before 5.9.
pub(crate) fn leave_descriptors() -> io::Result<()> {
    // SAFETY: plain numbers in, a number out; the memory of the process stays shared.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain numbers in, a number out. The table is this thread's alone since the call
    // above, so no descriptor of another thread is closed.
    if unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_without_descriptors_takes_them_from_nobody() {
        let (kept, _writer) = std::io::pipe().unwrap();
        let open = || std::fs::read_dir("/proc/thread-self/fd").unwrap().count();
        let before = open();
        let inside = std::thread::spawn(move || leave_descriptors().map(|()| open()));
        // Standard ones, and the one that lists them.
        assert!(inside.join().unwrap().unwrap() <= 4);
        assert_eq!(open(), before);
        drop(kept);
    }
}
