//! What is in memory and was not verified there, on a disk that changes bits, or below others that make holes.

use std::fs::OpenOptions;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use larder_proto::index::Chunk;
use larder_test_support::layer::LayerFixture;
use larder_test_support::rot;
use larder_test_support::tar::{Entry, TarBuilder};
use rustix::fs::{Advice, fadvise};

use super::super::device::Published;
use super::super::disk::{Disk, StdDisk};
use super::super::evict::tests::{fixture, layer, publish};
use super::super::vouched::Vouched;

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

/// Promise: asking whether bytes are in memory brings nothing there, so what a fast disk gives at once is no
/// answer, and the bytes are not taken for verified by whoever asks next.
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
        assert!(!layer.device.is_in_memory(chunk.offset..chunk.end()));
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
        // The kernel keeps a hole that is made in what it still has to write in memory.
        device.sync_all().unwrap();
        make(&device);
        let mut lost = 0;
        // In pieces, as readers ask; then all of it once more, of what was written meanwhile.
        for round in 0..2 {
            for row in rows.clone() {
                let chunk = fixture.chunks[row];
                for at in (chunk.offset..chunk.end()).step_by(4096) {
                    let mut bytes = vec![0; 4096.min(usize::try_from(chunk.end() - at).unwrap())];
                    if !layer.read_verified(&mut bytes, at).unwrap() {
                        lost += 1;
                        assert_eq!(publish(&layer, &fixture, row), Published::Stored);
                        assert!(layer.read_verified(&mut bytes, at).unwrap(), "{harm}");
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

/// Promise: where a file was cut, the rest of that page is zeros in memory. It is nobody's bytes either once the file is as long
/// as before, since a chunk behind it came again.
#[test]
fn the_rest_of_a_page_in_which_the_file_was_cut_is_verified() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    let last = fixture.chunks.len() - 1;
    (0..=last).for_each(|row| {
        publish(&layer, &fixture, row);
    });
    let chunk = fixture.chunks[1];
    let cut = (chunk.offset + 4096).next_multiple_of(4096) + 1000;
    layer.device.file().set_len(cut).unwrap();
    let mut bytes = [1; 512];
    let there = layer.read_verified(&mut bytes, fixture.chunks[last].offset);
    assert!(!there.unwrap());
    publish(&layer, &fixture, last);
    let len = layer.device.file().metadata().unwrap().len();
    assert_eq!(len, layer.device_len());
    assert!(layer.device.is_in_memory(cut..cut + 512), "zeros");
    assert!(!layer.read_verified(&mut bytes, cut).unwrap());
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
        assert!(!is_right.unwrap(), "{row}");
    }
    assert_eq!(layer.damaged(), rows.len() as u64);
}

/// Promise: a chunk of zeros is a hole by right. It is verified when it is first read, and read by memory from then on.
#[test]
fn zeros_that_are_a_hole_by_right_are_verified_once() {
    let scratch = tempfile::tempdir().unwrap();
    let zeros = Entry::file("zeros", vec![0; 600_000]);
    let fixture = LayerFixture::new(TarBuilder::new().entry(zeros).finish());
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    let row = fixture.chunks.len() / 2;
    let chunk = fixture.chunks[row];
    publish(&layer, &fixture, row);
    let mut bytes = vec![1; 4096];
    assert!(!layer.read_in_memory(row, &mut bytes, chunk.offset).unwrap());
    assert!(layer.read_verified(&mut bytes, chunk.offset).unwrap());
    assert!(bytes == [0; 4096]);
    for at in (chunk.offset..chunk.end() - 4096).step_by(4096) {
        assert!(layer.read_in_memory(row, &mut bytes, at).unwrap());
    }
    assert_eq!(layer.damaged(), 0);
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
