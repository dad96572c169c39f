//! A disk that fails once, or from then on, at every place in turn.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder_fuse::{DataPlane, Disk, DriverChoice, LayerSpec, StdDisk};
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;

use crate::scene::{Memory, Scene, clean_up, config, layer_of, noise, read};

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// More places than a store of one layer has; the loop ends before.
const PLACES_MAX: usize = 500;

/// Fails its `nth` change, counted from 0, and the later ones if it is `broken` for good.
#[derive(Debug)]
struct Failing {
    nth: usize,
    broken: bool,
    errno: i32,
    changes: AtomicUsize,
}

impl Failing {
    fn change<T>(&self, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let place = self.changes.fetch_add(1, Ordering::Relaxed);
        if place == self.nth || (self.broken && place > self.nth) {
            return Err(io::Error::from_raw_os_error(self.errno));
        }
        change()
    }

    /// Whether the place to fail at was reached.
    fn has_failed(&self) -> bool {
        self.changes.load(Ordering::Relaxed) > self.nth
    }
}

impl Disk for Failing {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(|| StdDisk.write_at(file, bytes, offset))
    }

    fn punch(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        self.change(|| StdDisk.punch(file, range))
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        self.change(|| StdDisk.sync_data(file))
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.change(|| StdDisk.set_len(file, len))
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.change(|| StdDisk.create(path))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        self.change(|| StdDisk.make_directory(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|| StdDisk.rename(from, to))
    }
}

/// Promise: wherever a write, sync, rename or truncation of the store fails, with EIO or ENOSPC,
/// once or from then on: no panic, no wrong byte, what is mounted can be read, and the next start
/// on a sound disk works.
async fn a_failing_write_at_any_place_costs_no_read_and_no_start(driver: DriverChoice) {
    let data = noise(31, 150_000);
    let fixture = layer_of(&data);
    for (errno, broken) in [(EIO, false), (ENOSPC, true)] {
        let mut places = 0;
        for nth in 0..PLACES_MAX {
            let disk = Arc::new(Failing {
                nth,
                broken,
                errno,
                changes: AtomicUsize::new(0),
            });
            let scratch = tempfile::tempdir().unwrap();
            let context = format!("errno {errno}, place {nth}, broken {broken}");
            live(
                scratch.path(),
                driver,
                &fixture,
                &data,
                disk.clone(),
                &context,
            )
            .await;
            live(
                scratch.path(),
                driver,
                &fixture,
                &data,
                Arc::new(StdDisk),
                &context,
            )
            .await;
            clean_up(scratch.path());
            if !disk.has_failed() {
                places = nth;
                break;
            }
        }
        assert!(
            places > 15,
            "only {places} places; does the store use its disk?"
        );
    }
}

/// One life of a plane on `disk`: a start, a layer, a mount, reads, a proof, an end.
async fn live(
    scratch: &Path,
    driver: DriverChoice,
    fixture: &LayerFixture,
    data: &[u8],
    disk: Arc<dyn Disk>,
    context: &str,
) {
    let is_sound = format!("{disk:?}") == "StdDisk";
    let root = scratch.join("root");
    let started = DataPlane::start(config(&root, driver, |config| {
        config.disk = disk.clone();
    }));
    let plane = match started.await {
        Ok(plane) => plane,
        Err(error) => {
            assert!(!is_sound, "{context}: {error}");
            return;
        }
    };
    let spec = LayerSpec {
        blob: fixture.digest,
        index: fixture.index,
        sources: vec![Memory::new(fixture)],
        elsewhere: None,
    };
    let added = plane.add_layer(spec).await;
    assert!(added.is_ok() || !is_sound, "{context}: {added:?}");
    if let Ok(layer) = added {
        let target = scratch.join("at");
        std::fs::create_dir_all(&target).unwrap();
        layer.mount(&target, &[]).await.unwrap();
        let found = read(target.join("data")).await;
        assert!(
            found.as_ref().is_ok_and(|found| found == data),
            "{context}: {found:?}"
        );
        let complete = layer.fetch_all().await;
        assert!(complete.is_ok() || !is_sound, "{context}: {complete:?}");
        let again = read(target.join("data")).await;
        assert!(again.is_ok_and(|again| again == data), "{context}");
    }
    plane.shutdown().await;
}

/// Promise: a layer that cannot be opened at the start for a passing reason keeps its bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_cannot_be_opened_now_keeps_its_bytes() {
    let data = noise(32, 150_000);
    let fixture = layer_of(&data);
    let mut scene = Scene::new(DriverChoice::Fuse).await;
    let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
    layer.fetch_all().await.unwrap();
    let id = layer.id();
    drop(layer);
    scene.plane.take().unwrap().shutdown().await;
    let root = scene.scratch.path().join("root");
    let device = root.join("store").join(id.0.hex()).join("device");
    let aside = device.with_extension("aside");
    // A directory in its place cannot be opened for writing, as anything when files run out.
    std::fs::rename(&device, &aside).unwrap();
    std::fs::create_dir(&device).unwrap();
    let plane = DataPlane::start(config(&root, DriverChoice::Fuse, |_| {})).await;
    scene.plane = Some(plane.unwrap());
    assert!(scene.plane().layer(&id).is_none());
    std::fs::remove_dir(&device).unwrap();
    std::fs::rename(&aside, &device).unwrap();
    let source = Memory::new(&fixture);
    let layer = scene.add(&fixture, &source).await;
    let target = scene.directory("at");
    layer.mount(&target, &[]).await.unwrap();
    assert!(read(target.join("data")).await.unwrap() == data);
    assert_eq!(source.requests().len(), 1, "only the index is asked for");
}

on_both_drivers!(a_failing_write_at_any_place_costs_no_read_and_no_start,);
