//! The size of a page.

/// What pages have where the system does not say.
const USUAL: u64 = 4096;

/// Bytes of a page of memory, the unit in which the kernel reads files: 4 KiB on most machines, up to
/// 64 KiB on others.
pub(crate) fn page_size() -> u64 {
    // SAFETY: a plain number in, a number out.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(USUAL)
}
