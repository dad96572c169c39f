//! Sources that stall, lie and fail; disks that are full.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_fuse::{DeviceReads, Disk, DriverChoice, LayerState, Space};
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Mood, Scene, cold, layer_of, noise, read};

const EIO: Option<i32> = Some(5);

/// Bytes of zeros that a tar ends with: there without being fetched.
const TAR_END: u64 = 1024;

/// Five seconds after there is room again bytes are kept, on a machine that has time.
const RESUMES_MAX: Duration = Duration::from_secs(30);

/// Promise: a lying source cannot change what is read, and reads heal when it stops.
async fn a_lying_source_gives_eio_and_then_heals(driver: DriverChoice) {
    let scene = Scene::new(driver).await;
    let data = noise(1, 10_000);
    let mounted = scene.mounted(&layer_of(&data), "at").await;
    mounted.source.set(Mood::Lies);
    let error = read(mounted.target.join("data")).await.unwrap_err();
    assert_eq!(error.raw_os_error(), EIO);
    let status = mounted.layer.status();
    assert_eq!((status.bytes_present, status.state), (0, LayerState::Lazy));
    let why = status.sources[0].last_failure.clone().unwrap();
    assert!(why.contains("is wrong"), "{why}");
    mounted.source.set(Mood::Honest);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(read(mounted.target.join("data")).await.unwrap(), data);
}

/// Promise: the next source is asked when one lies.
async fn the_next_source_is_asked_when_one_lies_or_stalls(driver: DriverChoice) {
    let scene = Scene::new(driver).await;
    let data = noise(2, 10_000);
    let fixture = layer_of(&data);
    for mood in [Mood::Lies, Mood::Fails, Mood::Stalls] {
        let mounted = scene.mounted(&fixture, "at").await;
        let good = crate::scene::Memory::new(&fixture);
        mounted.source.set(mood);
        mounted
            .layer
            .set_sources(vec![mounted.source.clone(), good]);
        assert_eq!(read(mounted.target.join("data")).await.unwrap(), data);
        scene.plane().unmount(&mounted.target).await.unwrap();
        scene
            .plane()
            .remove_layer(&mounted.layer.id())
            .await
            .unwrap();
    }
}

/// Promise: at the deadline a read fails with EIO, and the kernel's repetitions fail at once.
async fn a_stalled_read_fails_once_the_deadline_has_passed(driver: DriverChoice) {
    let deadline = Duration::from_secs(4);
    let scene = Scene::with(driver, |config| config.read_deadline = deadline).await;
    let mounted = scene.mounted(&layer_of(&noise(4, 10_000)), "at").await;
    mounted.source.set(Mood::Stalls);
    let started = Instant::now();
    let error = read(mounted.target.join("data")).await.unwrap_err();
    assert_eq!(error.raw_os_error(), EIO);
    let waited = started.elapsed();
    assert!(waited >= deadline, "{waited:?}");
    assert!(waited < deadline * 2, "waited twice: {waited:?}");
}

/// Promise: 1,000 stalled reads of one layer leave reads of another, and the preparing of a third, as
/// they are.
async fn a_stalled_layer_does_not_delay_another(driver: DriverChoice) {
    let scene = Scene::with(driver, |config| {
        config.read_deadline = Duration::from_mins(5);
    })
    .await;
    let files = (0..1000).fold(TarBuilder::new(), |tar, i| {
        tar.entry(Entry::file(format!("f{i}"), noise(i, 66_000)))
    });
    let stalled = scene
        .mounted(&LayerFixture::new(files.finish()), "stalled")
        .await;
    let data = noise(5, 2_000_000);
    let local = scene.mounted(&layer_of(&data), "local").await;
    local.layer.fetch_all().await.unwrap();
    stalled.source.set(Mood::Holds);
    let readers: Vec<_> = (0..1000)
        .map(|i| {
            let path = stalled.target.join(format!("f{i}"));
            std::thread::spawn(move || std::fs::read(path).is_ok())
        })
        .collect();
    let asked = stalled.source.clone();
    crate::scene::eventually("the stalled layer asks its source", || {
        asked.requests().len() > 16
    })
    .await;
    let path = local.target.join("data");
    let times = tokio::task::spawn_blocking(move || time_reads(&path))
        .await
        .unwrap();
    assert!(
        readers.iter().all(|reader| !reader.is_finished()),
        "a stalled read ended"
    );
    // The goal is 5 ms on a quiet machine; a test machine is not one.
    assert!(
        times[times.len() * 99 / 100] < Duration::from_secs(1),
        "{times:?}"
    );
    // What Prepare does for a layer of another image, which falls back after two seconds.
    let started = Instant::now();
    let data = noise(9, 100_000);
    let another = scene.mounted(&layer_of(&data), "another").await;
    let prepared = started.elapsed();
    assert!(prepared < Duration::from_secs(10), "{prepared:?}");
    assert_eq!(read(another.target.join("data")).await.unwrap(), data);
    assert!(
        readers.iter().all(|reader| !reader.is_finished()),
        "a stalled read ended"
    );
    stalled.source.set(Mood::Honest);
    stalled.layer.set_sources(vec![stalled.source.clone()]);
    let all = tokio::task::spawn_blocking(|| {
        readers
            .into_iter()
            .filter_map(|reader| reader.join().ok())
            .count()
    });
    assert_eq!(all.await.unwrap(), 1000);
}

