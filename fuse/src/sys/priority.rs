//! Scheduling of background threads.

/// Lowers the calling thread to the lowest ordinary priority, for work nobody waits for.
///
/// Failure leaves the thread as it was; the work is only less polite then.
pub(crate) fn lower_this_thread() {
    const LOWEST: libc::c_int = 19;
    // SAFETY: plain numbers in, a number out. On Linux, `who = 0` is the calling thread alone.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST) };
}
