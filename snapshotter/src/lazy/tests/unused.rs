//! What becomes of layers that no snapshot has.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_proto::digest::Digest;

use super::plane::FakePlane;
use super::world::{World, labels, location};
use crate::lazy::Kept;
use crate::plane::Plane;

/// A layer that lies on another.
const IMAGE: [&str; 2] = ["i1", "i2"];

fn index(name: &str) -> Digest {
    location(name).digest
}

/// A node on which the image was pulled, `more` in its configuration.
async fn pulled(plane: FakePlane, more: &str) -> World {
    let plane = Arc::new(plane);
    plane.data_on_disk.store(4096, Ordering::Relaxed);
    let world = World::configured(tempfile::tempdir().unwrap(), plane, more).await;
    pull(&world).await;
    world
}

async fn pull(world: &World) {
    assert!(world.prepare("n/1/x", "", labels("c1", IMAGE[0])).await);
    let base = world.adoptable("c1", "").remove(0);
    let above = labels("c1/c2", IMAGE[1]);
    assert!(world.prepare("n/2/x", &base, above).await);
}

/// Removes the snapshot of the image's upper layer, and with `all` that of the lower one.
async fn remove(world: &World, all: bool) {
    let base = world.adoptable("c1", "").remove(0);
    let top = world.adoptable("c1/c2", &base).remove(0);
    let left = usize::from(!all);
    for name in [top, base].into_iter().take(2 - left) {
        world.snapshots.remove(name).await.unwrap();
    }
    world
        .settle(|| world.mounted() == left && world.snapshots.store().removed().unwrap().is_empty())
        .await;
}

async fn unpin(world: &World, name: &str) {
    let layers = world.plane.unpin(name).unwrap();
    let lazy = world.snapshots.lazy().unwrap();
    let freed = lazy.unpinned(world.snapshots.store(), &layers).await;
    // Or the sweep was at it, which comes again.
    assert!(freed.unwrap() <= layers.len());
}

/// Regression: what was pinned when its last snapshot went was kept for minutes after it was unpinned.
///
/// Promise: with its last pin a layer goes that no snapshot has, at once; one that a snapshot has stays.
#[tokio::test(flavor = "multi_thread")]
async fn unpinning_frees_what_no_snapshot_has() {
    let world = pulled(FakePlane::default(), "").await;
    let [lower, upper] = IMAGE.map(index);
    world.plane.pin(&[lower, upper], "a pin").unwrap();
    remove(&world, false).await;
    let lazy = world.snapshots.lazy().unwrap();
    assert_eq!(world.plane.layers().len(), 2);
    assert_eq!(lazy.kept(&upper), Kept::Pinned);
    unpin(&world, "a pin").await;
    world.settle(|| world.plane.layers() == [lower]).await;
    assert_eq!(world.mounted(), 1, "a snapshot has the other one");
}

/// Promise: with `keep_removed`, unpinning frees nothing that has bytes.
#[tokio::test(flavor = "multi_thread")]
async fn unpinning_frees_nothing_where_removed_layers_are_kept() {
    let world = pulled(FakePlane::default(), "keep_removed = true").await;
    let [lower, upper] = IMAGE.map(index);
    world.plane.pin(&[lower], "a pin").unwrap();
    remove(&world, true).await;
    let lazy = world.snapshots.lazy().unwrap();
    let kept = |layer| lazy.kept(layer);
    assert_eq!([&lower, &upper].map(kept), [Kept::Pinned, Kept::Removed]);
    unpin(&world, "a pin").await;
    lazy.sweep(world.snapshots.store()).await.unwrap();
    assert_eq!(world.plane.layers().len(), 2);
    world.plane.data_on_disk.store(0, Ordering::Relaxed);
    assert_eq!(kept(&lower), Kept::Passing, "everything of it was evicted");
}

/// Promise: a start without `keep_removed` frees what was kept for it alone: not what a snapshot has or a pin keeps,
/// and not what came a moment ago, which may be asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_keep_removed_frees_what_was_kept_for_it() {
    for (age, pinned, stays) in [
        (Duration::from_secs(3), false, true),
        (Duration::from_hours(1), true, true),
        (Duration::from_hours(1), false, false),
    ] {
        let world = pulled(FakePlane::default(), "keep_removed = true").await;
        let [lower, upper] = IMAGE.map(index);
        if pinned {
            world.plane.pin(&[upper], "a pin").unwrap();
        }
        remove(&world, false).await;
        assert_eq!(world.plane.layers().len(), 2);
        let seconds = usize::try_from(age.as_secs()).unwrap();
        world.plane.age_seconds.store(seconds, Ordering::Relaxed);
        world.unmount_all();
        let world = world.again().await;
        if stays {
            let lazy = world.snapshots.lazy().unwrap();
            lazy.sweep(world.snapshots.store()).await.unwrap();
            assert_eq!(world.plane.layers().len(), 2, "{age:?}, {pinned}");
        } else {
            world.settle(|| world.plane.layers() == [lower]).await;
        }
        assert_eq!(world.mounted(), 1);
    }
}

/// Regression: a layer that could not be freed, since somebody had it mounted, kept all those from going that came
/// behind it.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_go_keeps_no_other() {
    let mut both = IMAGE.map(index);
    both.sort();
    let [held, _] = both;
    let plane = FakePlane {
        held: vec![held],
        ..FakePlane::default()
    };
    let world = pulled(plane, "").await;
    world.plane.pin(&both, "a pin").unwrap();
    remove(&world, true).await;
    let layers = world.plane.unpin("a pin").unwrap();
    assert_eq!(layers, both);
    let lazy = world.snapshots.lazy().unwrap();
    drop(lazy.unpinned(world.snapshots.store(), &layers).await);
    world.settle(|| world.plane.layers() == [held]).await;
}
