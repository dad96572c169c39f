//! PAX extended header records.

use std::collections::BTreeMap;

use super::TarError;
use super::number::{Time, decimal, time};

/// The records that matter, as text; a later record with the same key replaces an earlier one.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    /// Values of the known keys; an empty value means "as the header says", so it is kept apart
    /// from an absent one only until the records are complete.
    known: BTreeMap<&'static str, Vec<u8>>,
    /// Extended attributes by name; an empty value is an attribute with an empty value.
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Keys with a meaning here. Access and change time are only checked.
const KNOWN: [&str; 14] = [
    "path",
    "linkpath",
    "uid",
    "gid",
    "size",
    "mtime",
    "atime",
    "ctime",
    "GNU.sparse.major",
    "GNU.sparse.minor",
    "GNU.sparse.name",
    "GNU.sparse.size",
    "GNU.sparse.realsize",
    "GNU.sparse.numblocks",
];
const MAP: &str = "GNU.sparse.map";

impl Records {
    /// Reads the records whose header lies at `at` in the tar.
    pub(super) fn parse(mut text: &[u8], at: u64) -> Result<Self, TarError> {
        let mut records = Self::default();
        // Sparse format 0.0 repeats two keys per segment; 0.1 lists the same numbers in one value.
        let mut map_parts = 0usize;
        let mut map = Vec::new();
        while !text.is_empty() {
            let (key, value, rest) = record(text).ok_or(TarError::PaxRecord { at })?;
            text = rest;
            match key {
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    let expected: &[u8] = match map_parts % 2 {
                        0 => b"GNU.sparse.offset",
                        _ => b"GNU.sparse.numbytes",
                    };
                    if key != expected || value.contains(&b',') {
                        return Err(TarError::PaxRecord { at });
                    }
                    if map_parts > 0 {
                        map.push(b',');
                    }
                    map.extend_from_slice(value);
                    map_parts += 1;
                }
                _ => records.insert(key, value),
            }
        }
        if map_parts > 0 {
            records.known.insert(MAP, map);
        }
        Ok(records)
    }

    fn insert(&mut self, key: &[u8], value: &[u8]) {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.insert(name.to_vec(), value.to_vec());
        } else if let Some(known) = KNOWN
            .iter()
            .chain([&MAP])
            .find(|known| known.as_bytes() == key)
        {
            self.known.insert(known, value.to_vec());
        }
    }

    /// The value of `key`, unless it is absent or empty.
    pub(super) fn get(&self, key: &'static str) -> Option<&[u8]> {
        self.known
            .get(key)
            .map(Vec::as_slice)
            .filter(|value| !value.is_empty())
    }

    /// The value of `key` as a decimal number.
    pub(super) fn number(&self, key: &'static str) -> Result<Option<i64>, TarError> {
        self.get(key)
            .map(|value| decimal(value).ok_or_else(|| not_a_number(key, value)))
            .transpose()
    }

    /// The modification time; the other two times are checked, as Go's reader does.
    pub(super) fn mtime(&self) -> Result<Option<Time>, TarError> {
        let read = |key| {
            self.get(key)
                .map(|value| time(value).ok_or_else(|| not_a_number(key, value)))
                .transpose()
        };
        read("atime")?;
        read("ctime")?;
        read("mtime")
    }

    /// The list of segments in format 0.0 or 0.1.
    pub(super) fn sparse_map(&self) -> Option<&[u8]> {
        self.get(MAP)
    }
}

fn not_a_number(key: &'static str, value: &[u8]) -> TarError {
    // A megabyte of garbage helps nobody.
    let shown = &value[..value.len().min(40)];
    TarError::PaxNumber {
        key,
        value: String::from_utf8_lossy(shown).into_owned(),
    }
}

/// Splits `LENGTH SPACE KEY = VALUE NEWLINE` off the front: key, value, rest.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().position(|&b| b == b' ')?;
    let len = usize::try_from(decimal(&text[..space])?).ok()?;
    if len < 5 || len > text.len() || len <= space + 1 {
        return None;
    }
    let (body, newline) = text[space + 1..len].split_at(len - space - 2);
    if newline != b"\n" {
        return None;
    }
    let equals = body.iter().position(|&b| b == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let text_only: &[u8] = match key {
        b"" => return None,
        b"path" | b"linkpath" | b"uname" | b"gname" => value,
        _ => key,
    };
    (!text_only.contains(&0)).then_some((key, value, &text[len..]))
}
