//! The lists of what a start reads, as the command writes, keeps and checks them.

use std::fs;

use larder_proto::access::Access;
use larder_proto::annotation::IndexLocation;
use larder_proto::digest::Digest;
use larder_proto::profile::{LayerReads, Profile};
use larder_registry::oci::media_type;
use larder_test_support::tar::{Entry, TarBuilder};
use serde_json::{Value, json};

use crate::fixture::*;

const START: &str = "containerd.io/snapshot/larder.start";

/// A layer with a large file that no start reads, and a program.
fn tar() -> Vec<u8> {
    let mut state = 1_u32;
    let noise = (0..3 << 20).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    TarBuilder::new()
        .entry(Entry::file("data/noise", noise.collect::<Vec<_>>()))
        .entry(Entry::file("bin/true", "#!/bin/sh\n").mode(0o755))
        .finish()
}

/// An image of that layer and a small one, in the source layout.
fn image(world: &World) -> Value {
    let (base, change) = (tar(), change());
    let layers = [world.layer(GZIP, &gzip(&base)), world.layer(PLAIN, &change)];
    let image = world.image("amd64", &layers, &[&base, &change]);
    world.tag(&image);
    image
}

fn layers(world: &World, layout: &str) -> Vec<Value> {
    let manifest = world.document(layout, &world.root(layout));
    manifest["layers"].as_array().unwrap().clone()
}

/// Promise: a list changes no layer; with and without a cache, from layers converted now, earlier or by another
/// conversion, the same image gets the same list; without lists, there are none.
#[test]
fn start_lists_are_remembered_and_change_no_layer() {
    let world = World::new();
    image(&world);
    let without = "convert oci:@source oci:@dest --no-start-list";
    let with = "convert oci:@source oci:@dest";
    world.larder(without).ok();
    let bare = layers(&world, "dest");
    assert!(
        bare.iter()
            .all(|layer| layer["annotations"][START].is_null())
    );
    // From the layers that are there.
    world.larder(with).ok();
    let listed = layers(&world, "dest");
    let digest = world.root("dest");
    for (bare, listed) in bare.iter().zip(&listed) {
        assert_eq!(bare["digest"], listed["digest"]);
        assert!(listed["annotations"][START].is_string(), "{listed}");
    }
    let list = |place: usize| {
        let details = world.larder("inspect oci:@dest --json").json();
        details["manifests"][0]["layers"][place]["start"].clone()
    };
    assert_eq!(list(0)["chunks"], 1, "the program's alone");
    assert_eq!(list(1)["rows"], json!([0]));
    // From the cache; then from the manifest at the destination; then from the layers of this conversion.
    for (again, to) in [
        (with, "dest"),
        (with, "dest"),
        ("convert oci:@source oci:@fresh", "fresh"),
    ] {
        let report = world.larder(&format!("{again} --json")).json();
        assert_eq!(report["digest"], digest);
        assert_eq!(world.root(to), digest);
        fs::remove_dir_all(world.path("cache")).unwrap();
    }
    // What is in Larder's form already stays byte for byte, list included.
    let report = world.larder("convert oci:@dest oci:@again --json").json();
    assert_eq!(report["digest"], digest);
    // Without a list, the same image is another manifest.
    world.larder(without).ok();
    assert_eq!(layers(&world, "dest"), bare);
}

/// Promise: `check` finds a list that is malformed or names chunks that are not there; `inspect` tells it.
#[test]
fn a_bad_start_list_is_found() {
    let world = World::new();
    image(&world);
    world.larder("convert oci:@source oci:@dest").ok();
    world.larder("check oci:@dest").ok();
    let sound = world.document("dest", &world.root("dest"));
    for (list, why) in [
        ("1:AAAB", "names chunks that the layer does not have"),
        ("2:AAAA", "is of another version"),
    ] {
        let mut manifest = sound.clone();
        manifest["layers"][1]["annotations"][START] = json!(list);
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::of(&bytes).to_string();
        let path = world.blob_path("dest", &digest);
        fs::write(path, &bytes).unwrap();
        let entry =
            json!({"mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": bytes.len()});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(world.path("dest/index.json"), index.to_string()).unwrap();
        let checked = world.larder("check oci:@dest");
        assert_eq!(checked.code, 1);
        assert!(
            checked.out.contains(&format!("the start list {why}")),
            "{}",
            checked.out
        );
        let inspected = world.larder("inspect oci:@dest").ok();
        assert!(
            inspected
                .out
                .contains(&format!("BAD: the start list {why}")),
            "{}",
            inspected.out
        );
    }
}

