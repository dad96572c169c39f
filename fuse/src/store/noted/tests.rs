//! What is damage, and what is only left of a daemon that was killed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use larder_proto::verified::Verified;
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};
use tempfile::TempDir;

use super::super::device::Published;
use super::super::disk::StdDisk;
use super::super::root::{Limits, StoreRoot};
use super::super::stored::{Checked, NewLayer};
use super::*;

const LIMITS: Limits = Limits {
    bytes_max: 0,
    min_free_percent: 0,
};

/// A disk on which, once it is full, no bits can be written.
#[derive(Debug, Default)]
struct Filling(AtomicBool);

impl Disk for Filling {
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let has_bits = path.ends_with(PRESENT) || path.ends_with(KNOWN);
        if has_bits && self.0.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        StdDisk.replace(path, bytes)
    }
}

/// A layer of some chunks without zeros, in a store that is opened again and again.
struct Scene {
    scratch: TempDir,
    fixture: LayerFixture,
    disk: Arc<Filling>,
}

impl Scene {
    fn new() -> Self {
        let bytes: Vec<u8> = (1..=250).cycle().take(600_000).collect();
        let tar = TarBuilder::new().entry(Entry::file("data", bytes));
        let fixture = LayerFixture::new(tar.finish());
        assert!(fixture.chunks.len() > 7);
        Self {
            scratch: tempfile::tempdir().unwrap(),
            fixture,
            disk: Arc::default(),
        }
    }

    fn open(&self) -> (StoreRoot, StoredLayer) {
        let root = StoreRoot::open(self.scratch.path(), self.disk.clone(), LIMITS, None).unwrap();
        let new = NewLayer {
            blob: self.fixture.digest,
            location: self.fixture.index,
            index: &self.fixture.decoded_index(),
            slot: 1,
        };
        let layer = root.add(&new).unwrap();
        (root, layer)
    }

    fn content(&self, row: usize) -> Vec<u8> {
        let chunk = self.fixture.chunks[row];
        let place = |at: u64| usize::try_from(at).unwrap();
        self.fixture.tar[place(chunk.offset)..place(chunk.end())].to_vec()
    }

    fn publish(&self, layer: &StoredLayer, row: usize) {
        let chunk = self.fixture.chunks[row];
        let content = Verified::check(self.content(row), &chunk.content).unwrap();
        let published = layer.publish(row, &chunk, &content, true);
        assert_eq!(published, Published::Stored);
    }

    /// What a daemon leaves that is killed while it writes a chunk.
    fn publish_in_part(&self, layer: &StoredLayer, row: usize) {
        let content = self.content(row);
        let at = self.fixture.chunks[row].offset;
        let part = &content[..content.len() / 2];
        StdDisk.write_at(&layer.device.file(), part, at).unwrap();
    }

    fn rot(&self, layer: &StoredLayer, row: usize) {
        let at = self.fixture.chunks[row].offset + 9;
        StdDisk.write_at(&layer.device.file(), b"rot", at).unwrap();
    }

    /// Verifies everything that seems to be there; the rows that were wrong.
    fn verify(&self, layer: &StoredLayer) -> Vec<usize> {
        let there = layer.presence().rows(|state| state != ChunkState::Absent);
        there
            .filter(|&row| layer.verify(row, &self.fixture.chunks[row]) == Checked::Damaged)
            .collect()
    }
}

/// Promise: what a daemon that was killed left in part is fetched again, and never called damage: not by the next
/// one, and not after any number of kills and an orderly end, which write the guesses down.
#[test]
fn what_a_killed_daemon_left_in_part_is_no_damage_after_an_orderly_end() {
    let scene = Scene::new();
    let (root, layer) = scene.open();
    scene.publish(&layer, 0);
    layer.sync().unwrap();
    scene.publish(&layer, 2);
    scene.publish_in_part(&layer, 4);
    drop((layer, root));
    for _ in 0..3 {
        let (root, layer) = scene.open();
        layer.presence().mark_dirty();
        layer.sync().unwrap();
        drop((layer, root));
    }
    let (root, layer) = scene.open();
    layer.presence().mark_dirty();
    layer.sync().unwrap();
    root.end();
    drop((layer, root));

    let (_root, layer) = scene.open();
    let wrong = scene.verify(&layer);
    assert!(wrong.contains(&4), "its part was claimed: {wrong:?}");
    assert_eq!(layer.damaged(), 0, "{wrong:?}");
    let states = [0, 2, 4].map(|row| layer.presence().state(row));
    let (right, absent) = (ChunkState::Verified, ChunkState::Absent);
    assert_eq!(states, [right, right, absent]);
}

