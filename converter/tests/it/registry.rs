//! Conversions from registry to registry, honest and not.

use std::fs;

use larder_proto::digest::Digest;
use larder_test_support::registry::{Auth, FakeRegistry, Fault, On, Settings};
use serde_json::{Value, json};

use crate::fixture::*;

/// Pushes the source layout's only image as `repository:v1`.
fn push(world: &World, registry: &FakeRegistry, repository: &str) -> Value {
    for name in names(&world.path("source/blobs/sha256")) {
        let bytes = fs::read(world.path("source/blobs/sha256").join(&name)).unwrap();
        registry.push_blob_into(repository, bytes);
    }
    let root = world.root("source");
    let bytes = fs::read(world.blob_path("source", &root)).unwrap();
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    for entry in value["manifests"].as_array().into_iter().flatten() {
        let digest = entry["digest"].as_str().unwrap();
        let bytes = fs::read(world.blob_path("source", digest)).unwrap();
        registry.push_manifest(repository, &digest[7..27], MANIFEST, bytes);
    }
    registry.push_manifest(
        repository,
        "v1",
        value["mediaType"].as_str().unwrap(),
        bytes,
    );
    value
}

/// A world whose source image is in `a/source` of a registry; with the layer's digest.
pub(crate) async fn pushed(settings: Settings) -> (World, FakeRegistry, Digest) {
    let world = World::new();
    world.tag(&world.simple(&base()));
    let registry = FakeRegistry::start_with(settings).await;
    let manifest = push(&world, &registry, "a/source");
    let layer = manifest["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    (world, registry, layer)
}

/// Runs the command while the registry answers on the runtime.
pub(crate) async fn larder(world: &World, registry: &FakeRegistry, arguments: &str) -> Ran {
    let arguments = arguments.replace("R/", &format!("{}/", registry.host()));
    let mut command = world.command(&arguments);
    tokio::task::spawn_blocking(move || run(&mut command))
        .await
        .unwrap()
}

fn manifest(registry: &FakeRegistry, repository: &str, tag: &str) -> Value {
    let (_, bytes) = registry
        .manifest(repository, tag)
        .expect("the tag is there");
    serde_json::from_slice(&bytes).unwrap()
}

const CONVERT: &str = "convert R/a/source:v1 R/b/dest:v2";

/// Promise: from one repository to another of the same registry; what stays is mounted, the
/// result proves sound against the original, and a second run sends nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_from_repository_to_repository() {
    let (world, registry, layer) = pushed(Settings::default()).await;
    larder(&world, &registry, CONVERT).await.ok();
    let result = manifest(&registry, "b/dest", "v2");
    let config: Digest = result["config"]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(registry.blob("b/dest", &config).is_some());
    let mounted = |seen: &larder_test_support::registry::Seen| {
        seen.method == "POST"
            && seen
                .query
                .contains(&format!("mount={config}").replace(':', "%3A"))
            || seen.query.contains(&format!("mount={config}"))
    };
    assert!(
        registry.requests().iter().any(mounted),
        "the config was not mounted"
    );
    larder(
        &world,
        &registry,
        "check R/b/dest:v2 --against R/a/source:v1",
    )
    .await
    .ok();

    registry.clear_requests();
    larder(&world, &registry, CONVERT).await.ok();
    assert_eq!(manifest(&registry, "b/dest", "v2"), result);
    let fetched = |seen: &larder_test_support::registry::Seen| {
        seen.method == "GET" && seen.path.contains(&layer.to_string())
    };
    assert!(
        !registry.requests().iter().any(fetched),
        "the layer was fetched again"
    );
    // Another repository of the registry takes the converted layer from the first one.
    registry.clear_requests();
    larder(&world, &registry, "convert R/a/source:v1 R/c/other:v3")
        .await
        .ok();
    assert!(
        !registry.requests().iter().any(fetched),
        "the layer was converted again"
    );
    assert_eq!(manifest(&registry, "c/other", "v3"), result);
    assert_eq!(registry.open_uploads(), 0);
}

