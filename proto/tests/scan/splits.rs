//! How a tar arrives does not matter.

use larder_proto::scan::ScanError;
use larder_proto::tree::difference;
use larder_test_support::tar::{Entry, TarBuilder};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{Random, scan, scan_with};

/// A tar with every form of header, and payloads around the places where cuts are made.
fn sample(random: &mut Random) -> Vec<u8> {
    let mut payload = b"2\n0\n512\n1024\n1024\n".to_vec();
    payload.resize(2_048, 7);
    let mut builder = TarBuilder::new()
        .entry(Entry::directory("d"))
        .entry(Entry::file("n/".repeat(149) + "n", "pax"))
        .entry(Entry::file("g/".repeat(149) + "g", "gnu").gnu())
        .entry(Entry::new(0, "v7/").v7())
        .entry(
            Entry::file("sparse", payload)
                .record("GNU.sparse.major", "1")
                .record("GNU.sparse.minor", "0")
                .record("GNU.sparse.realsize", "9000"),
        );
    for i in 0..12 {
        let data = match random.below(4) {
            0 => {
                let len = random.below(400_000);
                vec![0; usize::try_from(len).expect("a small file")]
            }
            1 => {
                let len = random.below(200_000);
                random.bytes(len)
            }
            _ => {
                let len = random.below(3_000);
                random.bytes(len)
            }
        };
        builder = builder.entry(Entry::file(format!("d/{i}"), data));
    }
    let junk = random.below(200_000);
    let junk = random.bytes(junk);
    builder.raw(&[0; 1024]).raw(&junk).unfinished()
}

/// Promise: cuts and tree are a pure function of the tar, however it is split over calls.
#[test]
fn splitting_changes_neither_cuts_nor_tree() {
    for seed in 1..6 {
        let mut random = Random(seed);
        let tar = sample(&mut random);
        let (whole, cuts) = scan_with(&tar, 65_536, tar.len()).expect("a sound tar");
        for piece in [1, 511, 512, 513, 4_096, 65_537] {
            let (pieces, others) = scan_with(&tar, 65_536, piece).expect("a sound tar");
            assert_eq!(cuts, others, "seed {seed}, pieces of {piece}");
            assert_eq!(difference(&whole.tree, &pieces.tree), None);
            assert_eq!(whole.implied, pieces.implied);
        }
    }
}

/// Promise: a tar cut off anywhere is never taken for a whole one, except between entries, where
/// containerd does not notice either.
#[test]
fn truncation_is_noticed() {
    let payload_at = 1024 + 512;
    let tar = TarBuilder::new()
        .entry(Entry::file("a", "x"))
        .entry(Entry::file("b", vec![1; 1000]))
        .finish();
    for len in 0..tar.len() {
        let verdict = scan(&tar[..len]);
        let is_boundary = matches!(len, 0 | 1024 | 2560 | 3072);
        let in_padding = (513..1024).contains(&len) || (payload_at + 1000..2560).contains(&len);
        match verdict {
            Ok(_) => assert!(is_boundary || in_padding, "{len} bytes were accepted"),
            Err(ScanError::Malformed { .. }) => assert!(!is_boundary && !in_padding, "{len}"),
            Err(other) => panic!("{len}: {other}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Promise: arbitrary bytes never panic.
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..4096), piece in 1_usize..600) {
        let whole = scan(&bytes).map(|(_, cuts)| cuts);
        let pieces = scan_with(&bytes, 262_144, piece).map(|(_, cuts)| cuts);
        prop_assert_eq!(whole, pieces);
    }

    /// Promise: nor do sound tars with some bytes changed, checksums mended.
    #[test]
    fn damaged_tars_never_panic(
        seed in 1_u64..1_000,
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut tar = sample(&mut Random(seed));
        let headers = tar.len().min(8_192);
        for (at, byte) in damage {
            tar[at.index(headers)] = byte;
        }
        let (blocks, _) = tar.as_chunks_mut::<512>();
        for block in blocks.iter_mut().filter(|block| &block[257..262] == b"ustar") {
            larder_test_support::tar::set_checksum(block);
        }
        let whole = scan(&tar).map(|(_, cuts)| cuts);
        let pieces = scan_with(&tar, 262_144, 700).map(|(_, cuts)| cuts);
        prop_assert_eq!(whole, pieces);
    }
}
