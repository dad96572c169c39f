//! Writes the inputs that fuzzing begins with: sound tars, and the images and indexes of them.
//!
//! `seeds DIR` fills `DIR/tar`, `DIR/erofs` and `DIR/index`.

use std::error::Error;
use std::path::Path;

use larder_proto::digest::{Algorithm, Digest};
use larder_proto::erofs;
use larder_proto::index::{Chunk, IndexParts};
use larder_proto::limits;
use larder_proto::scan::{LayerScan, ScanOptions};

#[path = "../../tests/support/src/tar.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod tar;

use tar::{Entry, TarBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: seeds DIR")?;
    for (name, tar) in tars() {
        write(&directory, name, &tar)?;
    }
    Ok(())
}

fn write(directory: &str, name: &str, tar: &[u8]) -> Result<(), Box<dyn Error>> {
    let mut scan = LayerScan::new(ScanOptions::default());
    let mut cuts = Vec::new();
    scan.feed(tar, &mut cuts)?;
    let layer = scan.finish(&mut cuts)?;
    let image = erofs::write(&layer.tree, layer.tar_len)?;
    let index = IndexParts {
        diff_id: Digest::of(tar),
        tar_len: layer.tar_len,
        chunk_target: limits::CHUNK_TARGET_DEFAULT,
        algorithm: Algorithm::Blake3,
        metadata: &image,
        chunks: &chunks(&cuts),
        implied: &layer.implied,
    };
    let len = layer.tar_len.to_le_bytes();
    for (kind, seed) in [
        ("tar", [&[7], tar].concat()),
        ("erofs", [&len[..], &image].concat()),
        ("index", index.encode()),
    ] {
        let directory = Path::new(directory).join(kind);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(name), seed)?;
    }
    Ok(())
}

/// A chunk table for these cuts, with frames of a made-up length.
fn chunks(cuts: &[u64]) -> Vec<Chunk> {
    let digest = Algorithm::Blake3.digest(b"");
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let rows = starts.zip(cuts).zip(0..).map(|((start, end), row)| Chunk {
        offset: start,
        len: u32::try_from(end - start).expect("chunks are at most 4 MiB"),
        stored_offset: 13 * row,
        stored_len: 13,
        frame: digest,
        content: digest,
    });
    rows.collect()
}

fn tars() -> [(&'static str, Vec<u8>); 4] {
    let kinds = TarBuilder::new()
        .entry(Entry::directory("d").mode(0o2755).xattr("user.a", "1"))
        .entry(Entry::file("d/f", "x".repeat(600)))
        .entry(Entry::symlink("l", "d"))
        .entry(Entry::hard_link("l/h", "d/f").owner(3_000_000, 1))
        .entry(Entry::new(b'3', "c").device(1, 3))
        .entry(Entry::new(b'6', "p"))
        .entry(Entry::file("implied/.wh.gone", ""))
        .entry(Entry::file("d/.wh..wh..opq", ""));
    let names = TarBuilder::new()
        .entry(Entry::file("n".repeat(200), "pax"))
        .entry(Entry::file("g".repeat(200), "gnu").gnu())
        .entry(Entry::file("../escape//x", ""))
        .entry(Entry::new(0, "v7/").v7());
    let mut payload = b"2\n512\n512\n4096\n1024\n".to_vec();
    payload.resize(2_048, 7);
    let sparse = TarBuilder::new().entry(
        Entry::file("s", payload)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.realsize", "9000"),
    );
    let large = TarBuilder::new()
        .entry(Entry::file("zeros", vec![0; 200_000]))
        .entry(Entry::file("ones", vec![1; 100_000]));
    [
        ("kinds", kinds.finish()),
        ("names", names.finish()),
        ("sparse", sparse.finish()),
        ("large", large.finish()),
    ]
}
