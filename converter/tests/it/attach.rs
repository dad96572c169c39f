//! Profiles attached to images in registries: put there, shown, replaced, taken off.

use std::fs;

use larder_proto::access::Access;
use larder_proto::annotation::IndexLocation;
use larder_proto::digest::Digest;
use larder_proto::profile::{LayerReads, MEDIA_TYPE, PROFILE_BYTES_MAX, Profile};
use larder_test_support::registry::{FakeRegistry, Fault, On, Settings};
use serde_json::{Value, json};

use crate::fixture::*;
use crate::registry::{larder, pushed};

const CONVERTED: &str = "convert R/a/source:v1 R/b/dest:v2";

/// A registry with and one without the referrers API, each with a converted image.
async fn worlds() -> Vec<(World, FakeRegistry)> {
    let mut worlds = Vec::new();
    for referrers in [true, false] {
        let settings = Settings {
            referrers,
            ..Settings::default()
        };
        let (world, registry, _) = pushed(settings).await;
        larder(&world, &registry, CONVERTED).await.ok();
        worlds.push((world, registry));
    }
    worlds
}

fn manifest(registry: &FakeRegistry, name: &str) -> (Digest, Value) {
    let (repository, tag) = name.split_once(':').unwrap();
    let (_, bytes) = registry.manifest(repository, tag).unwrap();
    let value = serde_json::from_slice(&bytes).unwrap();
    (Digest::of(&bytes), value)
}

/// Writes a profile of the image called `name` that reads these chunks of its only layer.
fn profile(world: &World, registry: &FakeRegistry, name: &str, chunks: &[u32]) -> Vec<u8> {
    let (_, manifest) = manifest(registry, name);
    let layer = &manifest["layers"][0];
    let location = &layer["annotations"]["containerd.io/snapshot/larder.index"];
    let location: IndexLocation = location.as_str().unwrap().parse().unwrap();
    let reads = chunks.iter().map(|&chunk| Access { micros: 1, chunk });
    let profile = Profile {
        image: "r.example/app:1".into(),
        layers: vec![LayerReads {
            index: location.digest,
            blob: layer["digest"].as_str().unwrap().parse().unwrap(),
            diff_id: Digest::of(&base()),
            reads: reads.collect(),
        }],
    };
    let bytes = profile.encode();
    fs::write(world.path("profile"), &bytes).unwrap();
    bytes
}

async fn shown(world: &World, registry: &FakeRegistry, name: &str) -> Vec<Value> {
    let told = larder(world, registry, &format!("profile show R/{name} --json")).await;
    let told = told.json();
    let profiles = told["manifests"][0]["profiles"].as_array();
    profiles.unwrap().clone()
}

const ATTACH: &str = "profile attach R/b/dest:v2 @profile";

/// Promise: an attached profile is an artifact that oras and others can read, with the image's manifest as its
/// subject; the same again changes nothing, another one takes its place, and detaching leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_profile_is_attached_replaced_and_detached() {
    for (world, registry) in worlds().await {
        let (image, before) = manifest(&registry, "b/dest:v2");
        let bytes = profile(&world, &registry, "b/dest:v2", &[2, 0]);
        let told = larder(&world, &registry, &format!("{ATTACH} --json"))
            .await
            .json();
        let attached = &told["attached"][0];
        assert_eq!(told["chunks"], 2);
        assert_eq!(attached["digest"], image.to_string());
        assert_eq!(attached["platform"], "linux/amd64");
        let artifact = attached["artifact"].as_str().unwrap();
        let (_, document) = registry.manifest("b/dest", artifact).unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["artifactType"], MEDIA_TYPE);
        assert_eq!(
            document["config"]["mediaType"],
            "application/vnd.oci.empty.v1+json"
        );
        assert_eq!(document["subject"]["digest"], image.to_string());
        let layer = document["layers"][0]["digest"].as_str().unwrap();
        let blob = registry.blob("b/dest", &layer.parse().unwrap()).unwrap();
        assert_eq!(blob, bytes);
        let told = larder(&world, &registry, &format!("{ATTACH} --json")).await;
        let again = &told.json()["attached"][0];
        assert_eq!(
            (&again["artifact"], &again["was_there"]),
            (&attached["artifact"], &json!(true))
        );

        profile(&world, &registry, "b/dest:v2", &[1]);
        let told = larder(&world, &registry, ATTACH).await.ok();
        assert!(told.out.contains("in the place of 1"), "{}", told.out);
        let there = shown(&world, &registry, "b/dest:v2").await;
        assert_eq!(there.len(), 1);
        assert_eq!(
            (&there[0]["chunks"], &there[0]["image"]),
            (&json!(1), &json!("r.example/app:1"))
        );
        // The image and its check are what they were.
        assert_eq!(manifest(&registry, "b/dest:v2"), (image, before));
        larder(&world, &registry, "check R/b/dest:v2").await.ok();
        let told = larder(&world, &registry, "profile show R/b/dest:v2").await;
        assert!(told.out.contains("1 chunk of 1 layer"), "{}", told.out);

        let off = "profile detach R/b/dest:v2";
        larder(&world, &registry, off).await.ok();
        assert_eq!(
            shown(&world, &registry, "b/dest:v2").await,
            [Value::Null; 0]
        );
        let again = larder(&world, &registry, off).await;
        assert_eq!(again.code, 1);
        assert!(
            again.err.contains("no profile is attached"),
            "{}",
            again.err
        );
    }
}

