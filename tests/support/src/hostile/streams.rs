//! Blobs that are no tar, or one that is compressed with malice.

use super::HostileBlob;
use crate::tar::{Entry, TarBuilder};

pub(super) fn blobs() -> Vec<HostileBlob> {
    let blob = |name, blob: Vec<u8>, refusal| HostileBlob {
        name,
        blob,
        refusal,
    };
    let tar = || TarBuilder::new().entry(Entry::file("f", "x")).finish();
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).expect("zstd compresses");
    let cut = |mut bytes: Vec<u8>, by: usize| {
        bytes.truncate(bytes.len() - by);
        bytes
    };
    let flipped = |mut bytes: Vec<u8>| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        bytes
    };
    vec![
        blob("a-text", b"just a text\n".to_vec(), "not a tar"),
        blob(
            "a-program",
            [b"\x7fELF".as_slice(), &[7; 4_000]].concat(),
            "not a tar",
        ),
        blob("a-page", b"<!DOCTYPE html>".repeat(100), "not a tar"),
        blob("an-xz", b"\xfd7zXZ\0 and more".to_vec(), "xz"),
        blob("a-bzip2", b"BZh91AY&SY and more".to_vec(), "bzip2"),
        blob("noise", noise(300_000), "not a tar"),
        blob("zstd-in-zstd", zstd(&zstd(&tar())), "not a tar"),
        blob("zstd-cut-off", cut(zstd(&tar()), 5), "cut off"),
        blob(
            "zstd-that-is-noise",
            [b"\x28\xb5\x2f\xfd".as_slice(), &noise(4_000)].concat(),
            "zstd",
        ),
        blob("zstd-damaged", flipped(zstd(&noise(100_000))), ""),
        // Windows larger than 128 MiB are memory that nobody needs for a layer.
        blob("zstd-window-of-a-gigabyte", window(30), "zstd"),
        blob("zstd-window-of-two-terabytes", window(41), "zstd"),
        blob("zstd-with-a-dictionary", with_dictionary(), "zstd"),
        blob(
            "skippable-frame-without-its-bytes",
            skippable(u32::MAX, 10),
            "cut off",
        ),
        blob(
            "skippable-frames-alone",
            skippable(0, 0).repeat(100_000),
            "",
        ),
        blob(
            "junk-after-zstd",
            [zstd(&tar()), noise(2_000)].concat(),
            "zstd",
        ),
        blob(
            "zeros-after-zstd",
            [zstd(&tar()), vec![0; 2_000]].concat(),
            "zstd",
        ),
        blob("gzip-name-without-end", gzip_name(), "gzip"),
        blob(
            "gzip-of-nothing",
            b"\x1f\x8b\x08\0\0\0\0\0\0\0".to_vec(),
            "gzip",
        ),
        blob(
            "gzip-of-an-unknown-method",
            b"\x1f\x8b\x07\0\0\0\0\0\0\0 more".to_vec(),
            "gzip",
        ),
    ]
}

/// Bytes without a pattern.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The frame of an empty tar that asks for a window of 2^`log` bytes: frame header descriptor without
/// content size, window descriptor, one last raw block.
fn window(log: u8) -> Vec<u8> {
    let zeros = [0; 1_024];
    let block = (u32::try_from(zeros.len()).expect("a small block") << 3) | 1;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3];
    frame.extend(&block.to_le_bytes()[..3]);
    frame.extend(zeros);
    frame
}

/// A frame that needs dictionary 7.
fn with_dictionary() -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x01, 0x58, 7];
    frame.extend([1, 0, 0]);
    frame
}

/// A skippable frame that announces `len` bytes and has `there` of them.
fn skippable(len: u32, there: usize) -> Vec<u8> {
    let mut frame = vec![0x50, 0x2a, 0x4d, 0x18];
    frame.extend(len.to_le_bytes());
    frame.resize(frame.len() + there, 0);
    frame
}

/// A gzip header whose file name goes on for ten megabytes.
fn gzip_name() -> Vec<u8> {
    let mut member = b"\x1f\x8b\x08\x08\0\0\0\0\0\xff".to_vec();
    member.resize(10 << 20, b'n');
    member
}
