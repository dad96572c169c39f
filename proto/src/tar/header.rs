//! One 512-byte tar header.

use super::TarError;
use super::number::{Time, field, is_base256, octal, until_nul};

/// Bytes of a header, and the unit of everything in a tar.
pub(super) const BLOCK: usize = 512;

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// A regular file.
    Regular,
    /// Another name of an earlier member.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// PAX records meant for all later members. Go's reader hands them out as a member of their
    /// own and applies them to nothing.
    GlobalRecords,
    /// Any other type flag, for example `S`, an old GNU sparse file.
    Other(u8),
}

impl Type {
    /// Whether members of this type have no payload, whatever their size says.
    pub fn is_header_only(self) -> bool {
        matches!(
            self,
            Self::HardLink
                | Self::Symlink
                | Self::CharDevice
                | Self::BlockDevice
                | Self::Directory
                | Self::Fifo
        )
    }
}

/// Fields of a header that later steps need.
#[derive(Debug, Clone, Default)]
pub(super) struct Header {
    pub(super) type_flag: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: i64,
    /// Whether `size` could state more than 8 GiB.
    pub(super) size_is_base256: bool,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) mtime: Time,
    pub(super) device_major: i64,
    pub(super) device_minor: i64,
}

#[derive(PartialEq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// Reads a header that lies at `at` in the tar.
pub(super) fn parse(block: &[u8; BLOCK], at: u64) -> Result<Header, TarError> {
    if !checksum_matches(block) {
        return Err(match at {
            0 => TarError::NotATar,
            _ => TarError::NotAHeader { at },
        });
    }
    let number = |what: &'static str, from: usize, len: usize| {
        field(&block[from..from + len]).ok_or(TarError::Number { field: what, at })
    };
    let mut header = Header {
        type_flag: block[156],
        name: until_nul(&block[..100]).to_vec(),
        link: until_nul(&block[157..257]).to_vec(),
        size: number("size", 124, 12)?,
        size_is_base256: is_base256(&block[124..136]),
        mode: number("mode", 100, 8)?,
        uid: number("owner", 108, 8)?,
        gid: number("group", 116, 8)?,
        mtime: Time {
            seconds: number("modification time", 136, 12)?,
            nanoseconds: 0,
        },
        device_major: 0,
        device_minor: 0,
    };
    let format = format(block);
    if format == Format::V7 {
        return Ok(header);
    }
    header.device_major = number("device number", 329, 8)?;
    header.device_minor = number("device number", 337, 8)?;
    let prefix = match format {
        Format::V7 => &[],
        Format::Ustar => until_nul(&block[345..500]),
        Format::Star => {
            number("access time", 476, 12)?;
            number("change time", 488, 12)?;
            until_nul(&block[345..476])
        }
        Format::Gnu => prefix_of_old_go_writers(block),
    };
    if !prefix.is_empty() {
        header.name = [prefix, b"/", &header.name].concat();
    }
    Ok(header)
}

/// Go before 1.8 wrote a ustar prefix into GNU headers, where access and change time belong. Its
/// reader takes the bytes for a prefix if they are ASCII and not two times; so do we.
fn prefix_of_old_go_writers(block: &[u8; BLOCK]) -> &[u8] {
    let is_time = |bytes: &[u8]| bytes[0] == 0 || field(bytes).is_some();
    let prefix = until_nul(&block[345..500]);
    if is_time(&block[345..357]) && is_time(&block[357..369]) || !prefix.is_ascii() {
        &[]
    } else {
        prefix
    }
}

fn format(block: &[u8; BLOCK]) -> Format {
    match &block[257..265] {
        [b'u', b's', b't', b'a', b'r', 0, _, _] if &block[508..] == b"tar\0" => Format::Star,
        [b'u', b's', b't', b'a', b'r', 0, _, _] => Format::Ustar,
        b"ustar  \0" => Format::Gnu,
        _ => Format::V7,
    }
}

/// Whether the checksum is the sum of all bytes, taken as unsigned or, as old writers did, as
/// signed ones; the field itself counts as spaces.
fn checksum_matches(block: &[u8; BLOCK]) -> bool {
    let Some(stated) = octal(&block[148..156]) else {
        return false;
    };
    let sum = |bytes: &[u8]| bytes.iter().map(|&b| i64::from(b)).sum::<i64>();
    let high = |bytes: &[u8]| bytes.iter().map(|&b| i64::from(b >> 7)).sum::<i64>();
    let (before, after) = (&block[..148], &block[156..]);
    let unsigned = sum(before) + sum(after) + 8 * i64::from(b' ');
    let signed = unsigned - 256 * (high(before) + high(after));
    stated == unsigned || stated == signed
}
