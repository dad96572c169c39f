//! Tar reader, cutter and tree: whatever the bytes, no panic, no endless work, bounded memory.
//!
//! - However the tar is split over `feed` calls, the cuts, the tree and the verdict are the same.
//! - Cuts ascend, end at the length of the tar, and no chunk is larger than the format allows; no
//!   cut comes later than `CUT_LAG_MAX` bytes after its place.
//! - Every extent lies within the tar; implied directories are directories of the tree.
//! - The metadata image of the tree can be read, and shows the same tree.
//!
//! The first byte of the input decides how the rest is split. Headers get a fitting checksum, or
//! nothing would ever come past it.
#![no_main]

use larder_proto::cut::CUT_LAG_MAX;
use larder_proto::erofs::{self, Image};
use larder_proto::limits;
use larder_proto::scan::{LayerScan, ScanError, ScanOptions, ScannedLayer};
use larder_proto::tree::{Kind, difference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((&split, tar)) = bytes.split_first() else {
        return;
    };
    let mut tar = tar.to_vec();
    tar.as_chunks_mut().0.iter_mut().for_each(fix_checksum);
    let whole = scan(&tar, tar.len().max(1));
    let pieces = scan(&tar, 1 + usize::from(split) * 3);
    match (whole, pieces) {
        (Ok((whole, cuts)), Ok((pieces, other_cuts))) => {
            assert_eq!(cuts, other_cuts);
            assert_eq!(whole.implied, pieces.implied);
            assert_eq!(difference(&whole.tree, &pieces.tree), None);
            check(&whole, &cuts, tar.len() as u64);
        }
        (Err(whole), Err(pieces)) => assert_eq!(whole, pieces),
        (whole, pieces) => panic!("{whole:?} against {pieces:?}"),
    }
});

fn scan(tar: &[u8], piece: usize) -> Result<(ScannedLayer, Vec<u64>), ScanError> {
    let mut scan = LayerScan::new(ScanOptions {
        chunk_target: limits::CHUNK_TARGET_MIN,
    });
    let mut cuts = Vec::new();
    let mut fed = 0;
    for piece in tar.chunks(piece) {
        scan.feed(piece, &mut cuts)?;
        fed += piece.len() as u64;
        assert!(fed - cuts.last().copied().unwrap_or(0) <= CUT_LAG_MAX);
    }
    Ok((scan.finish(&mut cuts)?, cuts))
}

fn check(layer: &ScannedLayer, cuts: &[u64], len: u64) {
    assert_eq!(layer.tar_len, len);
    assert_eq!(cuts.last().copied().unwrap_or(0), len);
    let mut last = 0;
    for &cut in cuts {
        assert!(last < cut && cut - last <= u64::from(limits::CHUNK_BYTES_MAX));
        last = cut;
    }
    for node in &layer.tree.nodes {
        if let Kind::Regular { extents, .. } = &node.kind {
            assert!(
                extents
                    .iter()
                    .all(|extent| extent.tar_offset + extent.len <= len)
            );
        }
    }
    for path in &layer.implied {
        let node = layer.tree.find(path).expect("an implied directory exists");
        assert!(matches!(layer.tree.node(node).kind, Kind::Directory(_)));
    }
    if let Ok(image) = erofs::write(&layer.tree, len) {
        let image = Image::open(image, len).expect("what was written can be read");
        assert_eq!(difference(&layer.tree, &image.to_tree()), None);
    }
}

/// Gives a block that looks like a header the right checksum.
fn fix_checksum(block: &mut [u8; 512]) {
    if &block[257..262] == b"ustar" {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}
