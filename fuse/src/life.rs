//! How others learn at once that this process was killed.

use std::io;
use std::os::fd::OwnedFd;

use crate::sys::spawn_with_only;

/// Has `end`, of a pipe or a pair of sockets, closed as soon as this process is killed: a thread has it that does
/// nothing, and nobody else. It is the first to die, while others still wait for a processor or for the kernel, and
/// hold what all have.
pub(crate) fn close_with_life(end: OwnedFd) -> io::Result<()> {
    spawn_with_only("larder-alive", end, |_end| {
        loop {
            std::thread::park();
        }
    })
}
