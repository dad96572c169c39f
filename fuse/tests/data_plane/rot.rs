//! Disks that change bits while a container runs.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use larder_fuse::{DataPlaneConfig, DeviceReads, DriverChoice, ImpliedDirectory, Layer};
use larder_test_support::layer::LayerFixture;
use larder_test_support::rot::rot;
use larder_test_support::tar::{Entry, TarBuilder};
use larder_test_support::{on_both_drivers, on_erofs};
use rustix::fs::{Advice, fadvise};

use crate::scene::{Memory, Mood, Mounted, Scene, cold, eventually, layer_of, noise};

fn device(scene: &Scene, layer: &Layer) -> PathBuf {
    let store = scene.plane().root().join("store");
    store.join(layer.id().0.hex()).join("device")
}

/// Bytes of another image: more than a daemon keeps of verified chunks in memory of its own.
const MORE_THAN_IS_KEPT: usize = 20 << 20;

/// A file of another image. Who reads all of it has the daemon keep nothing else: what is read then comes from the disk.
async fn something_else(scene: &Scene) -> PathBuf {
    let mut data = vec![0; MORE_THAN_IS_KEPT];
    for (at, page) in data.chunks_mut(4096).enumerate() {
        page[..8].copy_from_slice(&(at as u64).to_le_bytes());
    }
    scene
        .mounted(&layer_of(&data), "else")
        .await
        .target
        .join("data")
}

/// A layer whose file was read whole, on a plane that reads devices past the kernel's memory; and what is in the file.
async fn was_read(
    driver: DriverChoice,
    change: impl Fn(&mut DataPlaneConfig),
) -> (Scene, Mounted, Vec<u8>) {
    let scene = Scene::with(driver, |config| {
        config.device_reads = DeviceReads::Direct;
        change(config);
    });
    let scene = scene.await;
    let data = noise(1, 500_000);
    let mounted = scene.mounted(&layer_of(&data), "at").await;
    assert!(cold(mounted.target.join("data")).await.unwrap() == data);
    (scene, mounted, data)
}

/// Promise: bits that the disk changed after they were verified are found before the reply, and
/// fetched again, while the container runs on.
async fn rot_is_found_before_the_reply_and_fetched_again(driver: DriverChoice) {
    let change = |config: &mut DataPlaneConfig| {
        config.verify_again_after = Duration::from_millis(100);
    };
    let (scene, mounted, data) = was_read(driver, change).await;
    let path = mounted.target.join("data");
    let other = something_else(&scene).await;
    let before = mounted.source.requests().len();
    for (round, at) in [100_000, 200_000, 499_000].into_iter().enumerate() {
        cold(other.clone()).await.unwrap();
        rot(&device(&scene, &mounted.layer), at);
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert!(cold(path.clone()).await.unwrap() == data, "round {round}");
        assert_eq!(
            mounted.source.requests().len(),
            before + round + 1,
            "one chunk each"
        );
    }
}

/// Promise: bits that the disk changed are found whenever they are read from it, however short a time ago the chunk was
/// verified; each is fetched again once, and counted.
async fn rot_is_found_when_the_disk_is_read(driver: DriverChoice) {
    let (scene, mounted, data) = was_read(driver, |_| {}).await;
    let path = mounted.target.join("data");
    let other = something_else(&scene).await;
    let before = mounted.source.requests().len();
    for (round, at) in [100_000, 200_000, 499_000].into_iter().enumerate() {
        cold(other.clone()).await.unwrap();
        let device = device(&scene, &mounted.layer);
        rot(&device, at);
        let file = File::open(&device).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert!(cold(path.clone()).await.unwrap() == data, "round {round}");
        let asked = mounted.source.requests().len();
        let all = mounted.source.requests();
        assert_eq!(asked, before + round + 1, "one chunk each: {all:?}");
        assert_eq!(scene.plane().counts().damaged(), round as u64 + 1);
        // From memory, and from a disk that is in order.
        assert!(cold(path.clone()).await.unwrap() == data);
        cold(other.clone()).await.unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        assert!(cold(path.clone()).await.unwrap() == data);
        let all = mounted.source.requests();
        assert_eq!(all.len(), asked, "{all:?}");
    }
}

/// Promise: where somebody makes a hole of a device file below the daemon that serves it, readers wait for what was there
/// to be fetched again, get it, and it is counted as damage; none gets zeros.
async fn a_hole_that_somebody_made_is_fetched_again(driver: DriverChoice) {
    let (scene, mounted, data) = was_read(driver, |_| {}).await;
    let path = mounted.target.join("data");
    let other = something_else(&scene).await;
    let place = device(&scene, &mounted.layer);
    let device = OpenOptions::new().write(true).open(place).unwrap();
    let len = device.metadata().unwrap().len();
    for is_long_enough in [false, true] {
        cold(other.clone()).await.unwrap();
        let (asked, told) = (
            mounted.source.requests().len(),
            scene.plane().counts().damaged(),
        );
        device.set_len(0).unwrap();
        if is_long_enough {
            device.set_len(len).unwrap();
        }
        assert!(cold(path.clone()).await.unwrap() == data);
        assert!(mounted.source.requests().len() > asked);
        assert!(scene.plane().counts().damaged() > told);
        assert!(cold(path.clone()).await.unwrap() == data);
    }
}

