//! What the operator hears of a data plane.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_fuse::{
    Delay, DriverChoice, LayerId, Observer, Outcome, ReadFailure, SenderKind, SlowRead,
};
use larder_proto::digest::Digest;
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Memory, Mood, Scene, eventually, layer_of, noise, read};

/// Notes what it hears.
#[derive(Debug, Default)]
struct Noting {
    slow: Mutex<Vec<SlowRead>>,
    lies: Mutex<Vec<(LayerId, Digest, String)>>,
}

impl Observer for Noting {
    fn slow_read(&self, read: &SlowRead) {
        self.slow.lock().unwrap().push(read.clone());
    }

    fn quarantined(&self, layer: LayerId, blob: Digest, reason: &str) {
        let told = (layer, blob, reason.to_owned());
        self.lies.lock().unwrap().push(told);
    }
}

async fn observed(driver: DriverChoice) -> (Scene, Arc<Noting>) {
    let noting = Arc::new(Noting::default());
    let scene = Scene::with(driver, |config| {
        // A third of it is more than a read of what is there takes on a busy machine.
        config.read_deadline = Duration::from_secs(6);
        config.slow_read = Some(Duration::from_millis(1500));
        config.observer = noting.clone();
    });
    (scene.await, noting)
}

/// Promise: a read that a source delays is told with its file, the place in it, the source and what
/// took the time; a quick one is not.
async fn a_slow_read_is_told_with_file_source_and_cause(driver: DriverChoice) {
    let (scene, noting) = observed(driver).await;
    let tar = TarBuilder::new()
        .entry(Entry::file("usr/bin/first", noise(1, 200_000)))
        // Longer than the kernel reads ahead.
        .entry(Entry::file("usr/bin/other", noise(2, 3_000_000)));
    let fixture = LayerFixture::new(tar.finish());
    let mounted = scene.mounted(&fixture, "at").await;
    read(mounted.target.join("usr/bin/first")).await.unwrap();
    assert!(noting.slow.lock().unwrap().is_empty());
    // The first source says nothing for a third of the deadline of six seconds.
    let good = Memory::new(&fixture);
    mounted.source.set(Mood::Stalls);
    mounted
        .layer
        .set_sources(vec![mounted.source.clone(), good]);
    read(mounted.target.join("usr/bin/other")).await.unwrap();
    eventually("the slow read is told", || {
        !noting.slow.lock().unwrap().is_empty()
    })
    .await;
    let told = noting.slow.lock().unwrap()[0].clone();
    assert_eq!(told.path.as_deref(), Some("usr/bin/other"), "{told:?}");
    assert_eq!(told.cause, Delay::Network, "{told:?}");
    assert_eq!(told.layer, mounted.layer.id());
    assert_eq!(told.blob, fixture.digest);
    assert_eq!((told.failed, told.suppressed), (None, 0));
    assert_eq!(told.source.as_deref(), Some("memory"));
    assert!(told.took >= Duration::from_millis(1500), "{told:?}");
    let counts = scene.plane().counts();
    assert!(counts.slow(Delay::Network) >= 1);
    assert!(counts.asked(Outcome::Silent) >= 1);
}

/// Promise: a read that fails is counted by its cause and told with its file, and it waits no longer.
async fn a_failed_read_is_counted_by_its_cause(driver: DriverChoice) {
    let (scene, noting) = observed(driver).await;
    let mounted = scene.mounted(&layer_of(&noise(4, 10_000)), "at").await;
    mounted.source.set(Mood::Stalls);
    read(mounted.target.join("data")).await.unwrap_err();
    let counts = scene.plane().counts();
    eventually("no read waits", || counts.waiting() == 0).await;
    assert!(counts.failed(ReadFailure::Deadline) >= 1);
    assert_eq!(counts.failed(ReadFailure::Disk), 0);
    eventually("the failed read is told", || {
        !noting.slow.lock().unwrap().is_empty()
    })
    .await;
    let told = noting.slow.lock().unwrap()[0].clone();
    assert_eq!(told.failed, Some(ReadFailure::Deadline));
    assert_eq!(told.path.as_deref(), Some("data"));
}

/// Promise: reads, their bytes and their sources are counted; what a liar sends is counted apart.
async fn reads_and_sources_are_counted(driver: DriverChoice) {
    let (scene, noting) = observed(driver).await;
    let data = noise(5, 300_000);
    let fixture = layer_of(&data);
    let mounted = scene.mounted(&fixture, "at").await;
    read(mounted.target.join("data")).await.unwrap();
    let counts = scene.plane().counts();
    eventually("the reads are counted", || {
        counts.bytes_read() >= data.len() as u64
    })
    .await;
    assert!(counts.misses().count() >= 1);
    assert!(counts.misses().seconds > 0.0);
    let senders = counts.senders();
    let [sender] = &senders[..] else {
        panic!("not one sender: {senders:?}");
    };
    assert_eq!(
        (sender.kind, &*sender.host),
        (SenderKind::Registry, "memory")
    );
    let index = fixture.index.stored_len;
    assert_eq!(
        sender.bytes,
        mounted
            .source
            .bytes
            .load(std::sync::atomic::Ordering::Relaxed)
            - index
    );
    assert_eq!(sender.rejected, 0);
    // From the store, past the kernel's cache.
    scene.plane().unmount(&mounted.target).await.unwrap();
    let again = scene.directory("again");
    mounted.layer.mount(&again, &[]).await.unwrap();
    drop_caches();
    read(again.join("data")).await.unwrap();
    eventually("a read is answered by the store", || {
        counts.hits().count() >= 1
    })
    .await;

    let other = layer_of(&noise(6, 10_000));
    let lying = scene.mounted(&other, "lying").await;
    lying.source.set(Mood::Lies);
    read(lying.target.join("data")).await.unwrap_err();
    assert!(counts.senders()[0].rejected >= 1);
    assert!(noting.lies.lock().unwrap().is_empty());
}

fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

/// Promise: whoever listens hears of a layer that lied, once, with the reason.
async fn a_quarantine_is_told_once(driver: DriverChoice) {
    let (scene, noting) = observed(driver).await;
    let tar = TarBuilder::new().entry(Entry::file("bin/su", noise(1, 5000)).mode(0o755));
    let lie = LayerFixture::lying(tar.finish(), |tree| {
        let su = tree.find(b"bin/su").unwrap();
        tree.node_mut(su).mode = 0o4755;
    });
    let mounted = scene.mounted(&lie, "at").await;
    mounted.layer.fetch_all().await.unwrap();
    eventually("the quarantine is told", || {
        !noting.lies.lock().unwrap().is_empty()
    })
    .await;
    let _ = mounted.layer.fetch_all().await;
    let told = noting.lies.lock().unwrap().clone();
    let [(layer, blob, reason)] = &told[..] else {
        panic!("not told once: {told:?}");
    };
    assert_eq!((*layer, *blob), (mounted.layer.id(), lie.digest));
    assert!(reason.contains("bin/su"), "{reason}");
    assert_eq!(scene.plane().counts().quarantined(), 1);
}

on_both_drivers!(
    a_slow_read_is_told_with_file_source_and_cause,
    a_failed_read_is_counted_by_its_cause,
    reads_and_sources_are_counted,
    a_quarantine_is_told_once,
);