/// Times reads that the page cache cannot answer, ascending.
fn time_reads(path: &Path) -> Vec<Duration> {
    use std::os::unix::fs::FileExt;
    let file = File::open(path).unwrap();
    let mut piece = vec![0; 4096];
    let mut times: Vec<_> = (0..200)
        .map(|i| {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            let started = Instant::now();
            file.read_exact_at(&mut piece, i * 9_973 % 1_990_000)
                .unwrap();
            started.elapsed()
        })
        .collect();
    times.sort();
    times
}

/// A disk that can be full.
#[derive(Debug, Default)]
struct Full(AtomicBool);

impl Disk for Full {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        if self.0.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write_all_at(bytes, offset)
    }
}

/// A disk that says it is nearly full.
#[derive(Debug)]
struct NearlyFull;

impl Disk for NearlyFull {
    fn space(&self, _: &Path) -> io::Result<Space> {
        Ok(Space {
            total: 100 << 30,
            available: 4 << 30,
        })
    }
}

/// Promise: a full disk stops caching, not reading; caching resumes within 5 s.
async fn a_full_disk_keeps_serving_and_caches_again_later(driver: DriverChoice) {
    let disk = Arc::new(Full::default());
    let scene = Scene::with(driver, |config| config.disk = disk.clone()).await;
    let data = noise(6, 300_000);
    let mounted = scene.mounted(&layer_of(&data), "at").await;
    disk.0.store(true, Ordering::Relaxed);
    assert_eq!(read(mounted.target.join("data")).await.unwrap(), data);
    assert_eq!(mounted.layer.status().bytes_present, TAR_END);
    disk.0.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    while mounted.layer.status().state != LayerState::Complete {
        assert!(begun.elapsed() < RESUMES_MAX, "nothing is kept");
        tokio::time::sleep(Duration::from_millis(100)).await;
        // Refused as long as nothing is kept.
        drop(mounted.layer.fetch_all().await);
    }
}

/// Promise: what came while the disk was full, and is still in memory, is kept when it is read with
/// room on the disk, and is not fetched again for that. What is read while another write finds out whether
/// there is room is kept the next time.
async fn what_came_to_a_full_disk_is_kept_when_it_is_read_with_room(driver: DriverChoice) {
    let disk = Arc::new(Full::default());
    let scene = Scene::with(driver, |config| {
        config.disk = disk.clone();
        // So that the kernel keeps nothing that `cold` does not drop.
        config.device_reads = DeviceReads::Direct;
    })
    .await;
    let data = noise(7, 100_000);
    let mounted = scene.mounted(&layer_of(&data), "at").await;
    disk.0.store(true, Ordering::Relaxed);
    assert_eq!(read(mounted.target.join("data")).await.unwrap(), data);
    assert_eq!(mounted.layer.status().bytes_present, TAR_END);
    let fetched = mounted.source.requests().len();
    disk.0.store(false, Ordering::Relaxed);
    let begun = Instant::now();
    while mounted.layer.status().bytes_present < TAR_END + 100_000 {
        assert!(begun.elapsed() < RESUMES_MAX, "nothing is kept");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(cold(mounted.target.join("data")).await.unwrap(), data);
    }
    assert_eq!(mounted.source.requests().len(), fetched);
}

/// Promise: below the free-space floor nothing is cached, and everything is served.
async fn below_the_floor_reads_are_served_from_memory(driver: DriverChoice) {
    let scene = Scene::with(driver, |c| c.disk = Arc::new(NearlyFull)).await;
    let data = noise(8, 300_000);
    let mounted = scene.mounted(&layer_of(&data), "at").await;
    assert_eq!(read(mounted.target.join("data")).await.unwrap(), data);
    assert_eq!(mounted.layer.status().bytes_present, TAR_END);
    assert!(mounted.layer.fetch_all().await.is_err());
}

/// Promise: zeros take no room and are never fetched: a complete layer of them costs its index.
async fn zeros_are_stored_as_holes(driver: DriverChoice) {
    use std::os::unix::fs::MetadataExt;
    let scene = Scene::new(driver).await;
    let fixture = layer_of(&vec![0; 64 << 20]);
    let mounted = scene.mounted(&fixture, "at").await;
    mounted.layer.fetch_all().await.unwrap();
    assert_eq!(
        read(mounted.target.join("data")).await.unwrap(),
        vec![0; 64 << 20]
    );
    let fetched = mounted.source.bytes.load(Ordering::Relaxed);
    let index = fixture.index.stored_len;
    assert!(
        fetched < index + 1000,
        "{fetched} bytes, the index has {index}"
    );
    let store = scene
        .plane()
        .root()
        .join("store")
        .join(mounted.layer.id().0.hex());
    let used: u64 = std::fs::read_dir(store)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512)
        .sum();
    assert!(used <= 64 << 10, "{used} bytes on the disk");
}

on_both_drivers!(
    a_lying_source_gives_eio_and_then_heals,
    the_next_source_is_asked_when_one_lies_or_stalls,
    a_stalled_read_fails_once_the_deadline_has_passed,
    a_stalled_layer_does_not_delay_another,
    a_full_disk_keeps_serving_and_caches_again_later,
    what_came_to_a_full_disk_is_kept_when_it_is_read_with_room,
    below_the_floor_reads_are_served_from_memory,
    zeros_are_stored_as_holes,
);
