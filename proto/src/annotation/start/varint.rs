//! Numbers of seven bits a byte, the lowest first, the last byte below 128; in their shortest form only.

use super::StartError;

/// Bytes of the longest number: five of seven bits hold the 33 that a difference of two chunks can have.
const BYTES_MAX: u32 = 5;

pub(super) fn write(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7f) as u8);
}

/// The next number; `None` at the end.
pub(super) fn read(bytes: &mut &[u8]) -> Result<Option<u64>, StartError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut value = 0;
    for place in 0..BYTES_MAX {
        let Some((&byte, rest)) = bytes.split_first() else {
            return Err(StartError("ends inside a number"));
        };
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * place);
        match byte {
            0 if place > 0 => {
                return Err(StartError("has a number that is not in its shortest form"));
            }
            0..0x80 => return Ok(Some(value)),
            0x80.. => {}
        }
    }
    Err(StartError("has a number that is too long"))
}

/// Small numbers of either sign as small numbers.
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}
