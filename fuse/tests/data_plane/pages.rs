//! How often what was read lies in memory.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use larder_fuse::DriverChoice;
use larder_test_support::{on_both_drivers, on_erofs};
use rustix::fs::{Advice, fadvise};
use rustix::io::{ReadWriteFlags, preadv2};

use crate::scene::{Mood, Mounted, Scene, cold, eventually, layer_of, noise, read};

/// Bytes of the file: some chunks.
const LEN: usize = 2_000_000;

/// Where one of them is, in the store.
fn stored(scene: &Scene, mounted: &Mounted) -> PathBuf {
    let store = scene.plane().root().join("store");
    store.join(mounted.layer.id().0.hex()).join("device")
}

/// Pages of a file of the store that are in memory, of one in the middle of each 64 KiB: chunks share some of the others.
/// Asking brings them.
fn in_memory(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    fadvise(&file, 0, None, Advice::Random).unwrap();
    let is_there = |at: &u64| {
        let mut byte = [0];
        let mut bytes = [std::io::IoSliceMut::new(&mut byte)];
        preadv2(&file, &mut bytes, *at, ReadWriteFlags::NOWAIT).is_ok()
    };
    let places = (32 << 10..LEN as u64).step_by(64 << 10);
    places.filter(is_there).count()
}

/// The layer's device as EROFS reads it.
fn served(scene: &Scene, mounted: &Mounted) -> PathBuf {
    let record = std::fs::read(stored(scene, mounted).with_file_name("layer.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let session = scene.plane().root().join("session").join("dev");
    session.join(record["slot"].to_string())
}

/// Reads some bytes of a device.
async fn read_some(device: &Path) {
    let path = device.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let file = File::open(path).unwrap();
        fadvise(&file, 0, None, Advice::Random).unwrap();
        file.read_exact_at(&mut [0; 4096], 1 << 20).unwrap();
    });
    read.await.unwrap();
}

/// Promise: what was read through a mount and rests is in memory once, as the file's: neither the store's file nor the device
/// has it, too; reading it again asks nobody, and reading what the kernel dropped finds the right bytes.
async fn what_was_read_and_rests_is_in_memory_once(driver: DriverChoice) {
    let scene = Scene::with(driver, |config| config.completion.enabled = false).await;
    let data = noise(3, LEN);
    let mounted = scene.mounted(&layer_of(&data), "at").await;
    let path = mounted.target.join("data");
    assert!(read(path.clone()).await.unwrap() == data);
    let store = stored(&scene, &mounted);
    assert!(in_memory(&store) > 0);
    for _ in 0..2 {
        scene.plane().end_round().await;
    }
    assert_eq!(in_memory(&store), 0);
    let answers = || scene.plane().counts().hits().count();
    mounted.source.set(Mood::Fails);
    let before = answers();
    assert!(read(path.clone()).await.unwrap() == data);
    assert_eq!(answers(), before, "the file's own pages stay");
    if driver == DriverChoice::Erofs {
        // The kernel gives them back while nobody waits for it.
        let device = served(&scene, &mounted);
        for _ in 0..6000 {
            read_some(&device).await;
            if answers() > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(answers() > before, "the device's pages are given back");
    }
    assert!(cold(path).await.unwrap() == data);
    assert_eq!(scene.plane().counts().damaged(), 0);
}

/// Promise: what was read through a direct mount and rests is in memory once, too.
async fn what_was_read_directly_and_rests_is_in_memory_once() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let data = noise(4, LEN);
    let mounted = scene.mounted(&layer_of(&data), "root/at").await;
    mounted.layer.fetch_all().await.unwrap();
    eventually("it is proven", || mounted.layer.status().direct).await;
    let target = scene.directory("direct");
    mounted.layer.mount(&target, &[]).await.unwrap();
    let store = stored(&scene, &mounted);
    for _ in 0..3 {
        scene.plane().end_round().await;
    }
    // The rounds above saw nobody read.
    let mut file = File::open(target.join("data")).unwrap();
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    assert!(found == data);
    for _ in 0..2 {
        scene.plane().end_round().await;
    }
    assert_eq!(in_memory(&store), 0);
    assert!(read(target.join("data")).await.unwrap() == data);
}

on_both_drivers!(what_was_read_and_rests_is_in_memory_once);
on_erofs!(what_was_read_directly_and_rests_is_in_memory_once);
