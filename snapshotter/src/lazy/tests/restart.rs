//! What is there again after a restart.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_fuse::Trust;

use super::plane::FakePlane;
use super::world::{World, labels};
use crate::snapshots::{Labels, SnapshotError};

/// Promise: after a kill every layer is mounted again at the same path, without the network.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_mounts_every_layer_where_it_was() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    assert!(world.prepare("n/2/x", &base, labels("c1/c2", "i2")).await);
    let top = world.adoptable("c1/c2", &base).remove(0);
    let before = world
        .snapshots
        .prepare("n/3/run".into(), top, Labels::new())
        .await
        .unwrap();
    let mounts = world.unmount_all();
    let world = world.again().await;
    assert_eq!(*world.plane.mounts.lock().unwrap(), mounts);
    assert_eq!(
        world.snapshots.mounts("n/3/run".into()).await.unwrap(),
        before
    );
    assert_eq!(
        world.plane.added.load(Ordering::Relaxed),
        2,
        "nothing was fetched again"
    );
}

/// Promise: a layer that was quarantined stays away after a restart, says so, and nothing is asked for
/// again and again: no index that could be fetched helps.
#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_layer_is_not_fetched_again() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    let (run, none) = ("n/2/run".to_owned(), Labels::new());
    let prepared = world.snapshots.prepare(run.clone(), base, none).await;
    assert!(prepared.is_ok());
    world.unmount_all();
    let lie = Trust::Quarantined("other mode of /bin/sh".to_owned());
    world.plane.settle("i1", lie);
    let world = world.again().await;
    let refused = world.snapshots.mounts(run).await.unwrap_err().to_string();
    for part in ["other mode of /bin/sh", "remove the image"] {
        assert!(refused.contains(part), "{refused}");
    }
    world.fetches_nothing(1).await;
}

/// Promise: a layer whose index was lost makes its children unavailable until it is fetched.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_layer_is_unavailable_and_comes_back() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    world
        .snapshots
        .prepare("n/2/run".into(), base, Labels::new())
        .await
        .unwrap();
    let slow = FakePlane {
        delay: Some(Duration::from_millis(200)),
        ..FakePlane::default()
    };
    let world = world.again_on(Arc::new(slow)).await;
    let gone = world.snapshots.mounts("n/2/run".into()).await;
    assert!(
        matches!(gone, Err(SnapshotError::Unavailable { .. })),
        "{gone:?}"
    );
    world.settle(|| world.mounted() == 1).await;
    let mut back = world.snapshots.mounts("n/2/run".into()).await;
    for _ in 0..6000 {
        if back.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        back = world.snapshots.mounts("n/2/run".into()).await;
    }
    assert!(back.is_ok(), "{back:?}");
}
