//! The few fields of ELF files that say what a program needs: pure functions over pieces of the file.
//!
//! The file is not read whole, so its caller reads what each step asks for. Every length that comes from
//! the file is held against a limit before anybody reads so much.

use std::ops::Range;

/// Bytes from a file's beginning that hold the header, and in nearly all files the program headers.
pub(super) const HEAD_BYTES: u64 = 4096;

/// Most program headers that are looked at; linkers write 8 to 15.
const SEGMENTS_MAX: usize = 128;

/// Largest dynamic section that is read, bytes: 4,096 entries; the largest programs have 60.
pub(super) const DYNAMIC_BYTES_MAX: u64 = 64 << 10;

/// Libraries that one file may need; browsers need about 60.
pub(super) const NEEDED_MAX: usize = 256;

/// How numbers are written in a file, and for which processor it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    is_wide: bool,
    is_little: bool,
    machine: u16,
}

/// The header of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    /// A library has the same as whoever needs it.
    pub(super) form: Form,
    /// Address of the first instruction; 0 in most libraries.
    pub(super) entry: u64,
    /// Where the program headers are.
    pub(super) table: Range<u64>,
}

/// What a segment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// It is mapped.
    Load {
        /// And written to.
        is_writable: bool,
    },
    /// It is the dynamic section.
    Dynamic,
    /// It names the interpreter.
    Interpreter,
}

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) kind: Kind,
    address: u64,
    /// Where it is in the file.
    pub(super) file: Range<u64>,
}

/// What the dynamic section says; names are offsets into the strings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Dynamic {
    pub(super) needed: Vec<u64>,
    pub(super) rpath: Option<u64>,
    pub(super) runpath: Option<u64>,
    /// Address of the strings.
    pub(super) strings: Option<u64>,
}

/// The header at the beginning of `head`, if this is an ELF program or library.
pub(super) fn header(head: &[u8]) -> Option<Header> {
    let (class, data) = (*head.get(4)?, *head.get(5)?);
    let form = Form {
        is_wide: class == 2,
        is_little: data == 1,
        machine: 0,
    };
    let is_elf = head.starts_with(b"\x7fELF") && matches!((class, data), (1 | 2, 1 | 2));
    let machine = form.number(head, 18, 2)?.try_into().ok()?;
    let form = Form { machine, ..form };
    let (table, row, count) = if form.is_wide {
        (form.number(head, 32, 8)?, 54, 56)
    } else {
        (form.number(head, 28, 4)?, 42, 44)
    };
    let (row, count) = (form.number(head, row, 2)?, form.number(head, count, 2)?);
    // Executables and shared objects; others are not started.
    let is_loadable = matches!(form.number(head, 16, 2)?, 2 | 3);
    let count = usize::try_from(count).ok()?;
    let fits = row == form.row() as u64 && count <= SEGMENTS_MAX;
    (is_elf && is_loadable && fits).then_some(Header {
        form,
        entry: form.number(head, 24, form.word())?,
        table: table..table.checked_add(row * count as u64)?,
    })
}

impl Form {
    fn word(self) -> usize {
        if self.is_wide { 8 } else { 4 }
    }

    /// Bytes of a program header.
    fn row(self) -> usize {
        if self.is_wide { 56 } else { 32 }
    }

    fn number(self, bytes: &[u8], at: usize, len: usize) -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(len)?)?;
        let add = |sum: u64, &byte: &u8| sum << 8 | u64::from(byte);
        Some(if self.is_little {
            bytes.iter().rev().fold(0, add)
        } else {
            bytes.iter().fold(0, add)
        })
    }

    /// The segments in a table of program headers, those of no interest left out.
    pub(super) fn segments(self, table: &[u8]) -> Vec<Segment> {
        let rows = table.chunks_exact(self.row());
        rows.take(SEGMENTS_MAX)
            .filter_map(|row| self.segment(row))
            .collect()
    }

    fn segment(self, row: &[u8]) -> Option<Segment> {
        let (flags, offset, address, len) = if self.is_wide {
            (4, 8, 16, 32)
        } else {
            (24, 4, 8, 16)
        };
        let word = |at| self.number(row, at, self.word());
        let kind = match self.number(row, 0, 4)? {
            1 => Kind::Load {
                is_writable: self.number(row, flags, 4)? & 2 != 0,
            },
            2 => Kind::Dynamic,
            3 => Kind::Interpreter,
            _ => return None,
        };
        let offset = word(offset)?;
        Some(Segment {
            kind,
            address: word(address)?,
            file: offset..offset.checked_add(word(len)?)?,
        })
    }

    /// What a dynamic section says.
    pub(super) fn dynamic(self, section: &[u8]) -> Dynamic {
        let mut found = Dynamic::default();
        for entry in section.chunks_exact(2 * self.word()) {
            let (Some(tag), Some(value)) = (
                self.number(entry, 0, self.word()),
                self.number(entry, self.word(), self.word()),
            ) else {
                break;
            };
            match tag {
                0 => break,
                1 if found.needed.len() < NEEDED_MAX => found.needed.push(value),
                5 => found.strings = Some(value),
                15 => found.rpath = Some(value),
                29 => found.runpath = Some(value),
                _ => {}
            }
        }
        found
    }
}

/// Where in the file an address is.
pub(super) fn place(segments: &[Segment], address: u64) -> Option<u64> {
    segments.iter().find_map(|segment| {
        let within = address.checked_sub(segment.address)?;
        let at = segment.file.start.checked_add(within)?;
        let is_loaded = matches!(segment.kind, Kind::Load { .. });
        (is_loaded && at < segment.file.end).then_some(at)
    })
}

/// The text at the beginning of `bytes`, up to its zero.
pub(super) fn text(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some(&bytes[..end])
}

#[cfg(test)]
mod tests;
