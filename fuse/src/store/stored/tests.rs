//! A layer's files outlive nobody who still has the layer.

use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};

use super::super::disk::StdDisk;
use super::super::root::{Limits, StoreRoot};
use super::*;

/// Promise: who still has a removed layer writes nothing of it down, also when a new one of the same index
/// is there already: its record would have the old slot.
#[test]
fn nothing_is_written_of_a_layer_that_was_removed() {
    let file = Entry::file("data", vec![7; 70_000]);
    let fixture = LayerFixture::new(TarBuilder::new().entry(file).finish());
    let limits = Limits {
        bytes_max: 0,
        min_free_percent: 0,
    };
    let scratch = tempfile::tempdir().unwrap();
    let root = StoreRoot::open(scratch.path(), Arc::new(StdDisk), limits, None).unwrap();
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