/// Promise: what was durable when the bits were last written, and is wrong after a bad end, is damage, and counted;
/// of what came later nobody can tell.
#[test]
fn rot_of_what_was_durable_is_damage_after_a_bad_end() {
    let scene = Scene::new();
    let (root, layer) = scene.open();
    scene.publish(&layer, 0);
    scene.publish(&layer, 2);
    layer.sync().unwrap();
    scene.publish(&layer, 5);
    scene.rot(&layer, 2);
    scene.rot(&layer, 5);
    drop((layer, root));
    let (_root, layer) = scene.open();
    let wrong = scene.verify(&layer);
    assert!(wrong.contains(&2) && wrong.contains(&5), "{wrong:?}");
    assert_eq!(layer.damaged(), 1);
    // It is fetched, and counted no second time.
    scene.publish(&layer, 2);
    assert_eq!(layer.verify(2, &scene.fixture.chunks[2]), Checked::Intact);
    assert_eq!(layer.damaged(), 1);
}

/// Promise: a chunk that was taken away is not known any more, also where a full disk keeps that from being written
/// down, and however the daemon ends; what is left of it is no damage, and what was not taken away is still used.
#[test]
fn what_was_taken_away_on_a_full_disk_is_no_damage() {
    for is_orderly in [true, false] {
        let scene = Scene::new();
        let (root, layer) = scene.open();
        for row in 0..scene.fixture.chunks.len() {
            scene.publish(&layer, row);
        }
        layer.sync().unwrap();
        scene.disk.0.store(true, Ordering::Relaxed);
        let gone = |layer: &StoredLayer| {
            let gone = layer.presence().rows(|state| state == ChunkState::Absent);
            gone.collect::<Vec<_>>()
        };
        // The first round finds that all were just read.
        for _ in 0..2 {
            layer.evict_cold(200_000).unwrap();
        }
        let gone = gone(&layer);
        assert!((2..6).contains(&gone.len()), "{gone:?}");
        scene.publish_in_part(&layer, gone[1]);
        layer.sync().unwrap_err();
        if is_orderly {
            root.end();
        }
        drop((layer, root));
        scene.disk.0.store(false, Ordering::Relaxed);

        let (_root, layer) = scene.open();
        let wrong = scene.verify(&layer);
        assert!(wrong.contains(&gone[1]), "{wrong:?}");
        assert_eq!(layer.damaged(), 0, "{wrong:?}");
        let right = layer.presence().rows(|state| state == ChunkState::Verified);
        let kept = scene.fixture.chunks.len() - gone.len();
        assert_eq!(right.count(), kept);
    }
}

/// Promise: what an earlier build wrote is used, and nothing of it is known; nor of a device that was exchanged.
#[test]
fn nothing_is_known_of_what_was_written_by_others() {
    for change in [KNOWN, "device"] {
        let scene = Scene::new();
        let (root, layer) = scene.open();
        for row in 0..4 {
            scene.publish(&layer, row);
        }
        layer.sync().unwrap();
        root.end();
        let place = layer.directory().join(change);
        drop((layer, root));
        std::fs::remove_file(place).unwrap();

        let (root, layer) = scene.open();
        if change == "device" {
            // Killed before it wrote anything down.
            scene.publish_in_part(&layer, 1);
            drop((layer, root));
            let (_root, layer) = scene.open();
            assert!(scene.verify(&layer).contains(&1));
            assert_eq!(layer.damaged(), 0);
            continue;
        }
        scene.rot(&layer, 3);
        assert!(scene.verify(&layer).contains(&3));
        assert_eq!(layer.damaged(), 0);
        assert_eq!(layer.presence().state(0), ChunkState::Verified);
        layer.sync().unwrap();
        scene.rot(&layer, 0);
        layer.presence().expire();
        assert_eq!(scene.verify(&layer), [0]);
        assert_eq!(layer.damaged(), 1);
    }
}
