//! Scans: where tars are cut, that splitting changes nothing, and what real tar writers emit.

mod cuts;
mod hostile;
mod splits;
mod writers;

use larder_proto::limits;
use larder_proto::scan::{LayerScan, ScanError, ScanOptions, ScannedLayer};
use larder_test_support::tar::{Entry, TarBuilder};

/// Scans `tar`, fed in pieces of `piece` bytes.
fn scan_with(tar: &[u8], target: u32, piece: usize) -> Result<(ScannedLayer, Vec<u64>), ScanError> {
    let mut scan = LayerScan::new(ScanOptions {
        chunk_target: target,
    });
    let mut cuts = Vec::new();
    for piece in tar.chunks(piece.max(1)) {
        scan.feed(piece, &mut cuts)?;
    }
    Ok((scan.finish(&mut cuts)?, cuts))
}

fn scan(tar: &[u8]) -> Result<(ScannedLayer, Vec<u64>), ScanError> {
    scan_with(tar, limits::CHUNK_TARGET_DEFAULT, tar.len())
}

fn tar_of(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    let builder = entries
        .into_iter()
        .fold(TarBuilder::new(), TarBuilder::entry);
    builder.finish()
}

/// Pseudo-random numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next().to_le_bytes()[0] | 1).collect()
    }
}
