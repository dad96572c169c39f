//! Layers that are unpacked in the ordinary way, and what is told of them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use larder_proto::annotation;
use larder_proto::digest::Digest;

use super::plane::FakePlane;
use super::world::{World, chain, labels, location, plain};
use crate::snapshots::Labels;
use crate::store::REF_LABEL;

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_or_failing_registry_means_an_ordinary_unpack_in_time() {
    let plane = FakePlane {
        delay: Some(Duration::from_secs(4)),
        ..FakePlane::default()
    };
    let world = World::new(plane).await;
    let begin = Instant::now();
    assert!(!world.prepare("n/1/x", "", labels("c1", "i1")).await);
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    world
        .settle(|| world.plane.added.load(Ordering::Relaxed) == 1)
        .await;
    assert_eq!(
        world.mounted(),
        0,
        "late work prepares the index and nothing else"
    );
    let refuse = vec![location("i1").digest];
    let world = World::new(FakePlane {
        refuse,
        ..FakePlane::default()
    })
    .await;
    assert!(!world.prepare("n/1/x", "", labels("c1", "i1")).await);
}

/// Promise: where not as much as the index fits the disk, the layer is not unpacked instead, which takes more:
/// containerd gets an error that says so, nothing is left, and the next try after that succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_a_layer_instead_of_unpacking_it() {
    let world = World::new(FakePlane::default()).await;
    world.plane.is_full.store(true, Ordering::Relaxed);
    let (key, parent) = ("n/1/x".to_owned(), String::new());
    let prepared = world
        .snapshots
        .prepare(key, parent, labels("c1", "i1"))
        .await;
    let status = tonic::Status::from(prepared.unwrap_err());
    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    assert!(
        status.message().contains("than the disk has to give"),
        "{status}"
    );
    assert!(world.snapshots.store().stat("n/1/x").is_err());
    world.plane.is_full.store(false, Ordering::Relaxed);
    assert!(world.prepare("n/1/x", "", labels("c1", "i1")).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_labels_mean_an_ordinary_unpack() {
    let world = World::new(FakePlane::default()).await;
    let mut contradicting = labels("c1", "i1");
    let other = Digest::of(b"other").to_string();
    contradicting.insert("containerd.io/snapshot/cri.layer-digest".to_owned(), other);
    let mut damaged = labels("c1", "i1");
    damaged.insert(annotation::INDEX.to_owned(), "1:2".to_owned());
    let mut nowhere = labels("c1", "i1");
    nowhere.remove("containerd.io/snapshot/cri.image-ref");
    let alone = Labels::from([(REF_LABEL.to_owned(), chain("c1"))]);
    for (number, labels) in [contradicting, damaged, nowhere, alone]
        .into_iter()
        .enumerate()
    {
        assert!(
            !world.prepare(&format!("n/{number}/x"), "", labels).await,
            "{number}"
        );
    }
}

/// Promise: `ctr images pull` of containerd 1.x names neither chain nor layer; what it unpacks is
/// reported all the same, with what to do, and what containers write is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_unpacked_without_asking_is_told_with_what_to_do() {
    let world = World::new(FakePlane::default()).await;
    let key = "default/12/extract-165536-aB-9 sha256:1111";
    assert!(!world.prepare(key, "", Labels::new()).await);
    world
        .commit("default/13/sha256:1111", key, Labels::new())
        .await;
    let top = "default/13/sha256:1111";
    assert!(!world.prepare("default/14/run", top, Labels::new()).await);
    world
        .commit("default/15/mine", "default/14/run", Labels::new())
        .await;
    let told = world.eager();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "sha256:1111");
    assert!(told[0].1.contains("larder-snapshotter pull"), "{told:?}");
    assert!(
        world
            .snapshots
            .store()
            .completing("sha256:1111", "")
            .unwrap()
            .is_empty()
    );
}

/// Promise: why a layer is not lazy is still known after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_an_unpacked_layer_survives_a_restart() {
    let world = World::new(FakePlane::default()).await;
    assert!(!world.prepare("n/1/x", "", plain("c1")).await);
    world.commit("n/2/c1", "n/1/x", plain("c1")).await;
    let before = world.eager();
    assert!(before[0].1.contains("no index"), "{before:?}");
    let world = world.again().await;
    assert_eq!(world.eager(), before);
}

/// Promise: a layer that was not ready in time says what the registry answered meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_layer_tells_what_went_wrong_meanwhile() {
    let world = World::new(FakePlane {
        delay: Some(Duration::from_secs(5)),
        trouble: Some("r.test answered 500".to_owned()),
        ..FakePlane::default()
    })
    .await;
    assert!(!world.prepare("n/1/x", "", labels("c1", "i1")).await);
    world.commit("n/2/c1", "n/1/x", labels("c1", "i1")).await;
    let told = world.eager();
    assert!(told[0].1.contains("r.test answered 500"), "{told:?}");
    assert!(told[0].1.contains("not ready within 300ms"), "{told:?}");
}
