//! Complete layers: proven ones are mounted directly, lying ones quarantined.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder_fuse::mount::mounts;
use larder_fuse::{DataPlane, DataPlaneConfig, Disk, DriverChoice, MountError, StdDisk, Trust};
use larder_proto::tree::{Kind, ROOT};
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};
use larder_test_support::{on_both_drivers, on_erofs};

use crate::scene::{Memory, Mood, Scene, config, eventually, layer_of, noise, odd_layer, read};

/// Promise: a complete, proven layer is mounted from its store file, without the session.
async fn a_proven_layer_is_mounted_directly() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let mounted = scene.mounted(&odd_layer(), "root/lazy").await;
    mounted.layer.fetch_all().await.unwrap();
    let layer = mounted.layer.clone();
    eventually("the layer is proven", || layer.status().direct).await;
    let target = scene.directory("direct");
    layer.mount(&target, &[]).await.unwrap();
    mounted.source.set(Mood::Fails);
    assert_eq!(
        read(target.join("bin/big")).await.unwrap(),
        noise(7, 700_001)
    );
    eventually("both places are direct", || bases(&scene) == ["direct"]).await;
}

/// Promise: once a layer is proven, the place it is mounted at shows the store's file without the session, never
/// nothing in between; who has a file of the old mount open reads on. It can be unmounted like any other.
async fn a_mounted_layer_becomes_direct_when_it_is_proven() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let mounted = scene.mounted(&odd_layer(), "root/at").await;
    let expected = noise(7, 700_001);
    let mut open = File::open(mounted.target.join("bin/big")).unwrap();
    let (watched, ends) = (
        mounted.target.join("etc/passwd"),
        Arc::new(AtomicBool::new(false)),
    );
    let ended = ends.clone();
    let watch = std::thread::spawn(move || {
        let mut looks = 0_u64;
        while !ended.load(Ordering::Relaxed) {
            assert_eq!(std::fs::read(&watched).unwrap(), b"root:x:0:0\n");
            looks += 1;
        }
        looks
    });
    assert_eq!(bases(&scene), ["lazy"]);
    mounted.layer.fetch_all().await.unwrap();
    eventually("it is mounted directly", || bases(&scene) == ["direct"]).await;
    ends.store(true, Ordering::Relaxed);
    assert!(watch.join().unwrap() > 0);
    mounted.source.set(Mood::Fails);
    assert_eq!(mounts_at(&mounted.target), 1);
    assert_eq!(
        read(mounted.target.join("bin/big")).await.unwrap(),
        expected
    );
    let old = tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        open.read_to_end(&mut found).map(|_| found)
    });
    assert_eq!(old.await.unwrap().unwrap(), expected);
    scene.plane().unmount(&mounted.target).await.unwrap();
    assert_eq!(mounts_at(&mounted.target), 0);
    assert_eq!(bases(&scene), [""; 0]);
}

/// Promise: a mount at a place of a person's own is never exchanged: who looks after it knows it by its device.
async fn a_mount_elsewhere_stays_the_one_it_is() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let mounted = scene.mounted(&odd_layer(), "elsewhere").await;
    let device = || std::fs::metadata(&mounted.target).unwrap().dev();
    let before = device();
    mounted.layer.fetch_all().await.unwrap();
    eventually("it is proven", || mounted.layer.status().direct).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bases(&scene), ["lazy"]);
    assert_eq!(device(), before);
}

/// Promise: direct mounts fix at most half of a limited store, whichever layers are proven first; the others are
/// proven, too, and stay lazy.
async fn direct_mounts_fix_half_of_a_limited_store_at_most() {
    let scene = Scene::with(DriverChoice::Erofs, |config| {
        config.store_bytes_max = 12 << 20;
    })
    .await;
    let mut layers = Vec::new();
    for number in 0..3 {
        let fixture = layer_of(&noise(number, 2_500_000));
        layers.push(scene.mounted(&fixture, &format!("root/at{number}")).await);
    }
    for mounted in &layers {
        mounted.layer.fetch_all().await.unwrap();
        eventually("it is proven", || mounted.layer.status().direct).await;
    }
    let kinds = ["direct", "direct", "lazy"];
    eventually("two of three are direct", || bases(&scene) == kinds).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bases(&scene), kinds);
    scene.plane().unmount(&layers[0].target).await.unwrap();
    let again = scene.directory("again");
    layers[2].layer.mount(&again, &[]).await.unwrap();
    assert_eq!(bases(&scene), kinds, "there is room for one more");
}

/// A disk that keeps whoever reads the beginning of one of its files waiting.
#[derive(Debug, Default)]
struct Holding {
    /// The number of the file, or 0.
    file: AtomicU64,
    waiting: AtomicBool,
}

