//! What converting one layer promises.

use std::io::{Cursor, Read as _, Write as _};
use std::num::NonZero;
use std::os::unix::fs::FileExt as _;

use larder_proto::digest::Algorithm;
use larder_test_support::tar::{Entry, TarBuilder};

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A tar of a few hundred files, small and large, with contents that compress and that do not.
fn tar() -> Vec<u8> {
    let mut state = 1_u32;
    let mut noise = |len: usize| -> Vec<u8> {
        let step = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..len).map(step).collect()
    };
    let mut tar = TarBuilder::new().entry(Entry::directory("usr/"));
    for number in 0..300 {
        let text = format!("file number {number}\n").repeat(number * 7);
        tar = tar.entry(Entry::file(format!("usr/{number:03}"), text));
    }
    tar.entry(Entry::file("noise", noise(1_500_000)))
        .entry(Entry::file("zeros", vec![0; 9_000_000]))
        .entry(Entry::symlink("link", "usr/001"))
        .finish()
}

fn options(chunk: u64) -> LayerOptions {
    LayerOptions::new(3, chunk, Algorithm::Blake3).unwrap()
}

fn output() -> LayerOutput {
    LayerOutput {
        file: tempfile::tempfile().unwrap(),
        stays: true,
    }
}

struct Case {
    blob: Vec<u8>,
    diff_id: Digest,
    digest: Option<Digest>,
    size: Option<u64>,
}

impl Case {
    fn new(blob: Vec<u8>, tar: &[u8]) -> Self {
        Self {
            blob,
            diff_id: Digest::of(tar),
            digest: None,
            size: None,
        }
    }

    fn run(self, options: LayerOptions, jobs: usize) -> Result<Outcome, LayerError> {
        let input = LayerInput {
            digest: self.digest.unwrap_or_else(|| Digest::of(&self.blob)),
            size: self.size.unwrap_or(self.blob.len() as u64),
            diff_id: self.diff_id,
            blob: Box::new(Cursor::new(self.blob)),
        };
        let workers = Workers::start(options, NonZero::new(jobs).unwrap()).unwrap();
        convert_layer(input, &workers, output(), &Cancel::default(), &|_| {})
    }

    fn converted(self, options: LayerOptions, jobs: usize) -> ConvertedLayer {
        match self.run(options, jobs).unwrap() {
            Outcome::Converted(layer) => layer,
            Outcome::Unrepresentable(reason) => panic!("{reason}"),
        }
    }

    fn error(self) -> String {
        self.run(LayerOptions::default(), 2)
            .unwrap_err()
            .to_string()
    }
}

fn bytes(layer: &ConvertedLayer) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(layer.size).unwrap()];
    layer.file.read_exact_at(&mut out, 0).unwrap();
    out
}

/// Promise: decompressing a converted layer gives back the source's tar, bit for bit, for any
/// decoder; the blob begins as other tools expect and has the digest that is reported.
#[test]
fn a_converted_layer_decompresses_to_the_source_tar() {
    let tar = tar();
    for chunk in [64 << 10, 256 << 10, 1 << 20] {
        let layer = Case::new(gzip(&tar), &tar).converted(options(chunk), 2);
        let blob = bytes(&layer);
        assert_eq!(blob[..4], [0x28, 0xb5, 0x2f, 0xfd]);
        assert_eq!(Digest::of(&blob), layer.digest);
        assert_eq!(layer.tar_len, tar.len() as u64);
        let mut out = Vec::new();
        zstd::stream::read::Decoder::new(&blob[..])
            .unwrap()
            .read_to_end(&mut out)
            .unwrap();
        assert!(out == tar, "chunk size {chunk}");
    }
}

