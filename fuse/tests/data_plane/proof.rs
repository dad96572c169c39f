//! Complete layers: proven ones are mounted directly, lying ones quarantined.

use larder_fuse::mount::mounts;
use larder_fuse::{DriverChoice, MountError};
use larder_proto::tree::{Kind, ROOT};
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};
use larder_test_support::{on_both_drivers, on_erofs};

use crate::scene::{Mood, Scene, eventually, noise, odd_layer, read};

/// Promise: a complete, proven layer is mounted from its store file, without the session.
async fn a_proven_layer_is_mounted_directly() {
    let scene = Scene::new(DriverChoice::Erofs).await;
    let mounted = scene.mounted(&odd_layer(), "lazy").await;
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
    let root = scene.plane().root();
    let bases = mounts()
        .unwrap()
        .into_iter()
        .filter(|m| m.target.starts_with(root.join("erofs")));
    let mut names: Vec<_> = bases
        .map(|m| m.target.file_name().unwrap().to_owned())
        .collect();
    names.sort();
    let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
    assert_eq!(names.len(), 2);
    assert!(
        names.iter().any(|name| name.ends_with("-direct")),
        "{names:?}"
    );
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

on_erofs!(a_proven_layer_is_mounted_directly);

on_both_drivers!(a_lying_index_is_quarantined);
