//! Chains of layers as one file system: the same bytes from the same devices as the stack shows.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use larder_fuse::mount::{Overlay, mount_overlay, mounts};
use larder_fuse::{
    ChainLayer, DataPlane, DriverChoice, Layer, MergeLayersError, RemoveLayerError, StoreUsage,
};
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_erofs;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Memory, Mounted, Scene, config, eventually, noise, odd_layer};

/// Layers that hide, replace and add to each other, the lowest first.
fn layers() -> Vec<LayerFixture> {
    let second = TarBuilder::new()
        .entry(Entry::directory("bin").mode(0o711))
        .entry(Entry::file("bin/.wh.link", ""))
        .entry(Entry::file("bin/tool", noise(3, 400_000)).mode(0o755))
        .entry(Entry::directory("etc").mode(0o700).owner(7, 7))
        .entry(Entry::file("etc/passwd", "replaced\n"))
        .entry(Entry::file("run", "no directory any more"))
        .finish();
    let third = TarBuilder::new()
        .entry(Entry::directory("etc"))
        .entry(Entry::file("etc/.wh..wh..opq", ""))
        .entry(Entry::file("etc/only", noise(4, 90_000)))
        .finish();
    vec![
        odd_layer(),
        LayerFixture::new(second),
        LayerFixture::new(third),
    ]
}

/// Mode, owner and content of all files below `root`, by path.
async fn seen(root: PathBuf) -> BTreeMap<PathBuf, (u32, u32, u32, Vec<u8>)> {
    let look = move || {
        let (mut seen, mut pending) = (BTreeMap::new(), vec![root.clone()]);
        while let Some(path) = pending.pop() {
            // A whiteout that only one layer has is listed by overlayfs and leads nowhere.
            let Ok(found) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            let mut content = Vec::new();
            if found.is_dir() {
                let entries = std::fs::read_dir(&path).unwrap();
                pending.extend(entries.map(|entry| entry.unwrap().path()));
            } else if found.is_file() {
                content = std::fs::read(&path).unwrap();
            }
            let what = (found.mode(), found.uid(), found.gid(), content);
            seen.insert(path.strip_prefix(&root).unwrap().to_owned(), what);
        }
        seen
    };
    tokio::task::spawn_blocking(look).await.unwrap()
}

async fn mounted(scene: &Scene) -> Vec<Mounted> {
    let mut all = Vec::new();
    for (number, fixture) in layers().iter().enumerate() {
        all.push(
            scene
                .mounted(fixture, &format!("root/layer-{number}"))
                .await,
        );
    }
    all
}

fn chain(plane: &DataPlane, of: &[LayerFixture]) -> Vec<ChainLayer> {
    let id = |fixture: &LayerFixture| {
        let layers = plane.layers();
        let mut found = layers.iter().map(Layer::id);
        found.find(|id| id.0 == fixture.index.digest).unwrap()
    };
    let layer = |fixture| ChainLayer {
        layer: id(fixture),
        implied: Vec::new(),
    };
    of.iter().map(layer).collect()
}

fn store_files(scene: &Scene) -> Vec<PathBuf> {
    let merged = scene.scratch.path().join("root/store/merged");
    let entries = std::fs::read_dir(merged).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Promise: a chain mounted as one shows what the stack shows, from the same devices: what was read through
/// the one is not fetched for the other. Its layers stay as long as it is there, and nothing of it is left.
async fn a_merged_chain_shows_what_the_stack_shows_from_the_same_devices() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let all = mounted(&scene).await;
    let stack = scene.directory("stack");
    let lower = all.iter().rev().map(|one| one.target.clone()).collect();
    mount_overlay(&Overlay { lower, upper: None }, &stack).unwrap();
    let expected = seen(stack).await;
    let sources = || {
        all.iter()
            .map(|one| one.source.bytes.load(Ordering::Relaxed))
    };
    let fetched: Vec<u64> = sources().collect();
    let plane = scene.plane();
    let chain = chain(plane, &layers());
    assert_eq!(plane.merged_places(), [] as [PathBuf; 0]);
    let place = plane.mount_merged(chain.clone()).await.unwrap();
    assert_eq!(place, plane.merged_place(&chain));
    assert_eq!(plane.merged_places(), std::slice::from_ref(&place));
    let found = seen(place.clone()).await;
    assert!(
        found == expected,
        "{:?} {:?}",
        found.keys(),
        expected.keys()
    );
    assert!(
        found[Path::new("etc/only")].3.len() == 90_000
            && !found.contains_key(Path::new("bin/link"))
    );
    assert_eq!(sources().collect::<Vec<_>>(), fetched);
    // Again is the same.
    assert_eq!(plane.mount_merged(chain.clone()).await.unwrap(), place);
    let usage: StoreUsage = plane.usage();
    let on_disk: u64 = store_files(&scene)
        .iter()
        .map(|file| std::fs::metadata(file).unwrap().blocks() * 512)
        .sum();
    assert!(on_disk > 0 && usage.overhead > on_disk, "{usage:?}");
    let top = all[2].layer.id();
    plane
        .unmount(&scene.scratch.path().join("stack"))
        .await
        .ok();
    plane.unmount(&all[2].target).await.unwrap();
    let refused = plane.remove_layer(&top).await.unwrap_err();
    assert!(
        matches!(refused, RemoveLayerError::Mounted { .. }),
        "{refused}"
    );
    plane.drop_merged(&place).await.unwrap();
    plane.remove_layer(&top).await.unwrap();
    assert!(!place.exists() && store_files(&scene).is_empty());
    assert!(mounts().unwrap().iter().all(|mount| mount.target != place));
    let gone = plane.mount_merged(chain).await.unwrap_err();
    assert!(matches!(gone, MergeLayersError::Gone(_)), "{gone}");
}

