//! Layers that nobody reads: completed when the node is quiet, at once where a proof is waited for, and
//! quarantined where they lie.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use larder_fuse::{
    AddLayerError, Answer, Arrivals, BoxFuture, Completion, DataPlane, DataPlaneConfig,
    DriverChoice, FetchError, Layer, LayerSpec, Quarantine, Source, Trust,
};
use larder_proto::digest::Digest;
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Memory, Mood, Scene, config, eventually, layer_of, noise, read};

/// Completion as soon as nobody has waited for `quiet` milliseconds.
fn after(quiet: u64) -> impl Fn(&mut DataPlaneConfig) {
    move |config| {
        config.completion = Completion {
            enabled: true,
            quiet: Duration::from_millis(quiet),
            latest: Duration::from_hours(1),
        };
    }
}

/// A layer whose index claims to be of another tar.
fn foreign_layer() -> LayerFixture {
    let tar = TarBuilder::new().entry(Entry::file("bin/su", noise(2, 200_000)).mode(0o755));
    LayerFixture::claiming(tar.finish(), Digest::of(b"a popular layer"))
}

/// A layer whose index shows a program with a bit that its tar does not give it.
fn lying_layer() -> LayerFixture {
    let tar = TarBuilder::new().entry(Entry::file("bin/su", noise(1, 200_000)).mode(0o755));
    LayerFixture::lying(tar.finish(), |tree| {
        let su = tree.find(b"bin/su").unwrap();
        tree.node_mut(su).mode = 0o4755;
    })
}

/// A blob whose ranges take a while each.
#[derive(Debug)]
struct Slow {
    blob: Bytes,
    takes: Duration,
    requests: AtomicUsize,
}

impl Source for Slow {
    fn name(&self) -> &'static str {
        "slow"
    }

    fn get<'a>(&'a self, range: Range<u64>, _: &'a dyn Arrivals) -> BoxFuture<'a, Answer> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let place = |at: u64| usize::try_from(at).unwrap();
        let bytes = self.blob.slice(place(range.start)..place(range.end));
        Box::pin(async move {
            tokio::time::sleep(self.takes).await;
            Answer::from(bytes)
        })
    }
}

/// Promise: a mounted layer that nobody reads is completed and proved by itself, each byte once; one that
/// is not mounted is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_node_completes_what_is_mounted() {
    let scene = Scene::with(DriverChoice::Fuse, after(100)).await;
    let fixture = layer_of(&noise(3, 3_000_000));
    let mounted = scene.mounted(&fixture, "at").await;
    let other = layer_of(&noise(4, 100_000));
    let unmounted = Memory::new(&other);
    scene.add(&other, &unmounted).await;
    let layer = mounted.layer.clone();
    eventually("it is proven", || layer.trust() == Trust::Proven).await;
    let frames = frames(&fixture);
    assert_eq!(
        mounted.source.bytes.load(Ordering::Relaxed),
        frames + fixture.index.stored_len
    );
    assert_eq!(unmounted.requests().len(), 1, "its index");
    eventually("it is counted", || scene.plane().verdicts().proven > 0).await;
    assert_eq!(scene.plane().verdicts().proven, 1);
}

/// Promise: while somebody waits for bytes, or did a moment ago, and where it is switched off, nothing is
/// fetched but what is read. A proof that is asked for is made all the same.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_completed_unless_the_node_is_quiet_or_a_proof_is_waited_for() {
    let off = |config: &mut DataPlaneConfig| {
        after(0)(config);
        config.completion.enabled = false;
    };
    for scene in [
        Scene::with(DriverChoice::Fuse, after(3_600_000)).await,
        Scene::with(DriverChoice::Fuse, off).await,
    ] {
        let mounted = scene.mounted(&layer_of(&noise(5, 900_000)), "at").await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(mounted.source.requests().len(), 1, "its index");
        assert_eq!(mounted.layer.prove().await, Trust::Proven);
    }
}

