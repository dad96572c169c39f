//! Checking one layer, from its first byte to its last.

use std::io::{self, Read};

use larder_proto::annotation::{IndexLocation, StartList};
use larder_proto::digest::Digest;
use larder_proto::erofs::Image;
use larder_proto::index::{Chunk, Index};
use larder_proto::scan::{LayerScan, ScanOptions};
use larder_proto::tree::difference;
use larder_proto::verified::Verified;
use sha2::Digest as _;

use super::LayerCheck;
use crate::decode::decode;
use crate::layer::{Cancel, Tap};
use crate::tail;

/// Bytes of tar read at a time from a layer that is not in Larder's form.
const BUFFER_BYTES: usize = 256 << 10;

/// What the manifest and the config say of a layer.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
    /// The annotation that lists what a start reads of it.
    pub(super) start: Option<String>,
}

/// Checks a layer that is not in Larder's form: its digest and the one of its tar.
pub(super) fn check_plain(
    blob: Box<dyn Read + Send>,
    expected: &Expected,
    mut found: LayerCheck,
) -> LayerCheck {
    let mut tap = Tap::new(blob);
    let mut tar = Tap::new(io::empty());
    let mut read = || {
        let mut decoder = decode(&mut tap)?;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match decoder.read(&mut buffer)? {
                0 => return io::Result::Ok(()),
                count => tar.pass(&buffer[..count]),
            }
        }
    };
    let read = read();
    if let Err(error) = tap.finish(expected.digest, expected.size, &Cancel::default()) {
        found.problem(error.to_string());
    } else if let Err(error) = read {
        found.problem(error.to_string());
    } else {
        found.tar_size = tar.count();
        let diff_id = tar.digest().unwrap_or(expected.digest);
        check_diff_id(expected, diff_id, &mut found);
    }
    found
}

fn check_diff_id(expected: &Expected, diff_id: Digest, found: &mut LayerCheck) {
    if diff_id != expected.diff_id {
        let config = expected.diff_id;
        found.problem(format!(
            "its tar has diffID {diff_id}, the config says {config}"
        ));
    }
}

/// Checks a layer in Larder's form; `tail` is the blob from the stored index on.
pub(super) fn check_larder(
    blob: Box<dyn Read + Send>,
    expected: &Expected,
    location: &IndexLocation,
    tail: &[u8],
    mut found: LayerCheck,
) -> LayerCheck {
    found.larder = true;
    let index = match tail::open(tail, location, expected.size) {
        Ok(index) => index,
        Err(problem) => {
            found.problem(problem);
            return found;
        }
    };
    if index.diff_id() != expected.diff_id {
        found.problem(format!("its index is for diffID {}", index.diff_id()));
    }
    let start = expected.start.as_ref();
    let start = start.map(|text| StartList::of_layer(text, index.chunk_count()));
    if let Some(Err(error)) = start {
        found.problem(error.to_string());
    }
    let mut tap = Tap::new(blob);
    let derived = read_chunks(&mut tap, &index, &mut found);
    if let Err(error) = tap.finish(expected.digest, expected.size, &Cancel::default()) {
        found.problem(error.to_string());
        return found;
    }
    // Without the whole tar there is nothing to compare.
    let Some(derived) = derived else { return found };
    check_diff_id(expected, derived.diff_id, &mut found);
    compare(&index, derived, &mut found);
    found
}

/// What the tar itself says.
struct Derived {
    diff_id: Digest,
    scan: LayerScan,
    cuts: Vec<u64>,
    scan_problem: Option<String>,
}

/// Reads and verifies every chunk. `None`: one was bad, so there is no whole tar.
fn read_chunks(
    blob: &mut impl Read,
    index: &Index<Vec<u8>>,
    found: &mut LayerCheck,
) -> Option<Derived> {
    let mut hasher = sha2::Sha256::new();
    let mut scan = LayerScan::new(ScanOptions {
        chunk_target: index.chunk_target(),
    });
    let (mut cuts, mut scan_problem, mut bad) = (Vec::new(), None, false);
    let mut decoder = zstd::bulk::Decompressor::new().ok()?;
    for (row, chunk) in index.chunks().enumerate() {
        let mut frame = vec![0; chunk.stored_len as usize];
        if let Err(error) = blob.read_exact(&mut frame) {
            found.problem(format!("chunk {row} cannot be read: {error}"));
            return None;
        }
        match open_chunk(&mut decoder, frame, &chunk) {
            Ok(content) => {
                found.chunks += 1;
                found.tar_size += content.len() as u64;
                hasher.update(&content);
                if scan_problem.is_none() {
                    let fed = scan.feed(&content, &mut cuts);
                    scan_problem = fed.err().map(|error| error.to_string());
                }
            }
            Err(problem) => {
                found.problem(format!("chunk {row} {problem}"));
                bad = true;
            }
        }
    }
    let diff_id = Digest::from_bytes(hasher.finalize().into());
    (!bad).then_some(Derived {
        diff_id,
        scan,
        cuts,
        scan_problem,
    })
}

fn open_chunk(
    decoder: &mut zstd::bulk::Decompressor<'static>,
    frame: Vec<u8>,
    chunk: &Chunk,
) -> Result<Vec<u8>, String> {
    let frame = Verified::check(frame, &chunk.frame)
        .map_err(|error| format!("has a damaged frame: {error}"))?;
    let content = decoder
        .decompress(frame.as_slice(), chunk.len as usize)
        .map_err(|error| format!("does not decompress: {error}"))?;
    if content.len() != chunk.len as usize {
        return Err(format!(
            "has {} bytes, the index says {}",
            content.len(),
            chunk.len
        ));
    }
    let content = Verified::check(content, &chunk.content)
        .map_err(|error| format!("has other contents: {error}"))?;
    Ok(content.into_inner())
}

/// Compares what the index says with what the tar says.
fn compare(index: &Index<Vec<u8>>, derived: Derived, found: &mut LayerCheck) {
    let Derived {
        scan,
        mut cuts,
        scan_problem,
        ..
    } = derived;
    let finished = match scan_problem {
        Some(problem) => Err(problem),
        None => scan.finish(&mut cuts).map_err(|error| error.to_string()),
    };
    let layer = match finished {
        Ok(layer) => layer,
        Err(problem) => {
            return found.problem(format!("its tar should not have an index: {problem}"));
        }
    };
    if !index
        .chunks()
        .map(|chunk| chunk.end())
        .eq(cuts.iter().copied())
    {
        found.problem("its chunks are not cut where this version of larder cuts them");
    }
    if !index.implied().eq(layer.implied.iter().map(Vec::as_slice)) {
        found.problem("its implied directories are not those of its tar");
    }
    match Image::open(index.metadata(), index.tar_len()) {
        Err(error) => found.problem(format!("its metadata image is not valid: {error}")),
        Ok(image) => {
            if let Some(difference) = difference(&layer.tree, &image.to_tree()) {
                found.problem(format!("its tree is not the one of its tar: {difference}"));
            }
        }
    }
}
