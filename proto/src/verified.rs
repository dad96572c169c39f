//! Bytes whose digest has been checked.

use crate::digest::ChunkDigest;

/// Bytes that have been found to have the digest they were expected to have.
///
/// [`Verified::check`] is the only constructor, and only verified bytes may enter a store or a
/// reply; that is how the type system keeps unverified bytes out of containers.
#[derive(Debug, Clone)]
pub struct Verified<T>(T);

/// Bytes that are not what the index says they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, got {found}")]
pub struct Mismatch {
    /// The digest the index lists.
    pub expected: ChunkDigest,
    /// The digest of the bytes that came.
    pub found: ChunkDigest,
}

impl<T: AsRef<[u8]>> Verified<T> {
    /// Hashes `bytes` and lets them through if the digest is the `expected` one.
    pub fn check(bytes: T, expected: &ChunkDigest) -> Result<Self, Mismatch> {
        let found = expected.algorithm().digest(bytes.as_ref());
        if found == *expected {
            Ok(Self(bytes))
        } else {
            Err(Mismatch {
                expected: *expected,
                found,
            })
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// The value that holds the bytes.
    pub fn into_inner(self) -> T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    #[test]
    fn other_bytes_are_refused_by_both_algorithms() {
        for algorithm in [Algorithm::Blake3, Algorithm::Sha256] {
            let digest = algorithm.digest(b"right");
            assert!(Verified::check(b"right", &digest).is_ok());
            assert!(Verified::check(b"wrong", &digest).is_err());
        }
    }
}