/// Promise: `cat` fetches the index and the chunks of the file, not the layer.
#[tokio::test(flavor = "multi_thread")]
async fn cat_and_ls_fetch_only_what_they_need() {
    let world = World::new();
    let mut state = 1_u32;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(8 << 20)
    .collect();
    let tar = larder_test_support::tar::TarBuilder::new()
        .entry(larder_test_support::tar::Entry::file("noise", noise))
        .entry(larder_test_support::tar::Entry::file("small", "here\n"))
        .finish();
    world.tag(&world.simple(&tar));
    let registry = FakeRegistry::start().await;
    larder(&world, &registry, "convert oci:@source R/b/dest:v2")
        .await
        .ok();
    registry.clear_requests();
    let ran = larder(&world, &registry, "cat R/b/dest:v2 /small")
        .await
        .ok();
    assert_eq!(ran.out, "here\n");
    let listed = larder(&world, &registry, "ls R/b/dest:v2").await.ok();
    assert_eq!(listed.out, "noise\nsmall\n");
    let sent = registry.blob_bytes_sent();
    assert!(sent < 100_000, "{sent} bytes of a layer of 8 MiB");
}

/// Promise: whatever a registry does wrong, the destination's tag does not appear, and the one
/// sentence names what happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_source_pushes_nothing() {
    for (fault, words) in [
        (Fault::FlippedBit, "damaged"),
        (Fault::OtherBlob, "damaged"),
        (Fault::Status(404, None), "not found"),
        (Fault::Status(403, None), "denied"),
        (Fault::Status(401, None), "log in"),
    ] {
        let (world, registry, layer) = pushed(Settings::default()).await;
        registry.fault(On::Blob(layer), fault.clone());
        let ran = larder(&world, &registry, CONVERT).await;
        assert_eq!(ran.code, 1, "{fault:?}: {}", ran.err);
        assert!(ran.err.contains(words), "{fault:?}: {}", ran.err);
        assert!(registry.manifest("b/dest", "v2").is_none(), "{fault:?}");
        let writes = registry
            .requests()
            .iter()
            .filter(|seen| seen.method == "PUT")
            .count();
        assert_eq!(writes, 0, "{fault:?}: something was pushed");
        world.nothing_left();
    }
}

/// Promise: a connection that breaks is resumed, on both ways.
#[tokio::test(flavor = "multi_thread")]
async fn broken_connections_are_resumed() {
    let (world, registry, layer) = pushed(Settings::default()).await;
    registry.fault_times(1, On::Blob(layer), Fault::Reset);
    registry.fault_times(1, On::Path("PATCH", "/uploads/"), Fault::CutUpload(1000));
    larder(&world, &registry, CONVERT).await.ok();
    larder(
        &world,
        &registry,
        "check R/b/dest:v2 --against R/a/source:v1",
    )
    .await
    .ok();
}

/// Promise: a push that fails leaves the tag as it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_push_leaves_the_tag() {
    let (world, registry, _) = pushed(Settings::default()).await;
    registry.fault(On::Path("PUT", "/manifests/"), Fault::Status(403, None));
    let ran = larder(&world, &registry, CONVERT).await;
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("denied") && ran.err.contains("b/dest"),
        "{}",
        ran.err
    );
    assert!(registry.manifest("b/dest", "v2").is_none());
}

/// Promise: credentials come from the file that is named; without them the sentence says what
/// to do.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_come_from_the_authfile() {
    let auth = Auth::Basic {
        username: "user".into(),
        password: "secret".into(),
    };
    let (world, registry, _) = pushed(Settings {
        auth,
        ..Settings::default()
    })
    .await;
    let none = world.path("none.json");
    fs::write(&none, "{}").unwrap();
    let ran = larder(
        &world,
        &registry,
        &format!("{CONVERT} --authfile @none.json"),
    )
    .await;
    assert!(
        ran.code == 1 && ran.err.contains("--authfile"),
        "{}",
        ran.err
    );
    // base64 of user:secret
    let auths = json!({"auths": {registry.host(): {"auth": "dXNlcjpzZWNyZXQ="}}});
    fs::write(world.path("auth.json"), auths.to_string()).unwrap();
    larder(
        &world,
        &registry,
        &format!("{CONVERT} --authfile @auth.json"),
    )
    .await
    .ok();
}

/// Promise: whoever converts a signed image is told that the result is not signed, and what to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_signature_is_not_carried_over_silently() {
    let (world, registry, _) = pushed(Settings::default()).await;
    let ran = larder(&world, &registry, CONVERT).await.ok();
    assert!(!ran.err.contains("signed"), "{}", ran.err);
    let digest: Digest = world.root("source").parse().unwrap();
    let tag = format!("sha256-{}.sig", digest.hex());
    registry.push_manifest("a/source", &tag, MANIFEST, "{}");
    let ran = larder(&world, &registry, CONVERT).await.ok();
    assert!(
        ran.err.contains("signed") && ran.err.contains("cosign sign"),
        "{}",
        ran.err
    );
}

