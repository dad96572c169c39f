//! Images that say different things of one layer: whose files a container gets.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use larder_fuse::Trust;

use super::plane::FakePlane;
use super::world::{World, labels, location, plain};
use crate::lazy::Unfit;
use crate::snapshots::{Labels, SnapshotError};

fn lie() -> Trust {
    Trust::Quarantined("other mode of /bin/su".to_owned())
}

fn quick() -> FakePlane {
    FakePlane {
        proof_takes: Duration::from_millis(30),
        ..FakePlane::default()
    }
}

fn is_quarantined<T>(result: &Result<T, SnapshotError>) -> bool {
    matches!(result, Err(SnapshotError::Unfit(Unfit::Quarantined { .. })))
}

/// Promise: a lying index of one image cannot reach another image with the same chain, whether that
/// names an index or none.
#[tokio::test(flavor = "multi_thread")]
async fn an_unproved_layer_is_not_shared_with_an_image_that_did_not_name_its_index() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("a/1/x", "", labels("c1", "lying")).await);
    assert!(
        world.prepare("b/1/x", "", labels("c1", "lying")).await,
        "the same claim is shared"
    );
    let begin = Instant::now();
    assert!(!world.prepare("c/1/x", "", labels("c1", "honest")).await);
    assert!(!world.prepare("d/1/x", "", plain("c1")).await);
    assert!(begin.elapsed() < Duration::from_secs(20), "two deadlines");
    assert_eq!(world.adoptable("c1", "").len(), 1);
    let lying = location("lying").digest;
    assert_eq!(*world.plane.proofs.lock().unwrap(), [lying, lying]);
}

/// Promise: the proof that another image forces lets it share at once, in the same namespace or another;
/// what it names itself is not fetched.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_proves_true_in_time_is_shared_by_who_named_another() {
    let world = World::new(quick()).await;
    world.plane.will_prove("honest", Trust::Proven);
    assert!(world.prepare("a/1/x", "", labels("c1", "honest")).await);
    assert!(world.prepare("b/1/x", "", labels("c1", "lying")).await);
    assert!(world.prepare("a/2/x", "", labels("c1", "lying")).await);
    assert!(world.prepare("c/1/x", "", plain("c1")).await);
    assert_eq!(world.adoptable("c1", "").len(), 1);
    assert_eq!(world.plane.added.load(Ordering::Relaxed), 1);
    assert_eq!(world.plane.proofs.lock().unwrap().len(), 1, "proved once");
}

/// Promise: where the first image lied, the second one's own index is used, by it and who comes later;
/// also who names the lie gets the honest layer, or unpacks.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_proves_a_lie_is_left_for_the_honest_one() {
    let world = World::new(quick()).await;
    world.plane.will_prove("lying", lie());
    world.plane.will_prove("honest", Trust::Proven);
    assert!(world.prepare("a/1/x", "", labels("c1", "lying")).await);
    let lying = world.adoptable("c1", "");
    assert!(world.prepare("b/1/x", "", labels("c1", "honest")).await);
    let honest = world.adoptable("c1", "");
    assert_eq!(honest.len(), 1);
    assert_ne!(honest, lying);
    assert!(world.prepare("c/1/x", "", labels("c1", "lying")).await);
    assert_eq!(world.adoptable("c1", ""), honest);
    world.unmount_all();
    let world = world.again().await;
    assert_eq!(world.adoptable("c1", ""), honest, "also after a restart");
}

/// Promise: what a claim has no time to prove is unpacked; once proven, it is shared beside that.
#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_comes_late_serves_those_who_come_later() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("a/1/x", "", labels("c1", "first")).await);
    assert!(!world.prepare("b/1/x", "", labels("c1", "other")).await);
    world.commit("b/2/c1", "b/1/x", labels("c1", "other")).await;
    assert!(world.eager()[0].1.contains("could not be proved in time"));
    assert!(!world.prepare("c/1/x", "", labels("c1", "other")).await);
    world.plane.settle("first", Trust::Proven);
    assert!(world.prepare("d/1/x", "", labels("c1", "other")).await);
    world.plane.settle("first", lie());
    assert!(world.prepare("e/1/x", "", labels("c1", "other")).await);
    assert_eq!(world.adoptable("c1", ""), ["b/2/c1"], "what was unpacked");
}

/// Promise: after the proof nothing new runs on a lie: no container, no view, no layer, no mount that is
/// asked for again; and the name of the chain is free for an honest image.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_new_is_mounted_on_a_quarantined_layer() {
    let world = World::new(FakePlane::default()).await;
    assert!(world.prepare("a/1/x", "", labels("c1", "lying")).await);
    let base = world.adoptable("c1", "").remove(0);
    let snapshots = &world.snapshots;
    let none = Labels::new;
    let run = snapshots.prepare("a/2/run".into(), base.clone(), none());
    assert!(run.await.is_ok(), "a claim is believed by who brought it");
    world.plane.settle("lying", lie());
    let prepared = snapshots
        .prepare("a/3/run".into(), base.clone(), none())
        .await;
    assert!(is_quarantined(&prepared), "{prepared:?}");
    let viewed = snapshots.view("a/4/v".into(), base.clone(), none()).await;
    assert!(is_quarantined(&viewed), "{viewed:?}");
    let again = snapshots.mounts("a/2/run".into()).await;
    assert!(is_quarantined(&again), "{again:?}");
    for labels in [labels("c1/c2", "i2"), plain("c1/c2")] {
        let above = snapshots
            .prepare("a/5/x".into(), base.clone(), labels)
            .await;
        assert!(is_quarantined(&above), "{above:?}");
    }
    let told = again.unwrap_err().to_string();
    assert!(told.contains("other mode of /bin/su"), "{told}");
    for key in ["a/3/run", "a/4/v", "a/5/x"] {
        assert!(snapshots.stat(key.into()).await.is_err(), "{key} is left");
    }
    assert!(!world.prepare("b/1/x", "", labels("c1", "lying")).await);
    assert!(world.adoptable("c1", "").is_empty());
    assert!(world.prepare("c/1/x", "", labels("c1", "honest")).await);
    assert_eq!(world.mounted(), 2, "the lie is where it was");
}
