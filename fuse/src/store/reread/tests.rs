//! What is in memory and was not verified there, on a disk that changes bits.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_test_support::rot;
use rustix::fs::{Advice, fadvise};

use super::super::disk::StdDisk;
use super::super::evict::tests::{fixture, layer, publish};

/// Long enough for the kernel to have read what it was asked for, and a second reader to find it.
const DISK: Duration = Duration::from_millis(100);

/// Changes a byte on the disk, and makes the kernel forget the file.
fn rot(path: &Path, at: u64) {
    rot::rot(path, at);
    forget(path);
}

fn forget(path: &Path) {
    let file = OpenOptions::new().read(true).open(path).unwrap();
    file.sync_all().unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

/// Promise: asking whether bytes are in memory makes the kernel read them, and they are not taken for verified
/// by whoever asks next.
#[test]
fn what_was_asked_for_in_vain_is_verified_when_it_comes() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    publish(&layer, &fixture, 1);
    let chunk = fixture.chunks[1];
    let mut byte = [0];
    assert!(layer.read_in_memory(1, &mut byte, chunk.offset).unwrap());
    rot(&layer.directory().join("device"), chunk.offset + 700);
    let mut bytes = vec![0; 4096];
    for _ in 0..2 {
        let found = layer.read_in_memory(1, &mut bytes, chunk.offset);
        assert!(!found.unwrap());
        std::thread::sleep(DISK);
    }
    assert!(!layer.read_verified(&mut bytes, chunk.offset).unwrap());
    assert_eq!(layer.damaged(), 1);
}

/// Promise: reading a chunk from the disk brings the beginning of the next one, which is in the same page, and that
/// is verified before anybody reads it; writing a chunk does, too.
#[test]
fn what_comes_with_a_neighbour_is_verified() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    let device = layer.directory().join("device");
    let shared = fixture.chunks[0].end();
    assert_ne!(shared % 4096, 0);
    for row in [0, 1] {
        publish(&layer, &fixture, row);
    }
    rot(&device, shared + 9);
    let mut bytes = vec![0; 512];
    assert!(layer.read_verified(&mut bytes, shared - 512).unwrap());
    assert!(!layer.read_verified(&mut bytes, shared).unwrap());
    assert_eq!(layer.damaged(), 1);

    publish(&layer, &fixture, 1);
    rot(&device, shared + 9);
    publish(&layer, &fixture, 0);
    assert!(!layer.read_verified(&mut bytes, shared).unwrap());
    assert_eq!(layer.damaged(), 2);
}

/// Promise: what is brought ahead of a reader is verified, and he finds it in memory.
#[test]
fn what_is_brought_ahead_is_in_memory_and_verified() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    let rows = 0..fixture.chunks.len();
    for row in rows.clone() {
        publish(&layer, &fixture, row);
    }
    rot(
        &layer.directory().join("device"),
        fixture.chunks[1].offset + 5,
    );
    layer.bring_ahead(rows.clone());
    assert_eq!(layer.damaged(), 1);
    for (row, chunk) in rows.zip(&fixture.chunks) {
        let found = layer.read_in_memory(row, &mut [0; 8], chunk.offset);
        assert_eq!(found.unwrap(), row != 1, "{row}");
    }
}

/// Promise: a table of chunks that rots while it is mapped costs no more memory than a chunk may have, and no panic.
#[test]
fn a_table_that_rots_while_it_is_mapped_is_bounded() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    let rows = 0..fixture.chunks.len();
    rows.clone().for_each(|row| {
        publish(&layer, &fixture, row);
    });
    let chunk = fixture.chunks[3];
    let mut written = chunk.offset.to_le_bytes().to_vec();
    written.extend(chunk.stored_offset.to_le_bytes());
    let path = layer.directory().join("index");
    let index = std::fs::read(&path).unwrap();
    let at = index.windows(16).position(|all| all == written).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for (place, bytes) in [
        (at + 16, u64::MAX.to_le_bytes()),
        (at, u64::MAX.to_le_bytes()),
        (at, [0; 8]),
    ] {
        file.write_all_at(&bytes, place as u64).unwrap();
        forget(&layer.directory().join("device"));
        let seen = layer.index().chunk(3).unwrap();
        assert_ne!(seen, chunk);
        assert!(seen.len <= larder_proto::limits::CHUNK_BYTES_MAX);
        let mut bytes = vec![0; 4096];
        for row in rows.clone() {
            let begin = fixture.chunks[row].offset;
            let wanted = &fixture.tar[usize::try_from(begin).unwrap()..][..512];
            if let Ok(true) = layer.read_verified(&mut bytes[..512], begin) {
                assert!(bytes[..512] == *wanted, "{row}");
            }
        }
    }
}
