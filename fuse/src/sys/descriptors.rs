//! A table of descriptors of a thread's own.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc::sync_channel;

/// The first descriptor after standard input, output and error.
const FIRST: libc::c_uint = 3;

/// Gives the calling thread a table of descriptors of its own, with nothing but the standard ones.
///
/// For a thread that enters a FUSE session of its own process: if the process is killed while it
/// waits for an answer, the kernel lets it wait on, and a descriptor it had would keep the
/// session from ending. From here on the thread must not use or drop what has a descriptor from
/// before. Fails on kernels before 5.9.
pub(crate) fn leave_descriptors() -> io::Result<()> {
    own_table()?;
    close(FIRST, libc::c_uint::MAX)
}

/// Starts a thread called `name` that has `descriptor` and the standard ones alone, and does `work`
/// with it. Where the kernel cannot do that (before 5.9) the thread has all of them.
pub(crate) fn spawn_with_only(
    name: &str,
    descriptor: OwnedFd,
    work: impl FnOnce(OwnedFd) + Send + 'static,
) -> io::Result<()> {
    let raw = descriptor.as_raw_fd();
    let (tell, told) = sync_channel(1);
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(move || {
        let is_alone = leave_descriptors_but(raw).is_ok();
        // SAFETY: `raw` is open in this thread's table. Either that is another table than the
        // spawner's, and nothing else in it owns the number; or the spawner, told by `false`, forgets
        // its own.
        let mine = unsafe { OwnedFd::from_raw_fd(raw) };
        let _ = tell.send(is_alone);
        work(mine);
    })?;
    // Until the thread has its own, this one must stay open.
    match told.recv() {
        Ok(false) => std::mem::forget(descriptor),
        Ok(true) | Err(_) => drop(descriptor),
    }
    Ok(())
}

fn leave_descriptors_but(raw: RawFd) -> io::Result<()> {
    let raw = libc::c_uint::try_from(raw).map_err(io::Error::other)?;
    // Asked first, as the table cannot be shared again: an empty range closes nothing.
    close(libc::c_uint::MAX, libc::c_uint::MAX)?;
    own_table()?;
    if raw > FIRST {
        close(FIRST, raw - 1)?;
    }
    close(raw.max(FIRST - 1) + 1, libc::c_uint::MAX)
}

fn own_table() -> io::Result<()> {
    // SAFETY: plain numbers in, a number out; the memory of the process stays shared.
    if unsafe { libc::unshare(libc::CLONE_FILES) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes the descriptors `first..=last` of a table that is the calling thread's alone.
fn close(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: plain numbers in, a number out. The table is this thread's alone, by the callers, so no
    // descriptor of another thread is closed; no table has a descriptor `u32::MAX`.
    if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn open() -> usize {
        std::fs::read_dir("/proc/thread-self/fd").unwrap().count()
    }

    #[test]
    fn a_thread_without_descriptors_takes_them_from_nobody() {
        let (mut kept, mut writer) = std::io::pipe().unwrap();
        let inside = std::thread::spawn(|| leave_descriptors().map(|()| open()));
        // Standard ones, and the one that lists them.
        assert!(inside.join().unwrap().unwrap() <= 4);
        writer.write_all(b"x").unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap(), 1);
    }

    #[test]
    fn a_thread_has_its_descriptor_when_everybody_else_closed_it() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        spawn_with_only("test", writer.into(), |writer| {
            // Standard ones, its own, and the one that lists them.
            let few = open() <= 5;
            let said: &[u8] = if few { b"alone" } else { b"not alone" };
            std::fs::File::from(writer).write_all(said).unwrap();
        })
        .unwrap();
        let mut said = String::new();
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "alone");
    }
}