/// Promise: what is no profile, is of another image or says nothing is refused by one sentence, exit 1, and nothing
/// is pushed; an image in no registry is a mistake on the command line.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_belong_to_the_image_is_not_attached() {
    let (world, registry) = worlds().await.remove(0);
    larder(
        &world,
        &registry,
        &format!("{CONVERTED}-64 --chunk-size 64K"),
    )
    .await
    .ok();
    let sound = profile(&world, &registry, "b/dest:v2", &[0]);
    let other = profile(&world, &registry, "b/dest:v2-64", &[0]);
    let idle = profile(&world, &registry, "b/dest:v2", &[]);
    let text = String::from_utf8(sound.clone()).unwrap();
    let later = text.replace("\"version\":1", "\"version\":2");
    let diff_id = Digest::of(&base()).to_string();
    let foreign = text.replace(&diff_id, &Digest::of(b"other").to_string());
    registry.clear_requests();
    for (bytes, why) in [
        (b"garbage".to_vec(), "it is not of a profile's form"),
        (vec![b'['; PROFILE_BYTES_MAX * 2], "at most 4194304"),
        (sound[..sound.len() / 2].to_vec(), "form"),
        (later.into_bytes(), "a later build wrote it"),
        (other, "the profile is of another image"),
        (foreign.into_bytes(), "the profile is of another image"),
        (idle, "names no chunk"),
    ] {
        fs::write(world.path("profile"), &bytes).unwrap();
        let ran = larder(&world, &registry, ATTACH).await;
        assert_eq!(ran.code, 1, "{why}: {}", ran.err);
        assert!(ran.err.contains(why), "{why}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        let ran = larder(&world, &registry, &format!("{ATTACH} --json")).await;
        let told: Value = serde_json::from_str(&ran.out).unwrap();
        assert!(told["error"].as_str().unwrap().contains(why), "{told}");
    }
    fs::write(world.path("profile"), &sound).unwrap();
    let original = "profile attach R/a/source:v1 @profile";
    let ran = larder(&world, &registry, original).await;
    assert_eq!(ran.code, 1, "an image that is not converted: {}", ran.err);
    let absent = "profile attach R/b/dest:v2 @absent";
    assert_eq!(larder(&world, &registry, absent).await.code, 1);
    let other = format!("{ATTACH} --platform linux/s390x");
    assert_eq!(larder(&world, &registry, &other).await.code, 1);
    for usage in [
        "profile attach oci:@source @profile",
        "profile attach R/b/dest:v2",
        "profile show containerd:x",
        "profile",
    ] {
        assert_eq!(larder(&world, &registry, usage).await.code, 64, "{usage}");
    }
    let requests = registry.requests().into_iter();
    let pushes: Vec<_> = requests.filter(|seen| seen.method == "PUT").collect();
    assert!(pushes.is_empty(), "{pushes:?}");
}

