//! What becomes of a layer that can be lazy.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_proto::digest::Digest;

use super::plane::FakePlane;
use super::world::{World, labels, plain};
use crate::containerd::chain_ids;
use crate::plane::Plane;
use crate::snapshots::Labels;

/// Promise: after AlreadyExists, containerd finds exactly one snapshot with label and parent.
#[tokio::test(flavor = "multi_thread")]
async fn a_lazy_layer_is_committed_where_containerd_looks_for_it() {
    let world = World::new(FakePlane::default()).await;
    assert!(
        world
            .prepare("k8s.io/1/extract-1 c1", "", labels("c1", "i1"))
            .await
    );
    let base = world.adoptable("c1", "");
    assert_eq!(base.len(), 1);
    assert!(base[0].starts_with("k8s.io/"), "{}", base[0]);
    let info = world.snapshots.stat(base[0].clone()).await.unwrap();
    assert_eq!(info.labels, labels("c1", "i1"), "all labels are kept");
    assert!(
        world
            .prepare("k8s.io/2/extract-2 c2", &base[0], labels("c1/c2", "i2"))
            .await
    );
    assert_eq!(world.adoptable("c1/c2", &base[0]).len(), 1);
    assert!(world.adoptable("c1/c2", "").is_empty());
    assert_eq!(world.mounted(), 2);
}

/// Promise: 32 parallel Prepare of one layer load it once, and each may adopt it.
#[tokio::test(flavor = "multi_thread")]
async fn of_32_parallel_prepares_of_one_layer_all_share_one_mount() {
    let plane = FakePlane {
        delay: Some(Duration::from_millis(50)),
        ..FakePlane::default()
    };
    let world = Arc::new(World::new(plane).await);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..32 {
        let world = Arc::clone(&world);
        calls.spawn(async move {
            world
                .prepare(&format!("ns{number}/1/x"), "", labels("c", "i"))
                .await
        });
    }
    assert!(calls.join_all().await.into_iter().all(|exists| exists));
    assert_eq!(world.adoptable("c", "").len(), 1);
    assert_eq!(
        (world.mounted(), world.plane.added.load(Ordering::Relaxed)),
        (1, 1)
    );
}

/// Promise: a layer that cannot be lazy in the middle of a lazy chain is unpacked, the next one
/// is lazy again on top of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_falls_back_in_the_middle_of_a_lazy_chain() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/a", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    assert!(!world.prepare("n/2/b", &base, plain("c1/c2")).await);
    let commit = world.snapshots.commit(
        "n/3/c2".into(),
        "n/2/b".into(),
        plain("c1/c2"),
        String::new(),
    );
    commit.await.unwrap();
    assert!(
        world
            .prepare("n/4/c", "n/3/c2", labels("c1/c2/c3", "i3"))
            .await
    );
    let top = world.adoptable("c1/c2/c3", "n/3/c2").remove(0);
    let mounts = world
        .snapshots
        .prepare("n/5/run".into(), top, Labels::new())
        .await
        .unwrap();
    let lowers = mounts[0].options.last().unwrap().split(':').count();
    assert_eq!(lowers, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_unmounts_and_frees_the_layer() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
    let name = world.adoptable("c1", "").remove(0);
    let fs = world
        .snapshots
        .store()
        .fs(world.snapshots.stat(name.clone()).await.unwrap().id);
    world.snapshots.remove(name).await.unwrap();
    world
        .settle(|| !fs.exists() && world.plane.layers().is_empty())
        .await;
    assert_eq!(world.mounted(), 0);
}

#[test]
fn chain_ids_follow_the_image_specification() {
    let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
    let chained = Digest::of(format!("{a} {b}").as_bytes()).to_string();
    assert_eq!(chain_ids(&[a, b]), [a.to_string(), chained]);
    assert!(chain_ids(&[]).is_empty());
}

/// Promise: with `keep_removed`, a layer outlives its last snapshot for as long as it has bytes; a
/// pinned one until it is unpinned.
#[tokio::test(flavor = "multi_thread")]
async fn a_kept_or_pinned_layer_outlives_its_last_snapshot() {
    for (keep, pinned) in [("keep_removed = true", false), ("", true)] {
        let plane = Arc::new(FakePlane::default());
        let dir = tempfile::tempdir().unwrap();
        let world = World::configured(dir, Arc::clone(&plane), keep).await;
        plane.data_on_disk.store(4096, Ordering::Relaxed);
        assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
        if pinned {
            plane.pin(&plane.layers(), "a pin").unwrap();
        }
        let name = world.adoptable("c1", "").remove(0);
        let fs = world.snapshots.store();
        let fs = fs.fs(world.snapshots.stat(name.clone()).await.unwrap().id);
        world.snapshots.remove(name).await.unwrap();
        world.settle(|| !fs.exists()).await;
        assert_eq!((world.mounted(), plane.layers().len()), (0, 1), "{keep}");
        if pinned {
            assert_eq!(plane.unpin("a pin").unwrap().len(), 1);
        } else {
            plane.data_on_disk.store(0, Ordering::Relaxed);
        }
        let lazy = world.snapshots.lazy().unwrap();
        for _ in 0..12_000 {
            let layers = plane.layers();
            let freed = lazy.free(world.snapshots.store(), &layers);
            freed.await.unwrap();
            if plane.layers().is_empty() {
                break;
            }
            // Nothing is freed while something is added, or freed by somebody else.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(plane.layers().is_empty(), "{keep}");
    }
}
