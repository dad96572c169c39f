//! On a disk that changes bits, and below programs that change files.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_proto::index::Chunk;
use larder_test_support::layer::LayerFixture;
use larder_test_support::rot;
use rustix::fs::{Advice, fadvise};

use super::super::device::Published;
use super::super::disk::{Disk, StdDisk};
use super::super::evict::tests::{fixture, layer, publish};
use super::super::stored::StoredLayer;
use super::super::vouched::Vouched;

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

/// Reads the first bytes of a chunk; whether they are there.
fn is_read(layer: &StoredLayer, fixture: &LayerFixture, row: usize) -> bool {
    let chunk = fixture.chunks[row];
    let mut bytes = vec![0; usize::try_from(chunk.len).unwrap().min(4096)];
    let is_there = layer.read_verified(&mut bytes, chunk.offset);
    let at = usize::try_from(chunk.offset).unwrap();
    assert!(
        !is_there || bytes == fixture.tar[at..at + bytes.len()],
        "{row}"
    );
    is_there
}

/// Regression: the kernel reads more of a file than it is asked for when it pleases, as after it tried to free pages that were
/// being written; what it had in memory was taken for verified.
///
/// Promise: rot is found although the kernel has the chunk in memory, whoever brought it there.
#[test]
fn rot_is_found_whoever_brought_it_into_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    let device = layer.directory().join("device");
    for row in 0..3 {
        publish(&layer, &fixture, row);
    }
    rot(&device, fixture.chunks[1].offset + 700);
    let brought = std::fs::read(&device).unwrap();
    assert_ne!(brought, fixture.tar);
    let found = [0, 1, 2].map(|row| is_read(&layer, &fixture, row));
    assert_eq!(found, [true, false, true]);
    assert_eq!(layer.damaged(), 1);
}

type Harm<'a> = &'a dyn Fn(&std::fs::File);

/// Promise: whatever somebody else makes a hole of, in the middle or to the end, and whether the file is long enough
/// again or not, its zeros are nobody's bytes: the chunks are counted as damaged, once each, and are right
/// when they were written again.
#[test]
fn a_hole_that_somebody_made_is_never_read_as_zeros() {
    let fixture = fixture();
    let (middle, len) = (fixture.chunks[3], fixture.tar.len() as u64);
    let long = len.next_multiple_of(4096);
    let has_data = |chunk: &&Chunk| {
        let place = |at: u64| usize::try_from(at).unwrap();
        let content = &fixture.tar[place(chunk.offset)..place(chunk.end())];
        content.iter().any(|&byte| byte != 0)
    };
    let with_data = fixture.chunks.iter().filter(has_data).count();
    let harms: [(&str, Harm<'_>); 4] = [
        ("truncated to 0", &|file| file.set_len(0).unwrap()),
        ("truncated and extended", &|file| {
            file.set_len(0).unwrap();
            file.set_len(long).unwrap();
        }),
        ("cut in the middle of a chunk", &|file| {
            file.set_len(middle.offset + 9000).unwrap();
        }),
        ("a hole in the middle of a chunk", &|file| {
            let start = (middle.offset + 4096).next_multiple_of(4096);
            StdDisk.punch(file, start..start + 4096).unwrap();
        }),
    ];
    for (harm, make) in harms {
        let scratch = tempfile::tempdir().unwrap();
        let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
        let rows = 0..fixture.chunks.len();
        for row in rows.clone() {
            publish(&layer, &fixture, row);
        }
        let device = layer.device.file();
        make(&device);
        let mut lost = 0;
        // In pieces, as readers ask; then all of it once more, of what was written meanwhile.
        for round in 0..2 {
            for row in rows.clone() {
                let chunk = fixture.chunks[row];
                for at in (chunk.offset..chunk.end()).step_by(4096) {
                    let mut bytes = vec![0; 4096.min(usize::try_from(chunk.end() - at).unwrap())];
                    if !layer.read_verified(&mut bytes, at) {
                        lost += 1;
                        assert_eq!(publish(&layer, &fixture, row), Published::Stored);
                        assert!(layer.read_verified(&mut bytes, at), "{harm}");
                    }
                    let wanted = &fixture.tar[usize::try_from(at).unwrap()..][..bytes.len()];
                    assert!(bytes == *wanted, "{harm}, round {round}, chunk {row}");
                }
            }
        }
        assert_eq!(layer.damaged(), lost, "{harm}");
        let all = if harm == "truncated to 0" || harm == "truncated and extended" {
            with_data
        } else {
            1
        };
        assert!(lost >= all as u64, "{harm}: {lost}");
    }
}

/// Promise: what somebody took away of a chunk, so that a part of it is left, the next daemon does not believe, though it was
/// verified in this boot: what is a hole is not in memory.
#[test]
fn a_chunk_with_a_hole_in_it_is_not_believed_by_the_next_daemon() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (mut root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    drop(layer);
    let vouched = Vouched::new(Duration::from_hours(1)).unwrap();
    let memory = vouched.as_fd().try_clone_to_owned().unwrap();
    root.believe(vouched);
    let (_, layer) = root.layers().remove(0);
    // Whole blocks: a part of one is written, and in memory.
    let hole = |row: usize| {
        let chunk = fixture.chunks[row];
        (chunk.offset + 4096).next_multiple_of(4096)..chunk.end() / 4096 * 4096
    };
    let all = 0..fixture.chunks.len();
    all.clone().for_each(|row| {
        publish(&layer, &fixture, row);
    });
    let rows: Vec<_> = all.filter(|&row| !hole(row).is_empty()).collect();
    assert!(rows.len() > 7);
    let device = layer.device.file();
    drop(layer);
    device.sync_all().unwrap();
    for &row in &rows {
        StdDisk.punch(&device, hole(row)).unwrap();
    }
    root.believe(Vouched::of(memory, Duration::from_hours(1)).unwrap());
    let (_, layer) = root.layers().remove(0);
    for &row in &rows {
        assert!(layer.presence().was_verified(row), "by a daemon before");
        let is_right = layer.read_verified(&mut [1; 8], hole(row).end - 8);
        assert!(!is_right, "{row}");
    }
    assert_eq!(layer.damaged(), rows.len() as u64);
}

/// Promise: a chunk is read from the disk once while it is read, and from there again when nobody read it for a while.
#[test]
fn what_is_read_is_kept_for_a_while() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    let device = layer.directory().join("device");
    publish(&layer, &fixture, 1);
    assert!(is_read(&layer, &fixture, 1));
    rot(&device, fixture.chunks[1].offset + 700);
    for _ in 0..3 {
        assert!(is_read(&layer, &fixture, 1));
        layer.rules.kept.rest();
    }
    layer.rules.kept.rest();
    assert!(!is_read(&layer, &fixture, 1));
    assert_eq!(layer.damaged(), 1);
}

/// Promise: what is brought ahead of a reader is verified, and he finds it in memory; what is damaged is found.
#[test]
fn what_is_brought_ahead_is_verified_and_kept() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    let rows = 0..fixture.chunks.len();
    for row in rows.clone() {
        publish(&layer, &fixture, row);
    }
    let device = layer.directory().join("device");
    rot(&device, fixture.chunks[1].offset + 5);
    layer.bring_ahead(rows.clone());
    assert_eq!(layer.damaged(), 1);
    // Nothing of the disk is right any more, nor asked.
    File::create(&device).unwrap();
    for row in rows {
        assert_eq!(is_read(&layer, &fixture, row), row != 1, "{row}");
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
            if layer.read_verified(&mut bytes[..512], begin) {
                assert!(bytes[..512] == *wanted, "{row}");
            }
        }
    }
}
