//! What decides the bytes of a converted layer besides its tar.

use larder_proto::digest::Algorithm;
use larder_proto::limits;
use zstd::zstd_safe::{CParameter, Strategy};

/// Default compression level; `docs/adr/0003-level-and-chunk-size.md` has the table it is from.
pub const LEVEL_DEFAULT: i32 = 3;

/// Counts the versions of the table of [`Level::parameters`].
const PARAMETERS: u32 = 2;

/// Window of every frame, as a power of two: the largest chunk, so that a frame is one window.
const WINDOW_LOG: u32 = limits::CHUNK_BYTES_MAX.ilog2();

/// A compression level, `1..=19`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level(i32);

/// Options out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A level zstd does not have, or one beyond what a frame of this size gains from.
    #[error("level {0} is not one of 1 to 19")]
    Level(i32),
    /// A chunk size out of range.
    #[error("chunk size {0} is not between {min} and {max} bytes, in steps of 512", min = limits::CHUNK_TARGET_MIN, max = limits::CHUNK_BYTES_MAX)]
    ChunkSize(u64),
}

/// Everything that decides the bytes of a converted layer besides its tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerOptions {
    level: Level,
    chunk_target: u32,
    algorithm: Algorithm,
}

impl Default for LayerOptions {
    fn default() -> Self {
        Self {
            level: Level(LEVEL_DEFAULT),
            chunk_target: limits::CHUNK_TARGET_DEFAULT,
            algorithm: Algorithm::Blake3,
        }
    }
}

impl LayerOptions {
    /// Options, checked: `level` 1 to 19; `chunk_target` bytes within the format's limits.
    pub fn new(level: i32, chunk_target: u64, algorithm: Algorithm) -> Result<Self, OptionError> {
        if !(1..=19).contains(&level) {
            return Err(OptionError::Level(level));
        }
        let range = limits::CHUNK_TARGET_MIN..=limits::CHUNK_BYTES_MAX;
        let size = u32::try_from(chunk_target).ok();
        let size = size.filter(|size| range.contains(size) && size.is_multiple_of(512));
        let chunk_target = size.ok_or(OptionError::ChunkSize(chunk_target))?;
        Ok(Self {
            level: Level(level),
            chunk_target,
            algorithm,
        })
    }

    /// The compression level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The size chunks are cut at, bytes.
    pub fn chunk_target(&self) -> u32 {
        self.chunk_target
    }

    /// The algorithm of the chunk digests.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// A text that differs whenever the bytes of a converted layer may differ.
    ///
    /// The version of libzstd belongs to it: another one may compress otherwise.
    pub fn fingerprint(&self) -> String {
        let algorithm = match self.algorithm {
            Algorithm::Blake3 => "blake3",
            Algorithm::Sha256 => "sha256",
        };
        format!(
            "format={} zstd={} level={}.{PARAMETERS} chunk={} digest={algorithm}",
            larder_proto::index::VERSION,
            zstd::zstd_safe::version_string(),
            self.level.0,
            self.chunk_target,
        )
    }
}

impl Level {
    /// Every parameter of the encoder, none left for libzstd to choose by input size.
    ///
    /// The rows are libzstd 1.5.7's for inputs up to 256 KiB, which is what a chunk is, but for the
    /// default's: it lies between libzstd's 2 and 3, near 3 in size and near 2 in speed.
    /// Whoever changes a row increases [`PARAMETERS`].
    pub(super) fn parameters(self) -> Vec<CParameter> {
        use Strategy::{
            ZSTD_btlazy2, ZSTD_btopt, ZSTD_btultra, ZSTD_btultra2, ZSTD_dfast, ZSTD_fast,
            ZSTD_greedy, ZSTD_lazy, ZSTD_lazy2,
        };
        let (chain, hash, search, least, target, strategy) = match self.0 {
            ..=1 => (13, 14, 1, 6, 0, ZSTD_fast),
            2 => (14, 14, 1, 5, 0, ZSTD_dfast),
            3 => (15, 15, 1, 5, 0, ZSTD_dfast),
            4 => (16, 17, 3, 5, 2, ZSTD_greedy),
            5 => (17, 18, 5, 5, 2, ZSTD_greedy),
            6 => (18, 19, 3, 5, 4, ZSTD_lazy),
            7 => (18, 19, 4, 4, 4, ZSTD_lazy),
            8 => (18, 19, 4, 4, 8, ZSTD_lazy2),
            9 => (18, 19, 5, 4, 8, ZSTD_lazy2),
            10 => (18, 19, 6, 4, 8, ZSTD_lazy2),
            11 => (18, 19, 5, 4, 12, ZSTD_btlazy2),
            12 => (19, 19, 7, 4, 12, ZSTD_btlazy2),
            13 => (18, 19, 4, 4, 16, ZSTD_btopt),
            14 => (18, 19, 4, 3, 32, ZSTD_btopt),
            15 => (18, 19, 6, 3, 128, ZSTD_btopt),
            16 => (19, 19, 6, 3, 128, ZSTD_btultra),
            17 => (19, 19, 8, 3, 256, ZSTD_btultra),
            18 => (19, 19, 6, 3, 128, ZSTD_btultra2),
            19.. => (19, 19, 8, 3, 256, ZSTD_btultra2),
        };
        vec![
            CParameter::CompressionLevel(self.0),
            CParameter::WindowLog(WINDOW_LOG),
            CParameter::ChainLog(chain),
            CParameter::HashLog(hash),
            CParameter::SearchLog(search),
            CParameter::MinMatch(least),
            CParameter::TargetLength(target),
            CParameter::Strategy(strategy),
            CParameter::EnableLongDistanceMatching(false),
            CParameter::ContentSizeFlag(true),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_refused() {
        for level in [0, -1, 20] {
            assert!(LayerOptions::new(level, 1 << 18, Algorithm::Blake3).is_err());
        }
        for size in [0, 1 << 15, (1 << 18) + 1, (4 << 20) + 512, 1 << 40] {
            assert!(
                LayerOptions::new(3, size, Algorithm::Blake3).is_err(),
                "{size}"
            );
        }
    }

    #[test]
    fn every_option_shows_in_the_fingerprint() {
        let all = [
            LayerOptions::default(),
            LayerOptions::new(4, 1 << 18, Algorithm::Blake3).unwrap(),
            LayerOptions::new(3, 1 << 19, Algorithm::Blake3).unwrap(),
            LayerOptions::new(3, 1 << 18, Algorithm::Sha256).unwrap(),
        ];
        let texts: std::collections::BTreeSet<_> =
            all.iter().map(LayerOptions::fingerprint).collect();
        assert_eq!(texts.len(), all.len());
    }
}