/// Promise: a merged image is used again after a restart, and made again if a byte of it changed, or a kill left
/// half of it.
async fn a_merged_image_survives_and_a_damaged_one_is_made_again() {
    let mut scene = Scene::new(DriverChoice::Erofs).await;
    drop(mounted(&scene).await);
    let of = layers();
    let chain = chain(scene.plane(), &of);
    let place = scene.plane().mount_merged(chain.clone()).await.unwrap();
    let expected = seen(place.clone()).await;
    let files = store_files(&scene);
    let [image, facts] = &files[..] else {
        panic!("{files:?}");
    };
    let bytes = std::fs::read(image).unwrap();
    let mut number = std::fs::metadata(image).unwrap().ino();
    for damage in ["none", "byte", "facts"] {
        scene.plane.take().unwrap().shutdown().await;
        match damage {
            "byte" => {
                let mut damaged = bytes.clone();
                damaged[bytes.len() / 2] ^= 1;
                std::fs::write(image, damaged).unwrap();
            }
            "facts" => std::fs::remove_file(facts).unwrap(),
            _ => {}
        }
        let root = scene.scratch.path().join("root");
        let config = config(&root, DriverChoice::Erofs, |_| {});
        let plane = DataPlane::start(config).await.unwrap();
        assert!(!seen(place.clone()).await.contains_key(Path::new("etc")));
        for (layer, fixture) in plane.layers().iter().zip(sorted(&of)) {
            layer.set_sources(vec![Memory::new(fixture) as Arc<_>]);
        }
        assert_eq!(plane.mount_merged(chain.clone()).await.unwrap(), place);
        assert!(seen(place.clone()).await == expected, "{damage}");
        assert!(std::fs::read(image).unwrap() == bytes, "{damage}");
        let now = std::fs::metadata(image).unwrap().ino();
        assert_eq!(now == number, damage == "none", "{damage}");
        number = now;
        scene.plane = Some(plane);
    }
}

/// In the order in which a plane tells its layers.
fn sorted(of: &[LayerFixture]) -> Vec<&LayerFixture> {
    let mut sorted: Vec<_> = of.iter().collect();
    sorted.sort_by_key(|fixture| fixture.index.digest);
    sorted
}

/// Promise: the FUSE driver says that it does not merge.
#[tokio::test(flavor = "multi_thread")]
async fn the_fuse_driver_merges_nothing() {
    let scene = Scene::new(DriverChoice::Fuse).await;
    drop(mounted(&scene).await);
    let chain = chain(scene.plane(), &layers());
    let refused = scene.plane().mount_merged(chain).await.unwrap_err();
    assert!(matches!(refused, MergeLayersError::NotErofs), "{refused}");
}

/// Promise: once all layers are proven, what starts on the merged chain reads the store's files itself; before that,
/// and if one is missing, it does not.
async fn a_merged_chain_of_proven_layers_needs_no_daemon() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let all = mounted(&scene).await;
    let chain = chain(scene.plane(), &layers());
    let place = scene.plane().mount_merged(chain).await.unwrap();
    let device = |place: &Path| {
        let table = mounts().unwrap();
        let found = table.into_iter().filter(|mount| mount.target == place);
        let mut devices: Vec<_> = found.map(|mount| mount.device).collect();
        assert_eq!(devices.len(), 1, "one mount at {}", place.display());
        devices.remove(0)
    };
    let lazy = device(&place);
    for (number, one) in all.iter().enumerate() {
        assert_eq!(device(&place), lazy, "after {number} layers");
        one.layer.fetch_all().await.unwrap();
        one.layer.prove().await;
    }
    eventually("mounted anew", || device(&place) != lazy).await;
    let before: Vec<_> = all.iter().map(|one| one.source.requests().len()).collect();
    let found = seen(place.clone()).await;
    assert_eq!(found[Path::new("etc/only")].3, noise(4, 90_000));
    let after: Vec<_> = all.iter().map(|one| one.source.requests().len()).collect();
    assert_eq!(before, after);
    scene.plane().drop_merged(&place).await.unwrap();
    let left = mounts().unwrap();
    assert!(left.iter().all(|mount| !mount.target.starts_with(&place)));
}

on_erofs!(
    a_merged_chain_of_proven_layers_needs_no_daemon,
    a_merged_chain_shows_what_the_stack_shows_from_the_same_devices,
    a_merged_image_survives_and_a_damaged_one_is_made_again,
);
