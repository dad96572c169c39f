//! A layer's files outlive nobody who still has the layer.

use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};

use super::super::disk::StdDisk;
use super::super::presence::ChunkState;
use super::super::root::{Limits, StoreRoot};
use super::super::vouched::Vouched;
use super::*;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Promise: who still has a removed layer writes nothing of it down, also when a new one of the same index
/// is there already: its record would have the old slot.
#[test]
fn nothing_is_written_of_a_layer_that_was_removed() {
    let file = Entry::file("data", vec![7; 70_000]);
    let fixture = LayerFixture::new(TarBuilder::new().entry(file).finish());
    let scratch = tempfile::tempdir().unwrap();
    let root = open_root(scratch.path());
    let add = |slot| {
        let index = &fixture.decoded_index();
        let (blob, location) = (fixture.digest, fixture.index);
        root.add(&NewLayer {
            blob,
            location,
            index,
            slot,
        })
        .unwrap()
    };
    let old = add(1);
    old.set_proof(Proof::Pending).unwrap();
    old.lose_name();
    root.remove(&fixture.index.digest);
    let new = add(2);
    assert!(matches!(
        old.set_proof(Proof::Proven),
        Err(LayerStoreError::Removed)
    ));
    old.presence().set_verified(0);
    old.sync().unwrap();
    assert!(!new.directory().join("present").exists());
    drop(new);
    let record = add(3).record();
    assert_eq!((record.slot, record.proof), (2, Proof::Pending));
}

/// Changes a byte of the file `what`, or takes it away, or all of them.
fn lose(directory: &Path, what: &str) {
    let path = directory.join(what);
    match what {
        "all" => std::fs::remove_dir_all(directory).unwrap(),
        "device" => std::fs::remove_file(path).unwrap(),
        _ => {
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    }
}

fn open_root(path: &Path) -> StoreRoot {
    let limits = Limits {
        bytes_max: 0,
        min_free_percent: 0,
    };
    StoreRoot::open(path, Arc::new(StdDisk), limits, None).unwrap()
}

/// Promise: whatever a layer that is mounted lost, the next daemon puts it back into its old slots, over the
/// files that the kernel may have open, and believes nothing of its bytes; what is left of its metadata needs no
/// index from the network.
#[test]
fn a_layer_that_lost_files_comes_back_in_its_old_place() {
    let file = Entry::file("data", vec![7; 70_000]);
    let fixture = LayerFixture::new(TarBuilder::new().entry(file).finish());
    let index = &fixture.decoded_index();
    let (id, hour) = (fixture.index.digest, Duration::from_hours(1));
    for lost in ["index", "meta", "layer.json", "device", "all"] {
        let scratch = tempfile::tempdir().unwrap();
        let new = |slot| NewLayer {
            blob: fixture.digest,
            location: fixture.index,
            index,
            slot,
        };
        let mut first = open_root(scratch.path());
        first.believe(Vouched::new(hour).unwrap());
        let memory = first.rules().vouched.as_ref().unwrap().as_fd();
        let memory = memory.try_clone_to_owned().unwrap();
        let layer = first.add(&new(5)).unwrap();
        let (_, _, patch) = layer
            .patched(
                "0a",
                None,
                || Ok(6),
                || Ok(layer.index().metadata().to_vec()),
            )
            .unwrap();
        first.own(&id, &layer.record());
        let directory = layer.directory();
        let mut options = std::fs::OpenOptions::new();
        let device = options.write(true).open(directory.join("device"));
        device.unwrap().write_all_at(&fixture.tar, 0).unwrap();
        layer.presence().set_verified(0);
        let number = |name: &str| std::fs::metadata(directory.join(name)).map(|found| found.ino());
        let before = [number("meta").unwrap(), number("device").unwrap()];
        drop((layer, first));
        lose(&directory, lost);

        let mut next = open_root(scratch.path());
        next.believe(Vouched::of(memory, hour).unwrap());
        next.records();
        let needs_no_network = matches!(lost, "meta" | "device");
        assert_eq!(next.open_one(&id).is_ok(), needs_no_network, "{lost}");
        let slot = next.slot_for(&id).unwrap();
        let layer = next.add(&new(slot)).unwrap();
        let former = next.former_patch(&id, "0a");
        let (_, _, again) = layer
            .patched(
                "0a",
                former,
                || Ok(9),
                || Ok(layer.index().metadata().to_vec()),
            )
            .unwrap();
        assert_eq!((slot, layer.record().slot, again), (5, 5, patch), "{lost}");
        assert!(next.new_slot().unwrap() > 6, "{lost}");
        let kept = [number("meta").unwrap(), number("device").unwrap()];
        if !matches!(lost, "device" | "all") {
            assert_eq!(kept, before, "{lost}");
        }
        let expected = match lost {
            "meta" => ChunkState::Verified,
            "device" | "all" => ChunkState::Absent,
            _ => ChunkState::Claimed,
        };
        assert_eq!(layer.presence().state(0), expected, "{lost}");
        next.disown(&[5, 6]);
        assert!(next.slot_for(&id).unwrap() > 6, "{lost}");
    }
}
