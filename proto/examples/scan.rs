//! Scans tars and says how fast, into how many chunks, and how much of each the one before has.
//!
//! `cargo run --release -p larder-proto --example scan -- OLD.tar NEW.tar`

use std::collections::HashSet;
use std::error::Error;
use std::time::Instant;

use larder_proto::scan::{LayerScan, ScanOptions};

/// Bytes fed at once: what a decompressor hands out.
const PIECE: usize = 128 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let mut before: HashSet<[u8; 32]> = HashSet::new();
    for path in std::env::args().skip(1) {
        let tar = std::fs::read(&path)?;
        let begun = Instant::now();
        let mut scan = LayerScan::new(ScanOptions::default());
        let mut cuts = Vec::new();
        for piece in tar.chunks(PIECE) {
            scan.feed(piece, &mut cuts)?;
        }
        let layer = scan.finish(&mut cuts)?;
        let seconds = begun.elapsed().as_secs_f64();
        let (mut last, mut new_bytes, mut small) = (0, 0, 0);
        let mut chunks = HashSet::new();
        for &cut in &cuts {
            let chunk = &tar[last..usize::try_from(cut)?];
            let digest = *blake3::hash(chunk).as_bytes();
            if !before.contains(&digest) {
                new_bytes += chunk.len();
            }
            small += usize::from(chunk.len() < 4 << 10);
            chunks.insert(digest);
            last = usize::try_from(cut)?;
        }
        println!(
            "{path}: {} files, {:.3} s, {:.2} GB/s, {} chunks ({small} below 4 KiB), {:.1} % new",
            layer.tree.nodes.len(),
            seconds,
            tar.len() as f64 / seconds / 1e9,
            cuts.len(),
            100.0 * new_bytes as f64 / tar.len().max(1) as f64,
        );
        before = chunks;
    }
    Ok(())
}
