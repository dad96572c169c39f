//! Memory that was freed and that the allocator keeps.

/// Gives pages of freed memory back to the system, of all threads' heaps; a few milliseconds.
pub(crate) fn give_back_freed() {
    // SAFETY: a number in, a number out. glibc takes the locks of its heaps itself, so other threads may
    // allocate meanwhile.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}