impl Disk for Holding {
    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let number = file.metadata()?.ino();
        // A proof begins there; the zeros at the end are looked at before.
        while offset == 0 && self.file.load(Ordering::Relaxed) == number {
            self.waiting.store(true, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
        }
        StdDisk.read_at(file, bytes, offset)
    }
}

/// Regression: after a start, a layer that a former run had proved waited for the proofs of others, which read whole layers,
/// and what was mounted meanwhile was mounted lazily.
///
/// Promise: it is mounted directly as soon as it is verified, whatever is being proved.
async fn what_was_proven_does_not_wait_for_other_proofs() {
    let disk = Arc::new(Holding::default());
    let given = disk.clone();
    let change = move |config: &mut DataPlaneConfig| config.disk = given.clone();
    let mut scene = Scene::with(DriverChoice::Erofs, &change).await;
    let proven = layer_of(&noise(1, 2_000_000));
    let mounted = scene.mounted(&proven, "root/at").await;
    mounted.layer.fetch_all().await.unwrap();
    eventually("it is proven", || mounted.layer.status().direct).await;
    drop(mounted);
    scene.plane.take().unwrap().shutdown().await;
    let root = scene.scratch.path().join("root");
    let again = DataPlane::start(config(&root, DriverChoice::Erofs, &change)).await;
    scene.plane = Some(again.unwrap());

    let fixture = layer_of(&noise(2, 2_000_000));
    let other = scene.add(&fixture, &Memory::new(&fixture)).await;
    let device = root.join("store").join(other.id().0.hex()).join("device");
    let number = std::fs::metadata(device).unwrap().ino();
    disk.file.store(number, Ordering::Relaxed);
    other.fetch_all().await.unwrap();
    eventually("it is being proved", || {
        disk.waiting.load(Ordering::Relaxed)
    })
    .await;
    let layer = scene.add(&proven, &Memory::new(&proven)).await;
    let target = scene.directory("root/again");
    layer.mount(&target, &[]).await.unwrap();
    eventually("it is mounted directly", || bases(&scene) == ["direct"]).await;
    assert_eq!(other.trust(), Trust::Claimed);
    disk.file.store(0, Ordering::Relaxed);
    assert_eq!(other.prove().await, Trust::Proven);
}

/// How the file systems of layers are mounted, in order.
fn bases(scene: &Scene) -> Vec<String> {
    let place = scene.plane().root().join("erofs");
    let mut kinds: Vec<_> = mounts()
        .unwrap()
        .iter()
        .filter(|mount| mount.target.starts_with(&place))
        .map(|mount| {
            mount
                .target
                .to_str()
                .unwrap()
                .rsplit('-')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    kinds.sort();
    kinds
}

fn mounts_at(target: &Path) -> usize {
    let mounts = mounts().unwrap();
    mounts.iter().filter(|mount| mount.target == target).count()
}

/// Promise: an index whose tree is not the tar's is found out, and its layer is mounted no more.
async fn a_lying_index_is_quarantined(driver: DriverChoice) {
    let tar = || {
        TarBuilder::new()
            .entry(Entry::file("bin/su", noise(1, 5000)).mode(0o755))
            .entry(Entry::file("other", noise(2, 5000)))
            .finish()
    };
    let setuid = LayerFixture::lying(tar(), |tree| {
        let su = tree.find(b"bin/su").unwrap();
        tree.node_mut(su).mode = 0o4755;
    });
    let swapped = LayerFixture::lying(tar(), |tree| {
        let other = tree.child(ROOT, b"other").unwrap();
        let su = tree.find(b"bin/su").unwrap();
        let kind = tree.node(su).kind.clone();
        assert!(matches!(kind, Kind::Regular { .. }));
        tree.node_mut(other).kind = kind;
    });
    for lie in [setuid, swapped] {
        let scene = Scene::new(driver).await;
        let mounted = scene.mounted(&lie, "at").await;
        mounted.layer.fetch_all().await.unwrap();
        let layer = mounted.layer.clone();
        eventually("the layer is quarantined", || {
            layer.status().quarantined.is_some()
        })
        .await;
        let refused = layer
            .mount(&scene.directory("again"), &[])
            .await
            .unwrap_err();
        assert!(
            matches!(refused, MountError::Quarantined { .. }),
            "{refused}"
        );
        assert!(!layer.status().proven);
        // Running containers go on.
        assert_eq!(
            read(mounted.target.join("bin/su")).await.unwrap(),
            noise(1, 5000)
        );
    }
}

on_erofs!(
    a_proven_layer_is_mounted_directly,
    a_mounted_layer_becomes_direct_when_it_is_proven,
    a_mount_elsewhere_stays_the_one_it_is,
    what_was_proven_does_not_wait_for_other_proofs,
    direct_mounts_fix_half_of_a_limited_store_at_most,
);

on_both_drivers!(a_lying_index_is_quarantined);
