//! Work that enters a FUSE session of our own.
//!
//! If the daemon is killed while such a thread waits for an answer, the kernel lets it wait until the
//! next daemon gives one, and with it whatever it holds. It holds nothing here, so that the next
//! daemon finds sockets, locks and the database free.

use crate::sys::leave_descriptors;

/// Does `work` on a thread without the descriptors of the process, and waits for it. What it opens
/// it has to close; what others opened it must neither use nor drop.
pub(crate) fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let done = scope.spawn(|| {
            // Kernels before 5.9 cannot: the next daemon then waits a moment longer.
            let _ = leave_descriptors();
            work()
        });
        match done.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
