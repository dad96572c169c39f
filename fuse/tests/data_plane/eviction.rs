//! A store with a limit: what goes, in which order, and what readers notice of it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use larder_fuse::{DataPlane, DeviceReads, DriverChoice, Layer, LayerSpec};
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};
use larder_test_support::{on_both_drivers, on_erofs};
use rustix::fs::{Advice, fadvise};

use crate::scene::{Memory, Scene, cold, config, eventually, layer_of, noise, read};

const MIB: usize = 1 << 20;

/// Bytes of a store that its limit does not keep from being there: indexes, records and directories of
/// the few layers here, and a chunk's edges.
const BESIDE: u64 = 512 << 10;

async fn limited(driver: DriverChoice, bytes: usize) -> Scene {
    Scene::with(driver, |config| {
        config.store_bytes_max = bytes as u64;
        // Else the kernel's cache of the device answers.
        config.device_reads = DeviceReads::Direct;
        // Nothing fails here, and reading through such a store is slow on a busy machine.
        config.read_deadline = Duration::from_mins(1);
    })
    .await
}

/// Bytes of blocks of everything below `path`, as `du` counts them.
fn du(path: &Path) -> u64 {
    let own = std::fs::symlink_metadata(path).map_or(0, |found| found.blocks() * 512);
    let Ok(entries) = std::fs::read_dir(path) else {
        return own;
    };
    own + entries
        .flatten()
        .map(|entry| du(&entry.path()))
        .sum::<u64>()
}

fn data_on_disk(layer: &Layer) -> u64 {
    layer.status().on_disk.device
}

