//! Which chunks a start reads, and when.

/// Most accesses that are kept of one layer: a start that reads more is no start, it reads everything.
/// 64 Ki chunks of 256 KiB are 16 GiB; in memory they are 1 MiB.
pub const ACCESSES_MAX: usize = 64 << 10;

/// That a chunk was read for the first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access {
    /// Microseconds since the image's start; orders the accesses of all layers of an image.
    pub micros: u64,
    /// The chunk's place in its layer's chunk table.
    pub chunk: u32,
}