/// Promise: a reader's request starts while the background is under way, and ends long before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_does_not_wait_for_the_background() {
    let scene = Scene::with(DriverChoice::Fuse, after(0)).await;
    let tar = TarBuilder::new()
        .entry(Entry::file("first", noise(6, 12 << 20)))
        .entry(Entry::file("wanted", noise(7, 10_000)));
    let fixture = LayerFixture::new(tar.finish());
    let source = Arc::new(Slow {
        blob: fixture.blob.clone(),
        takes: Duration::from_millis(200),
        requests: AtomicUsize::new(0),
    });
    let layer = add(&scene, &fixture, source.clone()).await;
    let target = scene.directory("at");
    layer.mount(&target, &[]).await.unwrap();
    eventually("the background is under way", || {
        source.requests.load(Ordering::Relaxed) > 2
    })
    .await;
    let begun = Instant::now();
    assert_eq!(read(target.join("wanted")).await.unwrap(), noise(7, 10_000));
    let took = begun.elapsed();
    let before = layer.status();
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(before.bytes_present < before.bytes_total / 2, "{before:?}");
}

/// Promise: of two layers that are completed, one whose source does not answer keeps the other waiting for
/// one turn only, in haste or not.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_completed_does_not_starve_another() {
    for hurry in [false, true] {
        let scene = Scene::with(DriverChoice::Fuse, after(if hurry { 3_600_000 } else { 0 })).await;
        let mut mounted = Vec::new();
        for seed in [8, 9, 10] {
            let one = scene
                .mounted(&layer_of(&noise(seed, 300_000)), &seed.to_string())
                .await;
            one.source.set(Mood::Stalls);
            mounted.push(one);
        }
        for one in &mounted {
            if hurry {
                let layer = one.layer.clone();
                tokio::spawn(async move { layer.prove().await });
            }
        }
        let good = &mounted[1];
        good.source.set(Mood::Honest);
        let layer = good.layer.clone();
        eventually("the good one is proven", || layer.trust() == Trust::Proven).await;
        assert_eq!(mounted[0].layer.trust(), Trust::Claimed);
        mounted[0].source.set(Mood::Honest);
        let late = mounted[0].layer.clone();
        if hurry {
            eventually("the other one, too", || late.trust() == Trust::Proven).await;
        }
    }
}

/// Promise: completing a layer ends when it is removed, however much of it is missing.
#[tokio::test(flavor = "multi_thread")]
async fn completing_ends_with_the_removal_of_the_layer() {
    let scene = Scene::new(DriverChoice::Fuse).await;
    let fixture = layer_of(&noise(11, 40 << 20));
    let source = Arc::new(Slow {
        blob: fixture.blob.clone(),
        takes: Duration::from_millis(300),
        requests: AtomicUsize::new(0),
    });
    let layer = add(&scene, &fixture, source.clone()).await;
    let fetching = tokio::spawn({
        let layer = layer.clone();
        async move { layer.fetch_all().await }
    });
    eventually("it is being fetched", || {
        source.requests.load(Ordering::Relaxed) > 1
    })
    .await;
    scene.plane().remove_layer(&layer.id()).await.unwrap();
    let ended = fetching.await.unwrap().unwrap_err();
    assert!(matches!(*ended, FetchError::Removed { .. }), "{ended}");
    let asked = source.requests.load(Ordering::Relaxed);
    // The index, and what was in flight: two requests, and one more in the queue.
    assert!(asked <= 6, "{asked} requests");
    assert_eq!(layer.prove().await, Trust::Claimed, "nobody waits for ever");
}