/// Promise: readers of three times as much as fits get every byte right, without an error, while the
/// store never grows beyond its limit.
async fn the_limit_holds_and_every_read_goes_on(driver: DriverChoice) {
    let scene = limited(driver, 8 * MIB).await;
    let mut files = Vec::new();
    for number in 0..6 {
        let data = noise(100 + number, 4 * MIB);
        let mounted = scene
            .mounted(&layer_of(&data), &format!("at{number}"))
            .await;
        files.push((mounted.target.join("data"), Arc::new(data)));
    }
    let largest = Arc::new(AtomicU64::new(0));
    let store = scene.plane().root().join("store");
    let watch = {
        let largest = largest.clone();
        tokio::task::spawn_blocking(move || {
            while Arc::strong_count(&largest) > 1 {
                largest.fetch_max(du(&store), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        })
    };
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..4 {
        let files = files.clone();
        readers.spawn(async move {
            for round in 0..12 {
                let (path, data) = &files[(reader * 5 + round) % files.len()];
                let found = cold(path.clone()).await;
                assert!(
                    found.as_ref().is_ok_and(|found| found == &**data),
                    "{round}: {:?}",
                    found.err()
                );
            }
        });
    }
    readers.join_all().await;
    let largest = {
        let value = largest.load(Ordering::Relaxed);
        drop(largest);
        value
    };
    watch.await.unwrap();
    assert!(largest <= 8 * MIB as u64 + BESIDE, "{largest} bytes");
    assert!(
        largest >= 4 * MIB as u64,
        "{largest} bytes: is anything kept?"
    );
}

/// Promise: what is read again and again is kept while what is read once goes.
async fn what_is_read_again_stays_and_what_is_read_once_goes(driver: DriverChoice) {
    let scene = limited(driver, 8 * MIB).await;
    let mut tar = TarBuilder::new().entry(Entry::file("hot", noise(1, MIB)));
    for number in 0..16 {
        tar = tar.entry(Entry::file(format!("cold{number}"), noise(2 + number, MIB)));
    }
    let fixture = LayerFixture::new(tar.finish());
    let mounted = scene.mounted(&fixture, "at").await;
    let hot = mounted.target.join("hot");
    for number in 0..16 {
        let path = mounted.target.join(format!("cold{number}"));
        assert!(cold(path).await.unwrap() == noise(2 + number, MIB));
        for _ in 0..4 {
            assert!(cold(hot.clone()).await.unwrap() == noise(1, MIB));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let before = mounted.source.requests().len();
    assert!(cold(hot).await.unwrap() == noise(1, MIB));
    assert_eq!(mounted.source.requests().len(), before);
    let kept = data_on_disk(&mounted.layer);
    assert!(kept <= 8 * MIB as u64, "17 MiB do not fit into 8: {kept}");
}

/// Promise: of layers nobody uses, the one that was used longest ago goes first, before any chunk of
/// one that is mounted; its index stays, and it comes back.
async fn unused_layers_go_first_the_longest_unused_before_others(driver: DriverChoice) {
    let scene = limited(driver, 14 * MIB).await;
    let fixtures: Vec<_> = (0..3).map(|n| layer_of(&noise(200 + n, 4 * MIB))).collect();
    let mut layers = Vec::new();
    for fixture in &fixtures {
        let mounted = scene.mounted(fixture, "at").await;
        cold(mounted.target.join("data")).await.unwrap();
        scene.plane().unmount(&mounted.target).await.unwrap();
        layers.push(mounted.layer);
        // Uses are told apart by the second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    let used = |layer: &Layer| layer.status().in_use;
    eventually("nothing is in use", || !layers.iter().any(used)).await;
    let mounted = scene.mounted(&layer_of(&noise(300, 3 * MIB)), "now").await;
    cold(mounted.target.join("data")).await.unwrap();
    let kept = data_on_disk(&mounted.layer);
    eventually("the oldest went", || data_on_disk(&layers[0]) == 0).await;
    assert!(kept > 0 && data_on_disk(&mounted.layer) >= kept);
    // What came before there was room was not kept.
    cold(mounted.target.join("data")).await.unwrap();
    assert!(data_on_disk(&layers[1]) > 0 && data_on_disk(&layers[2]) > 0);
    assert!(data_on_disk(&mounted.layer) > 2 * MIB as u64);
    let target = scene.directory("again");
    layers[0].mount(&target, &[]).await.unwrap();
    assert!(cold(target.join("data")).await.unwrap() == noise(200, 4 * MIB));
}

/// Promise: a pinned layer stays, also over a restart, and goes after it is unpinned.
#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_layer_stays_until_it_is_unpinned() {
    let mut scene = limited(DriverChoice::Fuse, 6 * MIB).await;
    let fixture = layer_of(&noise(1, 4 * MIB));
    let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
    layer.fetch_all().await.unwrap();
    let id = layer.id();
    scene.plane().pin(&[id], "app:1").unwrap();
    drop(layer);
    scene.plane.take().unwrap().shutdown().await;
    let root = scene.scratch.path().join("root");
    let limit = |config: &mut larder_fuse::DataPlaneConfig| {
        config.store_bytes_max = 6 * MIB as u64;
        config.device_reads = DeviceReads::Direct;
    };
    let plane = DataPlane::start(config(&root, DriverChoice::Fuse, limit)).await;
    scene.plane = Some(plane.unwrap());
    let layer = scene.plane().layer(&id).unwrap();
    assert_eq!(layer.status().pins, ["app:1"]);
    let mounted = scene.mounted(&layer_of(&noise(2, 4 * MIB)), "at").await;
    for _ in 0..3 {
        assert!(cold(mounted.target.join("data")).await.unwrap() == noise(2, 4 * MIB));
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    assert!(data_on_disk(&layer) >= 4 * MIB as u64);
    assert_eq!(scene.plane().usage().pinned, data_on_disk(&layer));
    assert_eq!(scene.plane().unpin("app:1").unwrap(), [id]);
    cold(mounted.target.join("data")).await.unwrap();
    eventually("it went", || data_on_disk(&layer) == 0).await;
}

/// Promise: where everything is pinned, reads are served all the same, `caching_stopped` says why,
/// and caching goes on within five seconds once it can.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_pinned_full_serves_and_says_so() {
    let scene = limited(DriverChoice::Fuse, 8 * MIB).await;
    // More than 90 %, less than 95.
    let fixture = layer_of(&noise(1, 15 * MIB / 2 - MIB / 8));
    let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
    layer.fetch_all().await.unwrap();
    scene.plane().pin(&[layer.id()], "all").unwrap();
    for number in 2..4 {
        let data = noise(number, 4 * MIB);
        let mounted = scene
            .mounted(&layer_of(&data), &format!("at{number}"))
            .await;
        assert!(cold(mounted.target.join("data")).await.unwrap() == data);
    }
    eventually("it says so", || scene.plane().caching_stopped().is_some()).await;
    let stopped = scene.plane().caching_stopped().unwrap();
    assert!(stopped.why.contains("store_bytes_max"), "{}", stopped.why);
    scene.plane().unpin("all").unwrap();
    let started = Instant::now();
    let mounted = scene.mounted(&layer_of(&noise(5, 4 * MIB)), "at5").await;
    cold(mounted.target.join("data")).await.unwrap();
    eventually("the pinned layer went", || data_on_disk(&layer) == 0).await;
    eventually("caching goes on", || {
        scene.plane().caching_stopped().is_none()
    })
    .await;
    let took = started.elapsed();
    // Five seconds, on a machine that has time.
    assert!(took < Duration::from_secs(30), "{took:?}");
    let mounted = scene.mounted(&layer_of(&noise(6, 2 * MIB)), "at6").await;
    cold(mounted.target.join("data")).await.unwrap();
    assert!(data_on_disk(&mounted.layer) >= 2 * MIB as u64);
}

/// Promise: nothing is taken from a file that the kernel reads past us; after its last mount it is
/// evicted whole, and who still has a file of that mount open reads on, every byte right.
async fn a_directly_mounted_layer_is_evicted_whole_after_its_last_use() {
    let scene = limited(DriverChoice::Erofs, 6 * MIB).await;
    // Half of the store may be fixed.
    let data = noise(1, 5 * MIB / 2);
    let fixture = layer_of(&data);
    let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
    layer.fetch_all().await.unwrap();
    eventually("it is proven", || layer.status().proven).await;
    let target = scene.directory("direct");
    layer.mount(&target, &[]).await.unwrap();
    let mut open = File::open(target.join("data")).unwrap();
    let press = || async {
        let mounted = scene.mounted(&layer_of(&noise(2, 4 * MIB)), "press").await;
        for _ in 0..3 {
            assert!(cold(mounted.target.join("data")).await.unwrap() == noise(2, 4 * MIB));
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        scene.plane().unmount(&mounted.target).await.unwrap();
    };
    press().await;
    assert!(data_on_disk(&layer) >= data.len() as u64, "it is mounted");
    assert!(cold(target.join("data")).await.unwrap() == data);
    scene.plane().unmount(&target).await.unwrap();
    press().await;
    let left = data_on_disk(&layer);
    assert!(left >= data.len() as u64, "the kernel reads it: {left}");
    fadvise(&open, 0, None, Advice::DontNeed).unwrap();
    let mut found = Vec::new();
    open.read_to_end(&mut found).unwrap();
    assert!(found == data);
    drop(open);
    press().await;
    eventually("it went", || data_on_disk(&layer) == 0).await;
    layer.mount(&target, &[]).await.unwrap();
    assert!(cold(target.join("data")).await.unwrap() == data);
}

/// Promise: below the free-space floor, layers nobody uses go, so that caching goes on, unless all of
/// them together would not bring it back.
#[tokio::test(flavor = "multi_thread")]
async fn below_the_floor_unused_layers_make_room_if_that_helps() {
    let disk = Arc::new(Narrow::default());
    let scene = Scene::with(DriverChoice::Fuse, |config| {
        config.disk = disk.clone();
        config.device_reads = DeviceReads::Direct;
    })
    .await;
    let store = scene.plane().root().join("store");
    let fixture = layer_of(&noise(1, 4 * MIB));
    let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
    layer.fetch_all().await.unwrap();
    let mut mounts = Vec::new();
    for number in 2..6 {
        let fixture = layer_of(&noise(number, MIB));
        mounts.push(scene.mounted(&fixture, &format!("at{number}")).await);
    }
    let read = |number: u64| {
        let mounted = &mounts[usize::try_from(number).unwrap() - 2];
        async move {
            let data = noise(number, MIB);
            assert!(cold(mounted.target.join("data")).await.unwrap() == data);
            data_on_disk(&mounted.layer)
        }
    };
    // 100 MiB, of which 5 are to be free; others take so much that 6 would have to go.
    disk.others.store(200 * MIB as u64, Ordering::Relaxed);
    // It is looked at once a second.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for number in 2..4 {
        assert_eq!(read(number).await, 0);
        tokio::time::sleep(Duration::from_millis(1500)).await;
    }
    assert!(data_on_disk(&layer) >= 4 * MIB as u64, "it would not help");
    assert!(scene.plane().caching_stopped().is_some());
    // Now 2 MiB are lacking.
    disk.others
        .store(97 * MIB as u64 - du(&store), Ordering::Relaxed);
    read(4).await;
    eventually("the unused layer went", || data_on_disk(&layer) == 0).await;
    eventually("caching goes on", || {
        scene.plane().caching_stopped().is_none()
    })
    .await;
    assert!(read(5).await >= MIB as u64);
}

/// A disk of 100 MiB on which others have files, too.
#[derive(Debug, Default)]
struct Narrow {
    others: AtomicU64,
}

impl larder_fuse::Disk for Narrow {
    fn space(&self, directory: &Path) -> std::io::Result<larder_fuse::Space> {
        let total = 100 * MIB as u64;
        let used = self.others.load(Ordering::Relaxed) + du(directory);
        let available = total.saturating_sub(used);
        Ok(larder_fuse::Space { total, available })
    }
}

/// Promise: half of what is to be left free stays free whatever is pulled: unused layers go first, then a
/// layer is refused with what is lacking; it is taken as soon as there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_index_has_no_room_is_refused() {
    let disk = Arc::new(Narrow::default());
    let scene = Scene::with(DriverChoice::Fuse, |config| {
        config.disk = disk.clone();
        config.min_free_percent = 10;
    })
    .await;
    let old = layer_of(&noise(1, 4 * MIB));
    let unused = scene.add(&old, &Memory::new(&old)).await;
    unused.fetch_all().await.unwrap();
    let store = scene.plane().root().join("store");
    let fill = |free: u64| {
        let others = 100 * MIB as u64 - du(&store) - free;
        disk.others.store(others, Ordering::Relaxed);
    };
    let fixture = layer_of(&noise(2, MIB));
    let spec = || LayerSpec {
        blob: fixture.digest,
        index: fixture.index,
        sources: vec![Memory::new(&fixture)],
        elsewhere: None,
    };
    // Nothing that could be evicted would help.
    fill(0);
    let refused = scene.plane().add_layer(spec()).await.unwrap_err();
    assert!(refused.is_disk_full(), "{refused}");
    assert!(
        refused.to_string().contains("free some disk space"),
        "{refused}"
    );
    assert!(data_on_disk(&unused) >= 4 * MIB as u64);
    assert!(scene.plane().layers().len() == 1, "nothing is left of it");
    // 5 MiB are half of what is to be left free; the unused layer makes room for the index.
    fill(5 * MIB as u64 - 4096);
    scene.plane().add_layer(spec()).await.unwrap();
    assert_eq!(data_on_disk(&unused), 0);
}

/// Promise: a store whose limit is reached by what cannot be evicted takes no further index, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_index_is_beyond_the_limit_is_refused() {
    let scene = limited(DriverChoice::Fuse, 128 << 10).await;
    let mut added = Vec::new();
    let refused = loop {
        let data = noise(300 + added.len() as u64, 64 << 10);
        let other = layer_of(&data);
        let spec = LayerSpec {
            blob: other.digest,
            index: other.index,
            sources: vec![Memory::new(&other)],
            elsewhere: None,
        };
        match scene.plane().add_layer(spec).await {
            Ok(layer) => added.push(layer),
            Err(refused) => break refused,
        }
        assert!(added.len() < 100, "the limit is never reached");
    };
    assert!(!refused.is_disk_full(), "{refused}");
    assert!(refused.to_string().contains("store_bytes_max"), "{refused}");
}

/// Promise: every byte of the store is accounted for: the sums are what `du` counts, before and after
/// eviction.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_store_takes_is_what_du_counts() {
    let scene = limited(DriverChoice::Fuse, 6 * MIB).await;
    let store = scene.plane().root().join("store");
    let mut mounts = Vec::new();
    for number in 0..3 {
        let mounted = scene
            .mounted(&layer_of(&noise(number, 3 * MIB)), &format!("at{number}"))
            .await;
        assert!(read(mounted.target.join("data")).await.is_ok());
        mounts.push(mounted);
        let counted = || {
            let usage = scene.plane().usage();
            let layers = scene.plane().layers();
            let layers: u64 = layers.iter().map(|l| l.status().on_disk.total()).sum();
            let own = std::fs::metadata(&store).unwrap().blocks() * 512;
            usage.total == du(&store)
                && usage.total == layers + own
                && usage.total == usage.data + usage.overhead
                && usage.evictable == usage.data
                && usage.limit == Some(6 * MIB as u64)
        };
        // Eviction may be at work between two looks.
        eventually("the sums are those of du", counted).await;
    }
}

/// Promise: a removed layer that the kernel reads past us, for who still has a file of it open, is accounted for until
/// nobody has, also after a full start; then it goes.
async fn a_removed_layer_that_is_read_directly_is_accounted_for() {
    let mut scene = Scene::new(DriverChoice::Erofs).await;
    let data = noise(1, MIB);
    let fixture = layer_of(&data);
    let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
    layer.fetch_all().await.unwrap();
    eventually("it is proven", || layer.status().direct).await;
    let target = scene.directory("direct");
    layer.mount(&target, &[]).await.unwrap();
    let mut open = File::open(target.join("data")).unwrap();
    scene.plane().unmount(&target).await.unwrap();
    let id = layer.id();
    drop(layer);
    scene.plane().remove_layer(&id).await.unwrap();
    let root = scene.plane().root().to_owned();
    let removed = |scene: &Scene| {
        let usage = scene.plane().usage();
        assert_eq!(usage.total, du(&root.join("store")));
        usage.removed
    };
    assert!(removed(&scene) > MIB as u64);
    scene.plane.take().unwrap().shutdown().await;
    let again = config(&root, DriverChoice::Erofs, |_| {});
    scene.plane = Some(DataPlane::start(again).await.unwrap());
    assert!(removed(&scene) > MIB as u64);
    let mut found = Vec::new();
    open.read_to_end(&mut found).unwrap();
    assert!(found == data);
    drop(open);
    eventually("it goes", || scene.plane().usage().removed == 0).await;
    assert_eq!(removed(&scene), 0);
}

on_both_drivers!(
    the_limit_holds_and_every_read_goes_on,
    what_is_read_again_stays_and_what_is_read_once_goes,
    unused_layers_go_first_the_longest_unused_before_others,
);

on_erofs!(
    a_directly_mounted_layer_is_evicted_whole_after_its_last_use,
    a_removed_layer_that_is_read_directly_is_accounted_for,
);
