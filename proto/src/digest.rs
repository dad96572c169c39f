//! Digests: of blobs as OCI names them, and of chunks as the index lists them.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// A SHA-256 digest, written `sha256:<64 lowercase hex digits>`.
///
/// The only way to get one from text is through the parser, so a digest is always safe to use as
/// a file name: it holds no separator and no dot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// A text that is not a digest Larder understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest of the form sha256:<64 lowercase hex digits>")]
pub struct DigestError(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest whose 32 bytes a finished hasher gave.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits without the algorithm; the name of a blob's file.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let refuse = || DigestError(text.chars().take(100).collect());
        let digits = text.strip_prefix("sha256:").ok_or_else(refuse)?;
        unhex(digits).map(Self).ok_or_else(refuse)
    }
}

/// How the digests of an index's chunks are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// BLAKE3 with 256 bits of output: 7.6 GB/s on one core, the default.
    Blake3,
    /// SHA-256, for places whose policy asks for it: 2.0 GB/s.
    Sha256,
}

impl Algorithm {
    /// The number that stands for the algorithm in an index.
    pub const fn id(self) -> u8 {
        match self {
            Self::Blake3 => 1,
            Self::Sha256 => 2,
        }
    }

    /// The algorithm that `id` stands for, if this build knows it.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Blake3),
            2 => Some(Self::Sha256),
            _ => None,
        }
    }

    /// The digest of `bytes` by this algorithm.
    pub fn digest(self, bytes: &[u8]) -> ChunkDigest {
        let raw = match self {
            Self::Blake3 => *blake3::hash(bytes).as_bytes(),
            Self::Sha256 => sha2::Sha256::digest(bytes).into(),
        };
        ChunkDigest {
            algorithm: self,
            raw,
        }
    }
}

/// The digest of a chunk's stored frame, or of its content.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkDigest {
    algorithm: Algorithm,
    raw: [u8; 32],
}

impl ChunkDigest {
    /// A digest read from an index.
    pub const fn new(algorithm: Algorithm, raw: [u8; 32]) -> Self {
        Self { algorithm, raw }
    }

    /// The algorithm that made it.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.raw
    }
}

impl fmt::Display for ChunkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.algorithm {
            Algorithm::Blake3 => "blake3",
            Algorithm::Sha256 => "sha256",
        };
        write!(f, "{name}:{}", hex(&self.raw))
    }
}

impl fmt::Debug for ChunkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn hex(bytes: &[u8; 32]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn unhex(digits: &str) -> Option<[u8; 32]> {
    let digits = digits.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_survives_its_text_form() {
        let digest = Digest::of(b"larder");
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn text_that_could_leave_a_directory_is_no_digest() {
        let upper = format!("sha256:{}", "A".repeat(64));
        for text in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            "sha512:00",
            &upper,
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