/// Promise: what rots in a file that the kernel reads directly is found by the scrub and written over
/// in place, without a hole, and new readers get right bytes.
async fn rot_below_a_direct_mount_is_mended_in_place() {
    let scene = Scene::with(DriverChoice::Erofs, |config| {
        config.scrub_every = Duration::from_millis(50);
    })
    .await;
    let data = noise(1, 500_000);
    let mounted = scene.mounted(&layer_of(&data), "lazy").await;
    mounted.layer.fetch_all().await.unwrap();
    let layer = mounted.layer.clone();
    eventually("it is proven", || layer.status().proven).await;
    let target = scene.directory("direct");
    layer.mount(&target, &[]).await.unwrap();
    let device = device(&scene, &layer);
    let whole = std::fs::read(&device).unwrap();
    rot(&device, 300_000);
    eventually("it is mended", || std::fs::read(&device).unwrap() == whole).await;
    assert!(cold(target.join("data")).await.unwrap() == data);
    assert!(cold(mounted.target.join("data")).await.unwrap() == data);
    assert!(layer.status().proven);
}

/// Promise: what rots in metadata that is mounted is found by the scrub, counted, and written over in place.
async fn rot_in_metadata_is_mended_in_place(driver: DriverChoice) {
    let scene = Scene::with(driver, |config| {
        config.scrub_every = Duration::from_millis(50);
    })
    .await;
    let data = noise(1, 50_000);
    let mounted = scene.mounted(&layer_of(&data), "at").await;
    let meta = device(&scene, &mounted.layer).with_file_name("meta");
    let (whole, file) = (std::fs::read(&meta).unwrap(), inode(&meta));
    for at in [1100, whole.len() as u64 - 1] {
        rot(&meta, at);
        eventually("it is mended", || std::fs::read(&meta).unwrap() == whole).await;
    }
    assert_eq!(inode(&meta), file, "the file that is mounted");
    let counts = scene.plane().counts().clone();
    eventually("it is counted", || counts.damaged() == 2).await;
    assert!(cold(mounted.target.join("data")).await.unwrap() == data);
}

/// Promise: what rots in the metadata that was made for other parents, with the attributes of implied directories
/// filled in, is mended in the same way.
async fn rot_in_patched_metadata_is_mended_in_place(driver: DriverChoice) {
    let scene = Scene::with(driver, |config| {
        config.scrub_every = Duration::from_millis(50);
    })
    .await;
    let tar = TarBuilder::new().entry(Entry::file("usr/bin/tool", "a tool"));
    let fixture = LayerFixture::new(tar.finish());
    let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
    let target = scene.directory("at");
    let implied = layer.implied().into_iter().map(|path| ImpliedDirectory {
        path,
        mode: 0o751,
        uid: 11,
        gid: 12,
        xattrs: Vec::new(),
    });
    layer
        .mount(&target, &implied.collect::<Vec<_>>())
        .await
        .unwrap();
    let directory = device(&scene, &layer).parent().unwrap().to_owned();
    let names = std::fs::read_dir(directory).unwrap().flatten();
    let patched = names.map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("meta-")
    });
    let patched = patched.unwrap();
    let (whole, file) = (std::fs::read(&patched).unwrap(), inode(&patched));
    rot(&patched, whole.len() as u64 - 1);
    eventually("it is mended", || std::fs::read(&patched).unwrap() == whole).await;
    assert_eq!(inode(&patched), file, "the file that is mounted");
    let counts = scene.plane().counts().clone();
    eventually("it is counted", || counts.damaged() == 1).await;
    assert!(cold(target.join("usr/bin/tool")).await.unwrap() == b"a tool");
    assert_eq!(std::fs::metadata(target.join("usr")).unwrap().uid(), 11);
}

/// Promise: what rots in the index of a mounted layer is found by the scrub and fetched again, below the daemon that has
/// it mapped; no byte of the layer is taken for damaged then. Without a source it is told, and tried again.
async fn rot_in_the_index_of_a_mounted_layer_is_mended(driver: DriverChoice) {
    let scene = Scene::with(driver, |config| {
        config.scrub_every = Duration::from_millis(200);
    })
    .await;
    let data = noise(1, 300_000);
    let mounted = scene.mounted(&layer_of(&data), "at").await;
    let index = device(&scene, &mounted.layer).with_file_name("index");
    let (whole, file) = (std::fs::read(&index).unwrap(), inode(&index));
    let counts = scene.plane().counts().clone();
    mounted.source.set(Mood::Fails);
    rot(&index, whole.len() as u64 - 70);
    eventually("it is found twice", || counts.damaged() >= 2).await;
    assert!(std::fs::read(&index).unwrap() != whole);
    mounted.source.set(Mood::Honest);
    eventually("it is mended", || std::fs::read(&index).unwrap() == whole).await;
    assert_eq!(inode(&index), file, "the file that is mapped");
    let told = counts.damaged();
    assert!(cold(mounted.target.join("data")).await.unwrap() == data);
    assert_eq!(counts.damaged(), told);
}

fn inode(path: &PathBuf) -> u64 {
    std::fs::metadata(path).unwrap().ino()
}

on_both_drivers!(
    rot_is_found_before_the_reply_and_fetched_again,
    rot_is_found_when_the_disk_is_read,
    a_hole_that_somebody_made_is_fetched_again,
    rot_in_metadata_is_mended_in_place,
    rot_in_patched_metadata_is_mended_in_place,
    rot_in_the_index_of_a_mounted_layer_is_mended,
);

on_erofs!(rot_below_a_direct_mount_is_mended_in_place);
