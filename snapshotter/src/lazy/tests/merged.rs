//! Chains that are mounted as one.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use larder_fuse::Trust;
use larder_proto::grpc::Mount;

use super::plane::FakePlane;
use super::world::{World, labels};
use crate::snapshots::Labels;

/// As many as are merged without being asked.
const MANY: usize = 16;

/// Pulls an image of `count` layers into `namespace`, each on the one before; the names of their snapshots, the
/// lowest first. With `told`, containerd says which layer is the topmost.
async fn pull(world: &World, namespace: &str, count: usize, told: bool) -> Vec<String> {
    let (mut tars, mut names) = (String::new(), vec![String::new()]);
    for number in 0..count {
        tars = match number {
            0 => "c0".to_owned(),
            _ => format!("{tars}/c{number}"),
        };
        let below = names.last().unwrap().clone();
        let mut labels = labels(&tars, &format!("i{number}"));
        let digest = "sha256:0".to_owned();
        let above = vec![digest; count - number].join(",");
        if told {
            labels.insert("containerd.io/snapshot/cri.image-layers".into(), above);
        }
        let key = format!("{namespace}/{number}/x");
        assert!(world.prepare(&key, &below, labels).await);
        names.push(world.adoptable(&tars, &below).remove(0));
    }
    names.remove(0);
    names
}

async fn run(world: &World, key: &str, top: &str) -> Vec<Mount> {
    let made = world
        .snapshots
        .prepare(key.into(), top.into(), Labels::new());
    made.await.unwrap()
}

/// The lower directories of a container.
fn lowers(mounts: &[Mount]) -> Vec<String> {
    let options = mounts.iter().flat_map(|mount| &mount.options);
    let lower = options.filter_map(|option| option.strip_prefix("lowerdir="));
    let all = lower.flat_map(|lower| lower.split(':'));
    all.map(ToOwned::to_owned).collect()
}

fn is_merged(mounts: &[Mount]) -> bool {
    matches!(&lowers(mounts)[..], [only] if only.starts_with("/merged/"))
}

async fn until_merged(world: &World, key: &str) {
    for _ in 0..6000 {
        let mounts = world.snapshots.mounts(key.into()).await.unwrap();
        if is_merged(&mounts) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{key} is never merged");
}

fn merged(world: &World) -> usize {
    world.plane.merged.lock().unwrap().len()
}

/// Promise: an image of many layers is merged beside the requests; who comes before it is ready waits for
/// nothing and gets the stack, who comes later gets one lower directory.
#[tokio::test(flavor = "multi_thread")]
async fn many_layers_become_one_lower_directory_and_nobody_waits() {
    let plane = FakePlane {
        merging_takes: Duration::from_secs(4),
        ..FakePlane::default()
    };
    let world = World::new(plane).await;
    let top = pull(&world, "n", MANY, false).await.pop().unwrap();
    assert_eq!(world.plane.merges.load(Ordering::Relaxed), 0);
    let began = Instant::now();
    let first = run(&world, "n/50/run", &top).await;
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(lowers(&first).len(), MANY);
    until_merged(&world, "n/50/run").await;
    assert!(is_merged(&run(&world, "n/51/run", &top).await));
    let view = world.snapshots.view("n/52/view".into(), top, Labels::new());
    let view = view.await.unwrap();
    assert_eq!(view[0].r#type, "bind");
    assert!(view[0].source.starts_with("/merged/"), "{view:?}");
    assert_eq!(world.plane.merges.load(Ordering::Relaxed), 1);
}

/// Promise: where containerd says which layer is the topmost, the image is merged before its first container;
/// images of few layers are not, but where they are asked to be.
#[tokio::test(flavor = "multi_thread")]
async fn the_topmost_layer_begins_it_and_few_layers_stay_a_stack() {
    let world = World::new(FakePlane::default()).await;
    pull(&world, "n", MANY, true).await;
    world.settle(|| merged(&world) == 1).await;
    let world = World::new(FakePlane::default()).await;
    let few = pull(&world, "n", MANY - 1, true).await.pop().unwrap();
    run(&world, "n/50/run", &few).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(merged(&world), 0);
    for (plan, layers, expected) in [("merged", 2, 1), ("merged", 1, 0), ("stack", MANY, 0)] {
        let plan = format!("mount_plan = \"{plan}\"");
        let dir = tempfile::tempdir().unwrap();
        let world = World::configured(dir, Arc::default(), &plan).await;
        let top = pull(&world, "n", layers, true).await.pop().unwrap();
        run(&world, "n/50/run", &top).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(merged(&world), expected, "{plan}, {layers}");
    }
}

/// Promise: what was merged goes with the image it was made for; that of another image, which has the same layers
/// and one more, stays as long as that.
#[tokio::test(flavor = "multi_thread")]
async fn it_goes_with_its_image() {
    let world = World::new(FakePlane::default()).await;
    let small = pull(&world, "n", MANY, true).await;
    let mut large = pull(&world, "n", MANY + 1, true).await;
    assert_eq!(small, large[..MANY]);
    let tops = [large.last().unwrap(), small.last().unwrap()];
    for (key, top) in ["n/50/run", "n/51/run"].into_iter().zip(tops) {
        run(&world, key, top).await;
        until_merged(&world, key).await;
    }
    assert_eq!(merged(&world), 2);
    world.snapshots.remove("n/50/run".into()).await.unwrap();
    world.snapshots.remove(large.pop().unwrap()).await.unwrap();
    world.settle(|| world.mounted() == MANY).await;
    assert_eq!(merged(&world), 1);
    assert!(is_merged(
        &world.snapshots.mounts("n/51/run".into()).await.unwrap()
    ));
    world.snapshots.remove("n/51/run".into()).await.unwrap();
    for name in small.into_iter().rev() {
        world.snapshots.remove(name).await.unwrap();
    }
    world.settle(|| world.mounted() == 0).await;
    assert_eq!(merged(&world), 0);
}

/// Promise: a daemon takes up what the one before merged, and lets go what no snapshot needs; with the plan
/// `stack`, all of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_takes_up_what_is_needed_and_nothing_else() {
    let world = World::new(FakePlane::default()).await;
    let top = pull(&world, "n", MANY, true).await.pop().unwrap();
    run(&world, "n/50/run", &top).await;
    until_merged(&world, "n/50/run").await;
    let foreign = "/merged/of-nobody".into();
    world.plane.merged.lock().unwrap().insert(foreign);
    world.unmount_all();
    let world = world.again().await;
    until_merged(&world, "n/50/run").await;
    world.settle(|| merged(&world) == 1).await;
}

/// Promise: where a layer turns out to lie, nothing new gets the merged image, and it goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_merged_image_goes_with_a_layer_that_lied() {
    let world = World::new(FakePlane::default()).await;
    let top = pull(&world, "n", MANY, true).await.pop().unwrap();
    run(&world, "n/50/run", &top).await;
    until_merged(&world, "n/50/run").await;
    let lie = Trust::Quarantined("other mode of /bin/sh".to_owned());
    world.plane.settle("i3", lie);
    let refused = world
        .snapshots
        .prepare("n/51/run".into(), top, Labels::new());
    let refused = refused.await.unwrap_err().to_string();
    assert!(refused.contains("other mode of /bin/sh"), "{refused}");
    world.settle(|| merged(&world) == 0).await;
}