/// Copies the image through a layout and back, and from a layout to another; the SBOM comes along.
async fn through_layouts(world: &World, registry: &FakeRegistry, sbom: &str) {
    for way in [
        "R/b/dest:v2 oci:@there",
        "oci:@there R/e/back:v5",
        "oci:@there oci:@further",
    ] {
        let arguments = format!("convert {way} --referrers copy --json");
        let ran = larder(world, registry, &arguments).await;
        assert_eq!(ran.json()["referrers"], 1, "{way}");
    }
    assert!(registry.manifest("e/back", sbom).is_some());
}

/// Promise: with `--referrers copy` an SBOM comes along and refers to the converted manifest; a
/// signature, which signs the original, stays; without it the user is told.
#[tokio::test(flavor = "multi_thread")]
async fn referrers_are_copied_where_asked_and_signatures_never() {
    for referrers in [true, false] {
        let settings = Settings {
            referrers,
            ..Settings::default()
        };
        let (world, registry, _) = pushed(settings).await;
        let empty = registry.push_blob_into("a/source", "{}");
        let sbom = registry.push_blob_into("a/source", "the list of packages");
        let subject = world.root("source");
        let size = fs::read(world.blob_path("source", &subject)).unwrap().len();
        let mut listed = Vec::new();
        for kind in [
            "application/spdx+json",
            "application/vnd.dev.cosign.signature",
        ] {
            let value = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind,
                "config": {"mediaType": "application/vnd.oci.empty.v1+json",
                           "digest": empty.to_string(), "size": 2},
                "layers": [{"mediaType": kind, "digest": sbom.to_string(), "size": 20}],
                "subject": {"mediaType": MANIFEST, "digest": subject, "size": size},
            });
            let bytes = value.to_string();
            let digest = registry.push_manifest("a/source", "unused", MANIFEST, bytes.clone());
            listed.push(json!({
                "mediaType": MANIFEST, "digest": digest.to_string(), "size": bytes.len(),
                "artifactType": kind,
            }));
        }
        let tag = subject.replace(':', "-");
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": listed});
        if !referrers {
            registry.push_manifest("a/source", &tag, INDEX, index.to_string());
        }
        let told = larder(&world, &registry, "convert R/a/source:v1 R/c/other:v3")
            .await
            .ok();
        assert!(told.err.contains("--referrers copy"), "{}", told.err);
        assert!(told.err.contains("signed"), "{}", told.err);
        let ran = larder(
            &world,
            &registry,
            &format!("{CONVERT} --referrers copy --json"),
        )
        .await;
        assert_eq!(ran.json()["referrers"], 1);
        let (_, bytes) = registry.manifest("b/dest", "v2").unwrap();
        let subject = Digest::of(&bytes);
        let pushed =
            registry.requests().into_iter().rev().find(|seen| {
                seen.method == "PUT" && seen.path.contains("/b/dest/manifests/sha256:")
            });
        let path = pushed.expect("the SBOM was pushed").path;
        let digest = path.rsplit('/').next().unwrap();
        let copied = manifest(&registry, "b/dest", digest);
        assert_eq!(copied["subject"]["digest"], subject.to_string());
        assert_eq!(copied["artifactType"], "application/spdx+json");
        assert!(registry.blob("b/dest", &sbom).is_some());
        // What is not converted again keeps its digest, so everything about it still holds.
        let again = "convert R/b/dest:v2 R/d/again:v4 --referrers copy --json";
        assert_eq!(
            larder(&world, &registry, again).await.json()["referrers"],
            1
        );
        assert!(registry.manifest("d/again", digest).is_some());
        through_layouts(&world, &registry, digest).await;
    }
}

/// Promise: a destination by digest is a mistake on the command line.
#[tokio::test(flavor = "multi_thread")]
async fn a_digest_is_no_destination() {
    let (world, registry, _) = pushed(Settings::default()).await;
    let digest = world.root("source");
    let arguments = format!("convert R/a/source@{digest} R/b/dest@{digest}");
    let ran = larder(&world, &registry, &arguments).await;
    assert_eq!(ran.code, 64, "{}", ran.err);
    let by_digest = format!("convert R/a/source@{digest} R/b/dest:v2");
    larder(&world, &registry, &by_digest).await.ok();
}
