//! What is attached to an image, when it is pulled and nothing is known of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use larder_proto::access::Access;
use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_proto::profile::{LayerReads, Profile};
use larder_registry::oci::Descriptor;

use super::plane::FakePlane;
use super::world::{World, chain, labels, layer, location};
use crate::containerd::Image;
use crate::plane::{Plane, Wanted};

/// A manifest of layers that have these tars and indexes.
fn image(manifest: &str, layers: &[(&str, &str)]) -> Image {
    let described = layers.iter().map(|(tars, index)| {
        let mut descriptor = Descriptor::new("", layer(tars), 1);
        let location = location(index).to_string();
        descriptor
            .annotations
            .insert(annotation::INDEX.into(), location);
        (chain(tars), descriptor)
    });
    Image {
        manifest: Digest::of(manifest.as_bytes()),
        layers: described.collect(),
        diff_ids: layers.iter().map(|(tars, _)| layer(tars)).collect(),
    }
}

fn wanted(tars: &str, index: &str) -> Wanted {
    Wanted {
        blob: layer(tars),
        index: location(index),
        origins: Vec::new(),
        namespace: "ns".into(),
        start: Vec::new(),
    }
}

/// A profile of these layers, by the names of their indexes, that reads these chunks.
fn profile(layers: &[(&str, &[u32])]) -> Vec<u8> {
    let layers = layers.iter().map(|(index, chunks)| LayerReads {
        index: location(index).digest,
        blob: Digest::of(b"blob"),
        diff_id: Digest::of(b"tar"),
        reads: chunks
            .iter()
            .map(|&chunk| Access { micros: 1, chunk })
            .collect(),
    });
    let image = "the name of another image".to_owned();
    let layers = layers.collect();
    Profile { image, layers }.encode()
}

fn attached(bytes: impl Into<Bytes>) -> FakePlane {
    let plane = FakePlane::default();
    *plane.attached.lock().unwrap() = Some(Ok(Some(bytes.into())));
    plane
}

const NAME: &str = "registry.test:5000/app:1";

/// Promise: what is attached is fetched of layers that are here, of the others when they come, instead of what the image lists;
/// it is kept under the name the image has here.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_is_used_for_layers_that_are_here_and_for_those_that_come() {
    let plane = attached(profile(&[("i2", &[7]), ("i1", &[4, 2])]));
    let world = World::new(plane).await;
    let lazy = world.snapshots.lazy().unwrap();
    let pulled = image("m", &[("c1", "i1"), ("c1/c2", "i2"), ("c1/c2/c3", "i3")]);
    let first = wanted("c1", "i1");
    world.plane.add(&first).await.unwrap();
    lazy.use_attached(&pulled, &first, NAME).await;
    let (one, two) = (location("i1").digest, location("i2").digest);
    let asked = || world.plane.replayed.lock().unwrap().clone();
    assert_eq!(asked(), [(one, vec![4, 2])]);
    let mut second = wanted("c1/c2", "i2");
    second.start = vec![Access {
        micros: 0,
        chunk: 1,
    }];
    lazy.profiles().layer_added(&first, NAME);
    lazy.profiles().layer_added(&second, NAME);
    for _ in 0..3000 {
        if asked().len() > 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(asked(), [(one, vec![4, 2]), (two, vec![7])]);
    let [(kept, None)] = &lazy.profiles().list()[..] else {
        panic!("not one profile");
    };
    assert_eq!((kept.image.as_str(), kept.layers.len()), (NAME, 3));
    // It is known now: nobody asks again.
    lazy.use_attached(
        &image(
            "other",
            &[("c1", "i1"), ("c1/c2", "i2"), ("c1/c2/c3", "i3")],
        ),
        &first,
        NAME,
    )
    .await;
    assert_eq!(world.plane.looked_up.load(Ordering::Relaxed), 1);
}

/// Promise: garbage, a profile of another image and one without end cost nothing but the look-up, which comes once;
/// so do a registry that fails and one without an answer.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_attached_and_of_no_use_is_left() {
    let endless = format!("{{\"version\":1,\"layers\":{}", "[".repeat(4 << 20));
    for bytes in [
        Some(b"garbage".to_vec()),
        Some(endless.into_bytes()),
        Some(profile(&[("i1", &[1]), ("of another image", &[1])])),
        Some(profile(&[("i1", &[])])),
        None,
    ] {
        let plane = FakePlane::default();
        let told = bytes.map(|bytes| Some(Bytes::from(bytes)));
        let told = told.ok_or_else(|| "the registry answers 503".to_owned());
        *plane.attached.lock().unwrap() = Some(told);
        let world = World::new(plane).await;
        let lazy = world.snapshots.lazy().unwrap();
        let (pulled, first) = (image("m", &[("c1", "i1")]), wanted("c1", "i1"));
        world.plane.add(&first).await.unwrap();
        for _ in 0..3 {
            lazy.use_attached(&pulled, &first, NAME).await;
        }
        assert_eq!(world.plane.looked_up.load(Ordering::Relaxed), 1);
        assert_eq!(lazy.profiles().list(), []);
        assert!(world.plane.replayed.lock().unwrap().is_empty());
        assert!(world.prepare("ns/1/a", "", labels("c1", "i1")).await);
    }
}

/// Promise: what was recorded or imported goes before what is attached; with `profiles = false`, and for an image that is
/// not converted, nobody asks.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_asks_where_a_profile_is_kept_or_of_no_use() {
    for (more, import) in [("", true), ("profiles = false", false)] {
        let dir = tempfile::tempdir().unwrap();
        let plane = Arc::new(attached(profile(&[("i1", &[9])])));
        let world = World::configured(dir, plane, more).await;
        let lazy = world.snapshots.lazy().unwrap();
        let (pulled, first) = (image("m", &[("c1", "i1")]), wanted("c1", "i1"));
        world.plane.add(&first).await.unwrap();
        if import {
            lazy.profiles().import(&profile(&[("i1", &[4])])).unwrap();
        }
        lazy.use_attached(&pulled, &first, NAME).await;
        lazy.use_attached(&image("none", &[]), &first, NAME).await;
        assert_eq!(world.plane.looked_up.load(Ordering::Relaxed), 0, "{more}");
        assert!(world.plane.replayed.lock().unwrap().is_empty());
    }
}