/// What a recorded start reads of the layers of `layout`, by their places: rows of the chunk table.
fn profile(world: &World, layout: &str, reads: &[(usize, &[u32])]) {
    let part = |(place, rows): &(usize, &[u32])| {
        let layer = &layers(world, layout)[*place];
        let location = layer["annotations"]["containerd.io/snapshot/larder.index"].clone();
        let location: IndexLocation = location.as_str().unwrap().parse().unwrap();
        let reads = rows.iter().zip([0, 900_000, 1_800_000]);
        LayerReads {
            index: location.digest,
            blob: layer["digest"].as_str().unwrap().parse().unwrap(),
            diff_id: Digest::of(b"tar"),
            reads: reads
                .map(|(&chunk, micros)| Access { micros, chunk })
                .collect(),
        }
    };
    let layers = reads.iter().map(part).collect();
    let image = String::from("r.example/app:1");
    fs::write(world.path("profile"), Profile { image, layers }.encode()).unwrap();
}

fn rows(world: &World, layout: &str) -> Vec<Value> {
    let details = world
        .larder(&format!("inspect oci:@{layout} --json"))
        .json();
    let layers = details["manifests"][0]["layers"].as_array().unwrap();
    layers
        .iter()
        .map(|layer| layer["start"]["rows"].clone())
        .collect()
}

/// Promise: a profile takes the place of what was worked out, also in an image that is converted already; parts of
/// it that do not fit are named and left out, and one that does not fit at all ends the conversion.
#[test]
fn a_profile_is_embedded_where_it_fits() {
    let world = World::new();
    image(&world);
    world.larder("convert oci:@source oci:@dest").ok();
    let with = "--profile @profile --json";
    profile(&world, "dest", &[(0, &[3, 1])]);
    for (source, to) in [("source", "one"), ("dest", "two")] {
        let told = world
            .larder(&format!("convert oci:@{source} oci:@{to} {with}"))
            .json();
        assert_eq!(rows(&world, to), [json!([3, 1]), Value::Null], "{told}");
        assert_eq!(told["notes"], json!([]));
        world
            .larder(&format!("check oci:@{to} --against oci:@{source}"))
            .ok();
    }
    // The same again is the same image.
    let told = world
        .larder(&format!("convert oci:@two oci:@three {with}"))
        .json();
    assert_eq!(told["digest"], world.root("two"));

    profile(&world, "dest", &[(0, &[1_000_000]), (1, &[0])]);
    let told = world
        .larder(&format!("convert oci:@source oci:@one {with}"))
        .json();
    assert_eq!(rows(&world, "one"), [Value::Null, json!([0])]);
    assert!(
        told["notes"][0].as_str().unwrap().contains("does not have"),
        "{told}"
    );

    let root = world.root("one");
    let another = "convert oci:@source oci:@other --chunk-size 64K";
    world.larder(another).ok();
    profile(&world, "other", &[(0, &[1])]);
    let refused = world.larder("convert oci:@source oci:@one --profile @profile");
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.contains("no layer of this image"),
        "{}",
        refused.err
    );
    assert_eq!(world.root("one"), root);
    fs::write(world.path("profile"), "{}").unwrap();
    let refused = world.larder("convert oci:@source oci:@one --profile @profile");
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("profile:"), "{}", refused.err);
    let both = "convert oci:@source oci:@one --profile @profile --no-start-list";
    assert_eq!(world.larder(both).code, 64);
}
