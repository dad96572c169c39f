//! Sizes in the configuration: a number of bytes, or text with a unit.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

/// What a unit stands for.
const UNITS: [(&str, u64); 9] = [
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("B", 1),
];

/// A number of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Written)
    }
}

struct Written;

impl Visitor<'_> for Written {
    type Value = Bytes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size")
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<Bytes, E> {
        let bytes = u64::try_from(bytes);
        bytes
            .map(Bytes)
            .map_err(|_| E::custom("must not be negative"))
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<Bytes, E> {
        Ok(Bytes(bytes))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
        parse(text).map(Bytes).ok_or_else(|| {
            let units = UNITS.map(|(unit, _)| unit).join(", ");
            E::custom(format!(
                "must be a whole number of bytes, or text such as \"50GB\" or \"500 MiB\" with one of the \
                 units {units}"
            ))
        })
    }
}

fn parse(text: &str) -> Option<u64> {
    let unit = UNITS.iter().find(|(unit, _)| text.ends_with(unit));
    let (number, scale) = match unit {
        Some((unit, scale)) => (text.strip_suffix(unit)?.trim_end(), *scale),
        None => (text, 1),
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(())?;
    number.parse::<u64>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("50GB", Some(50_000_000_000)),
            ("500 MiB", Some(500 << 20)),
            ("1TiB", Some(1 << 40)),
            ("7B", Some(7)),
            ("12kB", Some(12_000)),
            ("", None),
            ("GB", None),
            ("-1", None),
            ("+1", None),
            ("1.5GB", None),
            ("50gb", None),
            ("50G", None),
            ("99999999999TB", None),
        ] {
            assert_eq!(parse(text), bytes, "{text:?}");
        }
    }
}