/// Promise: what was fetched before a restart is not fetched again, and the proof is made.
#[tokio::test(flavor = "multi_thread")]
async fn completion_goes_on_after_a_restart() {
    let fixture = layer_of(&noise(12, 3_000_000));
    let (first, second) = (Memory::new(&fixture), Memory::new(&fixture));
    let mut scene = Scene::new(DriverChoice::Fuse).await;
    let target = scene.directory("at");
    let layer = scene.add(&fixture, &first).await;
    layer.mount(&target, &[]).await.unwrap();
    let mut some = vec![0; 1_000_000];
    let file = target.join("data");
    tokio::task::spawn_blocking(move || {
        std::os::unix::fs::FileExt::read_exact_at(
            &std::fs::File::open(file).unwrap(),
            &mut some,
            0,
        )
        .unwrap();
    })
    .await
    .unwrap();
    // What is still on its way, for the kernel's reading ahead and ours, may be lost and come again.
    let came = layer.status().sources[0].bytes;
    assert!(came >= 1_000_000, "{came} bytes");
    drop(layer);
    scene.plane.take().unwrap().shutdown().await;
    let root = scene.scratch.path().join("root");
    let plane = DataPlane::start(config(&root, DriverChoice::Fuse, after(0)))
        .await
        .unwrap();
    scene.plane = Some(plane);
    let layer = scene.add(&fixture, &second).await;
    layer.mount(&target, &[]).await.unwrap();
    eventually("it is proven", || layer.trust() == Trust::Proven).await;
    let again = second.bytes.load(Ordering::Relaxed);
    let frames = frames(&fixture);
    assert!(again <= frames - came, "{again} of {frames}, {came} came");
}

/// Promise: with `quarantine = "eio"`, what a lie has not shown yet it does not show any more; also after
/// a restart. It is counted.
async fn reads_of_a_quarantined_layer_fail_where_that_is_wanted(driver: DriverChoice) {
    let eio = |config: &mut DataPlaneConfig| {
        config.quarantine = Quarantine::Eio;
        config.read_deadline = Duration::from_mins(1);
    };
    for lie in [lying_layer(), foreign_layer()] {
        let scene = Scene::with(driver, eio).await;
        let mounted = scene.mounted(&lie, "at").await;
        let trust = mounted.layer.prove().await;
        assert!(matches!(trust, Trust::Quarantined(_)), "{trust:?}");
        assert_eq!(scene.plane().verdicts().quarantined, 1);
        let file = mounted.target.join("bin/su");
        let begun = Instant::now();
        let refused = read(file).await.unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(5), "EIO: {refused}");
        assert!(begun.elapsed() < Duration::from_secs(20), "at once");
    }
}

/// Promise: an index that lied is known on this node after its layer was removed, and after a restart: no
/// byte of it is asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_lied_is_not_added_again() {
    let fixture = lying_layer();
    let mut scene = Scene::new(DriverChoice::Fuse).await;
    let source = Memory::new(&fixture);
    let layer = scene.add(&fixture, &source).await;
    assert!(matches!(layer.prove().await, Trust::Quarantined(_)));
    scene.plane().remove_layer(&layer.id()).await.unwrap();
    drop(layer);
    let asked = source.requests().len();
    for restart in [false, true] {
        if restart {
            scene.plane.take().unwrap().shutdown().await;
            let root = scene.scratch.path().join("root");
            let started = DataPlane::start(config(&root, DriverChoice::Fuse, |_| {})).await;
            scene.plane = Some(started.unwrap());
        }
        let added = scene
            .plane()
            .add_layer(spec(&fixture, source.clone()))
            .await;
        let refused = added.unwrap_err();
        assert!(
            matches!(&refused, AddLayerError::Quarantined { reason, .. } if reason.contains("bin/su")),
            "{refused}"
        );
        assert_eq!(source.requests().len(), asked);
    }
}

/// Bytes of the frames that are fetched: zeros are not.
fn frames(fixture: &LayerFixture) -> u64 {
    let place = |at: u64| usize::try_from(at).unwrap();
    let chunks = fixture.chunks.iter().filter(|chunk| {
        let content = &fixture.tar[place(chunk.offset)..place(chunk.end())];
        content.iter().any(|byte| *byte != 0)
    });
    chunks.map(|chunk| u64::from(chunk.stored_len)).sum()
}

fn spec(fixture: &LayerFixture, source: Arc<dyn Source>) -> LayerSpec {
    LayerSpec {
        blob: fixture.digest,
        index: fixture.index,
        sources: vec![source],
        elsewhere: None,
    }
}

async fn add(scene: &Scene, fixture: &LayerFixture, source: Arc<dyn Source>) -> Layer {
    let added = scene.plane().add_layer(spec(fixture, source)).await;
    added.unwrap()
}

on_both_drivers!(reads_of_a_quarantined_layer_fail_where_that_is_wanted);