/// Promise: the same tar and options give the same blob, whatever the number of threads and
/// however the source compressed it.
#[test]
fn the_blob_depends_on_tar_and_options_alone() {
    let tar = tar();
    let members = [gzip(&tar[..1_000_001]), gzip(&tar[1_000_001..])].concat();
    let zstd = zstd::bulk::compress(&tar, 1).unwrap();
    let reference = Case::new(gzip(&tar), &tar)
        .converted(options(256 << 10), 1)
        .digest;
    for (blob, jobs) in [
        (gzip(&tar), 2),
        (gzip(&tar), 7),
        (members, 2),
        (zstd, 3),
        (tar.clone(), 2),
    ] {
        assert_eq!(
            Case::new(blob, &tar)
                .converted(options(256 << 10), jobs)
                .digest,
            reference
        );
    }
    let other = Case::new(gzip(&tar), &tar).converted(options(128 << 10), 2);
    assert_ne!(other.digest, reference);
}

/// Promise: a converted layer is itself a layer that converts, to itself.
#[test]
fn converting_a_converted_layer_changes_nothing() {
    let tar = tar();
    let once = Case::new(gzip(&tar), &tar).converted(options(256 << 10), 2);
    let twice = Case::new(bytes(&once), &tar).converted(options(256 << 10), 2);
    assert_eq!(once.digest, twice.digest);
}

/// Promise: bad input is named in one sentence that says what is wrong with which layer.
#[test]
fn bad_layers_are_refused_with_the_reason() {
    let tar = tar();
    let good = gzip(&tar);
    let digest = Digest::of(&good).to_string();
    let cut = good[..good.len() / 2].to_vec();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 0x55;
    let expected = Some(Digest::of(&good));
    let size = Some(good.len() as u64);

    // The source gives other bytes than its manifest says.
    for (blob, text) in [(cut.clone(), "damaged"), (flipped, "damaged")] {
        let error = Case {
            digest: expected,
            size,
            ..Case::new(blob, &tar)
        }
        .error();
        assert!(error.contains(&digest) && error.contains(text), "{error}");
    }
    let longer = [&good[..], b"more"].concat();
    let error = Case {
        digest: expected,
        size,
        ..Case::new(longer, &tar)
    }
    .error();
    assert!(
        error.contains("has") && error.contains("its manifest says"),
        "{error}"
    );

    // The manifest vouches for it, and still it is bad.
    let error = Case::new(cut, &tar).error();
    assert!(error.contains("cut off"), "{error}");
    let error = Case::new(good, b"another tar").error();
    assert!(error.contains("diffID"), "{error}");
    for bytes in [
        &b"this is not a tar at all"[..],
        &[7; 5000],
        b"PK\x03\x04 a zip file",
    ] {
        let error = Case::new(gzip(bytes), bytes).error();
        assert!(error.contains("is not a tar"), "{error}");
    }
}

/// Promise: a layer that is intact but cannot be represented is no failure; a wrong diffID still is.
#[test]
fn what_cannot_be_represented_is_said_only_of_intact_layers() {
    let tar = TarBuilder::new()
        .entry(Entry::file("a", b"x").xattr("trusted.overlay.opaque", "y"))
        .entry(Entry::file("b", vec![1; 2_000_000]))
        .finish();
    match Case::new(gzip(&tar), &tar)
        .run(LayerOptions::default(), 2)
        .unwrap()
    {
        Outcome::Unrepresentable(reason) => assert!(reason.contains('a'), "{reason}"),
        Outcome::Converted(_) => panic!("converted"),
    }
    let error = Case::new(gzip(&tar), b"another tar").error();
    assert!(error.contains("diffID"), "{error}");
}

/// Promise: a conversion that is cancelled says so and ends.
#[test]
fn a_cancelled_conversion_ends() {
    let tar = tar();
    let blob = gzip(&tar);
    let cancel = Cancel::default();
    cancel.cancel();
    let workers = Workers::start(LayerOptions::default(), NonZero::new(2).unwrap()).unwrap();
    let input = LayerInput {
        digest: Digest::of(&blob),
        size: blob.len() as u64,
        diff_id: Digest::of(&tar),
        blob: Box::new(Cursor::new(blob)),
    };
    let error = convert_layer(input, &workers, output(), &cancel, &|_| {}).unwrap_err();
    assert!(matches!(error, LayerError::Cancelled));
}
