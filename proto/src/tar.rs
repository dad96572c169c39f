//! Reads a tar as it arrives, without I/O and without copying file contents.
//!
//! The reader accepts what the `archive/tar` package of Go accepts, because containerd unpacks
//! with it: v7, ustar, GNU and star headers, PAX records, GNU long names, PAX sparse files. It is
//! stricter in one place: a PAX size that contradicts a size the header could state is an error,
//! because two readers would see two different archives.
//!
//! ```text
//! member = [PAX or GNU records]… header [payload] [padding to 512]
//! tar    = member… [zero block] [zero block] [anything]
//! ```

mod header;
mod number;
mod parser;
mod pax;
mod sparse;

pub use header::Type;
pub use number::Time;
pub use parser::{Event, Member, Parser};
pub use sparse::{MapReader, Segment, Sparse};

/// Why the bytes are not a tar that can be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// The first block is no header.
    #[error("this is not a tar archive: its first 512 bytes are not a tar header")]
    NotATar,
    /// A later block is no header.
    #[error("the 512 bytes at offset {at} should be a tar header, but the checksum does not match")]
    NotAHeader {
        /// Offset in the tar, bytes.
        at: u64,
    },
    /// A field of a header is not a number.
    #[error("the {field} in the header at offset {at} is not a number")]
    Number {
        /// What the field states.
        field: &'static str,
        /// Offset of the header in the tar, bytes.
        at: u64,
    },
    /// The size of a payload is negative.
    #[error("the size in the header at offset {at} is negative")]
    NegativeSize {
        /// Offset of the header in the tar, bytes.
        at: u64,
    },
    /// One zero block, then something that is not zero.
    #[error("the zero block at offset {at} is not followed by a second one")]
    LoneZeroBlock {
        /// Offset in the tar, bytes.
        at: u64,
    },
    /// The tar is cut off.
    #[error("the tar is truncated: it ends at offset {at}, inside {what}")]
    Truncated {
        /// Length of what there is, bytes.
        at: u64,
        /// What is incomplete.
        what: &'static str,
    },
    /// PAX records or a long name larger than [`crate::limits::TAR_RECORDS_BYTES_MAX`].
    #[error("{len} bytes of {what} are more than the {max} that are allowed")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length, bytes.
        len: u64,
        /// The limit, bytes.
        max: u64,
    },
    /// A PAX record breaks the grammar.
    #[error("the PAX records at offset {at} are malformed")]
    PaxRecord {
        /// Offset of their header in the tar, bytes.
        at: u64,
    },
    /// The value of a PAX record is not what its key demands.
    #[error("the PAX record {key}={value:?} is not a number")]
    PaxNumber {
        /// Key of the record.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// The two sizes of a payload differ.
    #[error("the PAX size {pax} contradicts the size {header} in the header")]
    SizeContradiction {
        /// Size in the PAX records, bytes.
        pax: u64,
        /// Size in the header, bytes.
        header: u64,
    },
    /// The map of a sparse file is wrong.
    #[error("the map of the sparse file is malformed: {0}")]
    SparseMap(&'static str),
}

#[cfg(test)]
mod tests;