/// Promise: with several platforms, the profile goes to the manifest whose layers it names.
#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_is_found_by_the_profile() {
    let (world, registry) = worlds().await.remove(1);
    let (digest, _) = manifest(&registry, "b/dest:v2");
    larder(
        &world,
        &registry,
        &format!("{CONVERTED}-64 --chunk-size 64K"),
    )
    .await
    .ok();
    let (other, _) = manifest(&registry, "b/dest:v2-64");
    let size = |of: &Digest| {
        registry
            .manifest("b/dest", &of.to_string())
            .unwrap()
            .1
            .len()
    };
    let entry = |of: &Digest, architecture: &str| {
        json!({"mediaType": MANIFEST, "digest": of.to_string(), "size": size(of),
               "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = json!({"schemaVersion": 2, "mediaType": INDEX,
                       "manifests": [entry(&other, "arm64"), entry(&digest, "amd64")]});
    registry.push_manifest("b/dest", "many", INDEX, index.to_string());
    profile(&world, &registry, "b/dest:v2", &[0]);
    let attach = "profile attach R/b/dest:many @profile --json";
    let told = larder(&world, &registry, attach).await.json();
    assert_eq!(told["attached"].as_array().unwrap().len(), 1);
    assert_eq!(told["attached"][0]["digest"], digest.to_string());
    assert_eq!(shown(&world, &registry, "b/dest:v2").await.len(), 1);
    assert_eq!(shown(&world, &registry, "b/dest:v2-64").await.len(), 0);
    let wrong = format!("{attach} --platform linux/arm64");
    assert_eq!(larder(&world, &registry, &wrong).await.code, 1);
}

/// Promise: where a registry keeps what is to be deleted, the newer profile counts, and the older one is named; what
/// is attached and no profile is shown as such.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_keeps_is_told() {
    let (world, registry) = worlds().await.remove(0);
    profile(&world, &registry, "b/dest:v2", &[0]);
    larder(&world, &registry, ATTACH).await.ok();
    let first = shown(&world, &registry, "b/dest:v2").await.remove(0);
    registry.fault(On::Path("DELETE", "/manifests/"), Fault::Status(405, None));
    // The moment of attaching is told in seconds.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    profile(&world, &registry, "b/dest:v2", &[0, 1]);
    let ran = larder(&world, &registry, ATTACH).await.ok();
    let artifact = first["artifact"].as_str().unwrap();
    assert!(ran.err.contains(artifact), "{}", ran.err);
    let there = shown(&world, &registry, "b/dest:v2").await;
    assert_eq!([&there[0]["chunks"], &there[1]["chunks"]], [2, 1]);
    let ran = larder(&world, &registry, "profile detach R/b/dest:v2").await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("405"), "{}", ran.err);

    registry.clear_faults();
    larder(&world, &registry, "profile detach R/b/dest:v2")
        .await
        .ok();
    let (subject, _) = manifest(&registry, "b/dest:v2");
    let blob = registry.push_blob_into("b/dest", "garbage");
    let artifact = json!({
        "schemaVersion": 2, "artifactType": MEDIA_TYPE,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": blob.to_string(), "size": 7},
        "layers": [{"mediaType": MEDIA_TYPE, "digest": blob.to_string(), "size": 7}],
        "subject": {"mediaType": MANIFEST, "digest": subject.to_string(), "size": 1},
    });
    registry.push_manifest("b/dest", "garbage", MANIFEST, artifact.to_string());
    let told = larder(&world, &registry, "profile show R/b/dest:v2")
        .await
        .ok();
    assert!(
        told.out.contains("of no use: it is not of a profile"),
        "{}",
        told.out
    );
    // What is of no use is replaced.
    let ran = larder(&world, &registry, ATTACH).await.ok();
    assert!(ran.out.contains("in the place of 1"), "{}", ran.out);
}

/// Promise: `convert --referrers copy` takes a profile along where the layers stay, and says why not where they are
/// other ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_profile_comes_along_where_the_layers_stay() {
    for (world, registry) in worlds().await {
        profile(&world, &registry, "b/dest:v2", &[1]);
        larder(&world, &registry, ATTACH).await.ok();
        // The same image elsewhere; the same layers in another manifest; other chunks.
        for (to, options, count) in [
            ("c/same:v3", "", 1),
            ("c/listed:v3", "--profile @profile", 1),
            ("c/other:v3", "--no-cache --chunk-size 64K", 0),
        ] {
            let convert = format!("convert R/b/dest:v2 R/{to} --referrers copy {options}");
            let ran = larder(&world, &registry, &format!("{convert} --json")).await;
            let told = ran.json();
            assert_eq!(told["referrers"], count, "{to}: {told}");
            assert_eq!(shown(&world, &registry, to).await.len(), count, "{to}");
            let why = told["notes"].to_string();
            assert_eq!(why.contains("larder profile attach"), count == 0);
        }
    }
}
