//! Writes the inputs that fuzzing begins with: sound tars, and the images and indexes of them.
//!
//! `seeds DIR` fills a directory for each target below `DIR`.

use std::error::Error;
use std::path::Path;

use larder_proto::digest::{Algorithm, Digest};
use larder_proto::erofs;
use larder_proto::index::{Chunk, IndexParts};
use larder_proto::limits;
use larder_proto::scan::{LayerScan, ScanOptions};

#[path = "../../converter/src/start/sample.rs"]
mod sample;
#[path = "../../tests/support/src/tar.rs"]
#[expect(dead_code, reason = "shared with the tests, which use more of it")]
mod tar;

use tar::{Entry, TarBuilder};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: seeds DIR")?;
    for (name, tar) in tars() {
        write(&directory, name, &tar)?;
    }
    let texts = TEXTS.map(|(name, text)| ("texts", name, text.as_bytes().to_vec()));
    let documents = DOCUMENTS.map(|(name, text)| ("documents", name, text.as_bytes().to_vec()));
    let (layer, present) = (b"0".iter().chain(LAYER.as_bytes()), present());
    let program = sample::Elf {
        interpreter: Some("/lib/ld.so"),
        needed: &["libc.so.6", "libm.so.6"],
        runpath: Some("$ORIGIN/../lib"),
        ..sample::Elf::default()
    };
    let program = [b"8", &program.bytes()[..]].concat();
    let documents = documents
        .into_iter()
        .chain([("documents", "program", program)]);
    let profile = b"p".iter().chain(PROFILE.as_bytes());
    let state = [
        ("state", "profile", profile.copied().collect()),
        ("state", "layer", layer.copied().collect()),
        ("state", "present", present),
    ];
    for (target, name, seed) in texts.into_iter().chain(documents).chain(state) {
        let directory = Path::new(&directory).join(target);
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join(name), seed)?;
    }
    Ok(())
}

/// One text for each parser of `texts`, which the first byte chooses.
const TEXTS: [(&str, &str); 11] = [
    (
        "bearer",
        "0Bearer realm=\"https://a.io/t\",service=\"s\",scope=\"repository:a:pull\"",
    ),
    ("basic", "0Basic realm=\"x\", Bearer realm=\"http://a.io\""),
    ("range", "1bytes 5-9/10"),
    ("retry", "2Sun, 06 Nov 1994 08:49:37 GMT"),
    (
        "expiry",
        "2X-Amz-Date=20261120T120000Z&X-Amz-Expires=300&Expires=7&se=2026-11-20T12%3A10%3A00Z",
    ),
    (
        "name",
        "3[::1]:5000/team/app:v1@sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    ),
    (
        "location",
        "412:34:56:sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    ),
    (
        "digest",
        "5sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    ),
    (
        "hosts",
        "6server = \"https://r.io\"\nca = [\"a\"]\n[host.\"https://m.io\"]\ncapabilities = [\"pull\"]\n\
         client = [[\"a\", \"b\"]]\ndial_timeout = \"1m30s\"\n[host.\"https://m.io\".header]\nx = \"hunter2\"\n",
    ),
    ("start", "81:AA4BHg0A1gMAAA"),
    (
        "filter",
        "7labels.\"a.b/c\"~=/x+/,kind==committed\nparent!=\"\",name",
    ),
];

/// One document for each parser of `documents`.
const DOCUMENTS: [(&str, &str); 7] = [
    (
        "manifest",
        concat!(
            "0",
            r#"{"schemaVersion":2,"config":{"mediaType":"c","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":[],"annotations":{"b":"1"},"x":1}"#
        ),
    ),
    (
        "index",
        concat!(
            "1",
            r#"{"schemaVersion":2,"manifests":[{"mediaType":"m","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"platform":{"os":"linux","architecture":"amd64"}}]}"#
        ),
    ),
    (
        "parsed",
        concat!(
            "2",
            r#"{"schemaVersion":2,"config":{"mediaType":"c","size":2,"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"},"layers":null,"manifests":null}"#
        ),
    ),
    (
        "config",
        concat!(
            "3",
            r#"{"os":"linux","architecture":"arm64","variant":"v8","rootfs":{"type":"layers","diff_ids":["sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"]}}"#
        ),
    ),
    (
        "token",
        concat!(
            "4",
            r#"{"token":"hunter2","access_token":"x","expires_in":300,"Username":"anna","Secret":"hunter2"}"#
        ),
    ),
    (
        "auths",
        concat!(
            "4",
            r#"{"auths":{"r.io":{"auth":"YW5uYTpodW50ZXIy","identitytoken":""}},"credHelpers":{"r.io":"x"}}"#
        ),
    ),
    (
        "refusal",
        concat!("5", r#"{"errors":[{"code":"DENIED","message":"no pull"}]}"#),
    ),
];

const LAYER: &str = r#"{"version":1,"blob":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","location":"1:2:3:sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","slot":7,"index_sum":"00","meta_sum":"11","proof":{"quarantined":"why"},"patches":[{"key":"ab","slot":8,"sum":"22"}]}"#;

const PROFILE: &str = r#"{"version":1,"image":"r.io/a:1","layers":[{"index":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","blob":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","diff_id":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","reads":[[0,12],[153,13]]}]}"#;

/// What says of 74 chunks that some are there.
fn present() -> Vec<u8> {
    let mut seed = vec![130];
    seed.extend(b"LARDERPR");
    for word in [74_u64, 5, 1] {
        seed.extend(word.to_le_bytes());
    }
    seed
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
