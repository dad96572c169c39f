//! The limits of the format, each with the reason for its value.

/// EROFS block and tar record size, bytes. Tar data starts at multiples of 512, so an EROFS image
/// with blocks of this size can address it where it lies.
pub const BLOCK: u64 = 512;

/// Largest tar, bytes: EROFS addresses device blocks with 32 bits, and 2^32 × 512 B = 2 TiB. The
/// metadata image takes the lowest addresses of the same space, hence the subtraction: twice what it may have.
pub const TAR_BYTES_MAX: u64 = (1 << 32) * BLOCK - (256 << 20);

/// Largest uncompressed chunk, bytes. It bounds what one read must fetch and decompress, and the
/// memory of one verification; runs of zeros are the only chunks that come near it by default.
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;

/// Smallest chunk size that may be asked for, bytes: below it, the two digests of a chunk cost
/// more than one part in a thousand of the layer.
pub const CHUNK_TARGET_MIN: u32 = 64 << 10;

/// Default chunk size, bytes: a Python start touches 32 MB of compressed bytes at 256 KiB against
/// 30 at 128 KiB and 42 at 1 MiB; the image is 0.965 of its gzip original against 0.985 and 0.948
/// (`docs/adr/0003-level-and-chunk-size.md`).
pub const CHUNK_TARGET_DEFAULT: u32 = 256 << 10;

/// Largest stored frame of a chunk, bytes: zstd's own bound for incompressible input is
/// `n + n/256 + 64`, rounded up generously for [`CHUNK_BYTES_MAX`].
pub const FRAME_BYTES_MAX: u32 = CHUNK_BYTES_MAX + (CHUNK_BYTES_MAX >> 7);

/// Largest decoded index, bytes: [`ENTRIES_MAX`] files at 110 B each, and the chunk table of 50 GB; or that of
/// 400 GB alone. A node has it in memory once while it decodes one.
pub const INDEX_BYTES_MAX: u64 = 128 << 20;

/// Largest stored (compressed) index, bytes. An index that does not compress at all is not one
/// of ours, but it must still fit a skippable frame, whose length has 32 bits.
pub const INDEX_STORED_BYTES_MAX: u64 = INDEX_BYTES_MAX;

/// Sections an index may have: ours has four; the rest is room for compatible additions.
pub const SECTIONS_MAX: usize = 16;

/// Entries a tree may have, hard links included, the root not. The largest images there are have a million
/// in all their layers. A tree of a tar takes about 190 bytes for each entry: of a layer at this limit the
/// converter had 397 MB at the peak, and comparing the tree of its tar with that of its index, as the proof on
/// a node does, 465 MB (resident, measured).
pub const ENTRIES_MAX: usize = 1 << 20;

/// Most layers one merged image may have: what overlayfs can stack, so what containers could have anyway.
pub const MERGED_LAYERS_MAX: usize = 500;

/// Longest name of one directory entry, bytes: Linux NAME_MAX, and EROFS's own limit.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest path, and longest symlink target, bytes: Linux PATH_MAX without the final NUL.
pub const PATH_BYTES_MAX: usize = 4095;

/// Longest value of one extended attribute that a tar may have, bytes: Linux XATTR_SIZE_MAX. An index
/// holds one byte less, 65,535: EROFS counts with 16 bits, and the writer refuses the longest one.
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;

/// Longest name of one extended attribute with its prefix, bytes: Linux XATTR_NAME_MAX.
pub const XATTR_NAME_BYTES_MAX: usize = 255;

/// Deepest directory: PATH_BYTES_MAX bytes of one-letter names and slashes.
pub const DEPTH_MAX: usize = PATH_BYTES_MAX / 2 + 1;

/// Longest PAX records, GNU long name or sparse map of one member, bytes: what Go's reader and
/// libarchive accept.
pub const TAR_RECORDS_BYTES_MAX: u64 = 1 << 20;

/// Most bytes that one member's headers and records take together: one set of PAX records, a long
/// name and a long link at their limits, and their headers, rounded up. It bounds how far behind
/// the scan a cut can lie.
pub const TAR_MEMBER_HEADERS_BYTES_MAX: u64 = 4 << 20;

/// Smallest payload that has chunks of its own, bytes. Below it, the second frame and its two
/// digests cost more than refetching the payload when its header changes.
pub const PAYLOAD_CHUNK_MIN: u64 = 64 << 10;
