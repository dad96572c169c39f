//! Where chunks begin and end.

use std::collections::HashSet;

use larder_proto::limits::{CHUNK_BYTES_MAX, CHUNK_TARGET_DEFAULT, CHUNK_TARGET_MIN};
use larder_test_support::tar::{Entry, TarBuilder};

use super::{Random, scan, scan_with, tar_of};

const TARGET: u64 = CHUNK_TARGET_DEFAULT as u64;

fn index(n: u64) -> usize {
    usize::try_from(n).expect("a small tar")
}

/// Lengths of the chunks that `cuts` make.
fn lengths(cuts: &[u64]) -> Vec<u64> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    starts.zip(cuts).map(|(start, end)| end - start).collect()
}

fn cuts_of(tar: &[u8]) -> Vec<u64> {
    scan(tar).expect("a sound tar").1
}

/// Promise: the payload of a file of 64 KiB or more shares no chunk with a header, so new times
/// leave it untouched; one byte less, and it is packed.
#[test]
fn large_payloads_have_chunks_of_their_own() {
    let tar = tar_of([
        Entry::file("large", vec![1; 65_536]),
        Entry::file("small", vec![1; 65_535]),
        Entry::file("odd", vec![1; 65_537]),
    ]);
    let small = 512 + 65_536;
    let odd = small + 512 + 65_536 + 512;
    assert_eq!(
        cuts_of(&tar),
        [512, small, odd, odd + 66_048, tar.len() as u64]
    );
}

/// Promise: inside a payload, pieces have the target size; the last takes what is left, so that
/// none is shorter than half of it.
#[test]
fn payloads_are_cut_at_the_target() {
    for (size, pieces) in [
        (TARGET, vec![TARGET]),
        (TARGET * 3 / 2 - 512, vec![TARGET * 3 / 2 - 512]),
        (TARGET * 3 / 2, vec![TARGET, TARGET / 2]),
        (TARGET * 5 / 2 - 512, vec![TARGET, TARGET * 3 / 2 - 512]),
    ] {
        let data = vec![1; usize::try_from(size).unwrap()];
        let cuts = cuts_of(&tar_of([Entry::file("f", data)]));
        let found = lengths(&cuts);
        assert_eq!(found[1..found.len() - 1], pieces, "a file of {size} bytes");
    }
}

/// Promise: ten gigabytes of zeros are a few thousand chunks, and data between zeros is not
/// swallowed by them.
#[test]
fn zeros_make_chunks_of_four_mebibytes() {
    let mut data = vec![0; 11 << 20];
    let cuts = cuts_of(&tar_of([Entry::file("zeros", &data)]));
    let mib = |n: u64| n << 20;
    assert_eq!(lengths(&cuts)[1..4], [mib(4), mib(4), mib(3)]);
    data[5 << 20] = 1;
    let cuts = cuts_of(&tar_of([Entry::file("one", &data)]));
    assert_eq!(lengths(&cuts)[1..5], [mib(4), mib(1), TARGET, mib(4)]);
}

/// Promise: packed chunks are at most twice the target, at least half of it where an entry allows,
/// and end where an entry begins.
#[test]
fn small_files_are_packed() {
    let mut random = Random(7);
    let mut builder = TarBuilder::new();
    let mut starts = HashSet::new();
    for i in 0..3_000 {
        starts.insert(builder.len() as u64);
        let len = random.below(9_000);
        builder = builder.entry(Entry::file(format!("usr/share/{i}"), random.bytes(len)));
    }
    let tar = builder.finish();
    let cuts = cuts_of(&tar);
    let (last, inner) = cuts.split_last().unwrap();
    assert_eq!(*last, tar.len() as u64);
    assert!(inner.iter().all(|cut| starts.contains(cut)));
    let lengths = lengths(&cuts);
    assert!(
        lengths
            .iter()
            .all(|&len| (TARGET / 2..=TARGET * 2).contains(&len)),
        "{lengths:?}"
    );
}

/// Promise: when one of the small files changes, only chunks near it do.
#[test]
fn a_changed_entry_moves_few_cuts() {
    let mut random = Random(11);
    let version = |changed: usize, random: &mut Random| {
        let entries = (0..4_000).map(|i| {
            let len = if i == changed {
                7_000
            } else {
                (i * 37 % 5_000) as u64
            };
            let data = if i == changed {
                random.bytes(len)
            } else {
                vec![1; index(len)]
            };
            Entry::file(format!("opt/app/{i}.py"), data)
        });
        tar_of(entries)
    };
    let (old, new) = (
        version(usize::MAX, &mut random),
        version(1_200, &mut random),
    );
    let chunks = |tar: &[u8]| -> HashSet<Vec<u8>> {
        let cuts = cuts_of(tar);
        let starts = std::iter::once(0).chain(cuts.iter().copied());
        starts
            .zip(&cuts)
            .map(|(a, &b)| tar[index(a)..index(b)].to_vec())
            .collect()
    };
    let (old, new) = (chunks(&old), chunks(&new));
    let changed = new.difference(&old).count();
    assert!(changed <= 4, "{changed} of {} chunks changed", new.len());
}

/// Promise: no chunk is ever larger than the format allows, whatever the tar and the target.
#[test]
fn no_chunk_exceeds_the_limit() {
    let junk = vec![9; 9 << 20];
    let zeros = vec![0; 9 << 20];
    let records = vec![b'x'; 900_000];
    let long = Entry::file("f", "")
        .record("comment", &records)
        .record("path", "g");
    let tars = [
        TarBuilder::new()
            .entry(Entry::file("f", "x"))
            .raw(&[0; 1024])
            .raw(&junk)
            .unfinished(),
        TarBuilder::new()
            .entry(Entry::file("f", "x"))
            .raw(&[0; 1024])
            .raw(&zeros)
            .unfinished(),
        tar_of((0..20).map(|_| long.clone())),
        tar_of([Entry::file("f", &junk), Entry::file("g", &zeros)]),
        tar_of((0..30).map(|i| Entry::file(format!("{i}"), vec![1; 65_000]))),
    ];
    for tar in &tars {
        for target in [
            0,
            CHUNK_TARGET_MIN,
            CHUNK_TARGET_MIN + 1,
            3_000_000,
            u32::MAX,
        ] {
            let (layer, cuts) = scan_with(tar, target, tar.len()).expect("a sound tar");
            assert_eq!(cuts.last(), Some(&layer.tar_len));
            assert!(
                lengths(&cuts)
                    .iter()
                    .all(|&len| 0 < len && len <= u64::from(CHUNK_BYTES_MAX))
            );
        }
    }
}

/// Promise: zeros after the end of the archive cost few chunks, too.
#[test]
fn a_long_trailer_of_zeros_is_joined() {
    let builder = TarBuilder::new().entry(Entry::file("f", "x"));
    let tar = builder.raw(&vec![0; 20 << 20]).unfinished();
    let cuts = cuts_of(&tar);
    assert!(cuts.len() <= 8, "{:?}", lengths(&cuts));
}
