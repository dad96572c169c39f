//! The annotations on a layer descriptor that lead a node to the index, and to what a start reads.
//!
//! containerd hands snapshotters exactly those annotations that begin with
//! `containerd.io/snapshot/`, so Prepare needs one range request and no manifest.

mod start;

use std::fmt;
use std::str::FromStr;

pub use start::{START, START_VALUE_BYTES_MAX, StartError, StartList};

use crate::digest::Digest;
use crate::limits;

/// Key of the annotation that says where the index is; its value is an [`IndexLocation`].
pub const INDEX: &str = "containerd.io/snapshot/larder.index";

/// Key of the annotation that repeats the layer's own digest.
pub const LAYER: &str = "containerd.io/snapshot/larder.layer";

/// Key of the manifest annotation that records the digest of the source manifest.
pub const SOURCE: &str = "io.larder.source.digest";

/// Where in a layer blob the stored index lies, and what it must hash to.
///
/// Written `<offset>:<stored length>:<length>:sha256:<hex>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IndexLocation {
    /// Blob offset of the first stored byte, after the header of its skippable frame.
    pub offset: u64,
    /// Stored (compressed) bytes.
    pub stored_len: u64,
    /// Bytes after decompression.
    pub len: u64,
    /// SHA-256 of the stored bytes, so that they are checked before the decoder sees them.
    pub digest: Digest,
}

/// A value of [`INDEX`] that does not say where an index is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} does not locate an index: {reason}")]
pub struct LocationError {
    value: String,
    reason: &'static str,
}

impl IndexLocation {
    /// Checks the numbers against [`limits`].
    pub(crate) fn check(self) -> Result<Self, &'static str> {
        if self.stored_len == 0 || self.stored_len > limits::INDEX_STORED_BYTES_MAX {
            return Err("stored length out of range");
        }
        if self.len == 0 || self.len > limits::INDEX_BYTES_MAX {
            return Err("length out of range");
        }
        if self.offset.checked_add(self.stored_len).is_none() {
            return Err("offset out of range");
        }
        Ok(self)
    }
}

impl fmt::Display for IndexLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}:{}",
            self.offset, self.stored_len, self.len, self.digest
        )
    }
}

impl FromStr for IndexLocation {
    type Err = LocationError;

    fn from_str(text: &str) -> Result<Self, LocationError> {
        let refuse = |reason| LocationError {
            value: text.chars().take(200).collect(),
            reason,
        };
        let mut parts = text.splitn(4, ':');
        let mut number = || {
            let digits = parts.next().unwrap_or_default();
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        let (offset, stored_len, len) = (number(), number(), number());
        let (Some(offset), Some(stored_len), Some(len)) = (offset, stored_len, len) else {
            return Err(refuse("expected three numbers and a digest"));
        };
        let digest = parts.next().and_then(|text| text.parse().ok());
        let digest = digest.ok_or_else(|| refuse("no sha256 digest at the end"))?;
        Self {
            offset,
            stored_len,
            len,
            digest,
        }
        .check()
        .map_err(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_survives_its_text_form() {
        let location = IndexLocation {
            offset: 12,
            stored_len: 34,
            len: 56,
            digest: Digest::of(b"index"),
        };
        assert_eq!(location.to_string().parse(), Ok(location));
    }

    #[test]
    fn odd_text_is_refused() {
        let hex = Digest::of(b"");
        for text in [
            String::new(),
            "1:2:3".into(),
            format!("1:2:+3:{hex}"),
            format!("1:0:3:{hex}"),
            format!("{}:2:3:{hex}", u64::MAX),
            format!("1:2:3:{hex}:4"),
            format!("1:2:{}:{hex}", limits::INDEX_BYTES_MAX + 1),
        ] {
            assert!(text.parse::<IndexLocation>().is_err(), "{text}");
        }
    }
}
