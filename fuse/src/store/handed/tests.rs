//! Which pages of a device stay in memory, on a real disk.

use std::fs::FileTimes;
use std::io::IoSliceMut;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use larder_test_support::layer::LayerFixture;
use larder_test_support::rot::rot;
use rustix::io::{ReadWriteFlags, preadv2};

use super::super::disk::StdDisk;
use super::super::evict::tests::{fixture, layer, publish};
use super::super::root::StoreRoot;
use super::super::stored::StoredLayer;

/// A layer of which all is there and durable.
fn whole(root: &Path, fixture: &LayerFixture) -> (StoreRoot, StoredLayer) {
    let (root, layer) = layer(root, fixture, Arc::new(StdDisk));
    for row in 0..fixture.chunks.len() {
        publish(&layer, fixture, row);
    }
    layer.sync().unwrap();
    (root, layer)
}

/// Whether a page in the middle of a chunk is in memory.
fn is_in_memory(layer: &StoredLayer, fixture: &LayerFixture, row: usize) -> bool {
    let at = fixture.chunks[row].offset + 16_384;
    let (mut bytes, now) = ([0; 8], ReadWriteFlags::NOWAIT);
    preadv2(
        layer.device.file(),
        &mut [IoSliceMut::new(&mut bytes)],
        at,
        now,
    )
    .is_ok()
}

/// Reads the first bytes of a chunk as for a reply; whether they are right.
fn read(layer: &StoredLayer, fixture: &LayerFixture, row: usize) -> bool {
    let chunk = fixture.chunks[row];
    let mut bytes = vec![0; 4096];
    let is_there = layer.read_there(row..=row, |there| {
        there.read(&mut bytes, chunk.offset);
        Ok(())
    });
    let at = usize::try_from(chunk.offset).unwrap();
    is_there.unwrap() && bytes == fixture.tar[at..at + 4096]
}

/// Promise: pages of a chunk that was handed to the kernel are given back once nobody asked for it for a round; those of
/// one that somebody asks for again and again stay, and of one that nobody asked for yet.
#[test]
fn what_was_handed_over_and_rests_is_given_back() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = whole(scratch.path(), &fixture);
    let (rests, wanted, unread) = (2, 4, 6);
    for row in [rests, wanted] {
        assert!(read(&layer, &fixture, row));
    }
    assert_eq!(layer.give_back_pages(), []);
    for row in [rests, wanted, unread] {
        assert!(
            is_in_memory(&layer, &fixture, row),
            "{row}: a round is to pass"
        );
    }
    assert!(read(&layer, &fixture, wanted));
    let chunk = fixture.chunks[rests];
    let given = chunk.offset..chunk.end();
    assert_eq!(layer.give_back_pages(), [given]);
    let stay = [rests, wanted, unread].map(|row| is_in_memory(&layer, &fixture, row));
    assert_eq!(stay, [false, true, true]);
    assert_eq!(layer.give_back_pages().len(), 1, "the other one rests, too");
    assert_eq!(layer.give_back_pages(), [], "each once");
}

/// Promise: what was given back is verified when it is read again, since a disk may have changed it meanwhile.
#[test]
fn what_was_given_back_is_verified_when_it_comes_again() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = whole(scratch.path(), &fixture);
    let rows = 1..4;
    assert!(rows.clone().all(|row| read(&layer, &fixture, row)));
    assert_eq!(layer.give_back_pages(), []);
    let together = fixture.chunks[1].offset..fixture.chunks[3].end();
    assert_eq!(layer.give_back_pages(), [together]);
    rot(
        &layer.directory().join("device"),
        fixture.chunks[2].offset + 9000,
    );
    layer.device.sync().unwrap();
    (0..2).for_each(|_| layer.rules.kept.rest());
    assert_eq!(
        rows.map(|row| read(&layer, &fixture, row))
            .collect::<Vec<_>>(),
        [true, false, true]
    );
    assert_eq!(layer.damaged(), 1);
}

/// Promise: of a chunk that is not on the disk yet nothing is given back, and nothing of it is lost.
#[test]
fn what_is_not_on_the_disk_yet_stays() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
    publish(&layer, &fixture, 2);
    assert!(read(&layer, &fixture, 2));
    layer.give_back_pages();
    layer.give_back_pages();
    assert!(read(&layer, &fixture, 2));
    assert_eq!(layer.damaged(), 0);
}

/// Promise: pages of a file that the kernel reads past us are given back once it read it and then did not for a round; they
/// stay as long as it never read it.
#[test]
fn a_file_that_is_read_directly_rests() {
    let scratch = tempfile::tempdir().unwrap();
    let fixture = fixture();
    let (_root, layer) = whole(scratch.path(), &fixture);
    assert!(layer.begin_direct());
    let rounds = |count| (0..count).for_each(|_| assert_eq!(layer.give_back_pages(), []));
    rounds(3);
    // What EROFS leaves behind.
    let device = layer.device.file();
    let leave = || device.set_times(FileTimes::new().set_accessed(SystemTime::now()));
    leave().unwrap();
    rounds(1);
    leave().unwrap();
    rounds(1);
    assert!(
        is_in_memory(&layer, &fixture, 3),
        "it was read in each round"
    );
    // Our looking counts as reading, too.
    rounds(1);
    rounds(1);
    assert!(!is_in_memory(&layer, &fixture, 3));
}
