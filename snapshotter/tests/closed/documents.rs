//! Manifests and configs made to harm, through `mount`: each is refused by a sentence before anything is
//! mounted.

use std::fs;
use std::process::Command;

use larder_fuse::mount::mounts;
use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_test_support::layer::LayerFixture;
use larder_test_support::registry::{FakeRegistry, Settings};
use larder_test_support::tar::{Entry, TarBuilder};
use serde_json::{Value, json};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image that is sound but for one change to its documents.
struct Image {
    registry: FakeRegistry,
    manifest: Value,
    config: Value,
}

impl Image {
    fn new() -> Self {
        let registry = FakeRegistry::start_now(Settings::default());
        let layer = LayerFixture::new(TarBuilder::new().entry(Entry::file("f", "x")).finish());
        registry.push_blob(layer.blob.clone());
        let diff_id = Digest::of(&layer.tar).to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json"},
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                "digest": layer.digest.to_string(),
                "size": layer.blob.len(),
                "annotations": {annotation::INDEX: layer.index.to_string()},
            }],
        });
        let rootfs = json!({"type": "layers", "diff_ids": [diff_id]});
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs});
        Self {
            registry,
            manifest,
            config,
        }
    }

    /// Puts config and manifest there, the config's descriptor filled in unless there is one.
    fn push(&mut self) -> Digest {
        let config = self.config.to_string();
        if self.manifest["config"]["digest"].is_null() {
            self.manifest["config"]["size"] = config.len().into();
            self.manifest["config"]["digest"] = Digest::of(config.as_bytes()).to_string().into();
        }
        self.registry.push_blob(config);
        let bytes = self.manifest.to_string();
        self.registry
            .push_manifest("team/app", "1", MANIFEST, bytes)
    }
}

/// Mounts an image; the exit code and what was said.
fn mount(reference: &str) -> (Option<i32>, String) {
    let scratch = tempfile::tempdir().unwrap();
    let (root, at) = (scratch.path().join("root"), scratch.path().join("at"));
    fs::create_dir(&at).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder-snapshotter"));
    command
        .args(["mount", "--detach", "--fs-driver", "fuse", "--root"])
        .arg(&root);
    let output = command.arg(reference).arg(&at).output().unwrap();
    let mounted = mounts()
        .unwrap()
        .iter()
        .any(|mount| mount.target == at.canonicalize().unwrap());
    if mounted {
        let mut umount = Command::new(env!("CARGO_BIN_EXE_larder-snapshotter"));
        umount.args(["umount", "--root"]).arg(&root).arg(&at);
        assert!(umount.status().unwrap().success());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(mounted, output.status.success(), "{said}");
    (output.status.code(), said)
}

/// One change, and words of the refusal.
type Case = (&'static str, fn(&mut Image), &'static str);

#[expect(clippy::too_many_lines, reason = "a table, which formatting stretches")]
fn digests() -> [Case; 12] {
    [
        (
            "sha512",
            |i| i.manifest["layers"][0]["digest"] = format!("sha512:{}", "0".repeat(128)).into(),
            "sha256",
        ),
        (
            "no algorithm",
            |i| i.manifest["layers"][0]["digest"] = "0".repeat(64).into(),
            "sha256",
        ),
        // CVE-2024-3727: digests become file names.
        (
            "a path",
            |i| i.manifest["layers"][0]["digest"] = "sha256:../../../etc/passwd".into(),
            "sha256",
        ),
        (
            "capitals",
            |i| i.manifest["layers"][0]["digest"] = format!("sha256:{}", "A".repeat(64)).into(),
            "sha256",
        ),
        (
            "a path as config",
            |i| i.manifest["config"]["digest"] = "sha256:../../x".into(),
            "sha256",
        ),
        (
            "another config",
            |i| {
                i.manifest["config"] = json!({
                    "mediaType": "x", "size": 2, "digest": Digest::of(b"nowhere").to_string(),
                });
            },
            "",
        ),
        (
            "another layer",
            |i| i.manifest["layers"][0]["digest"] = Digest::of(b"nowhere").to_string().into(),
            "",
        ),
        (
            "a path as diff id",
            |i| i.config["rootfs"]["diff_ids"][0] = "sha256:../../x".into(),
            "diff ids",
        ),
        (
            "another diff id",
            |i| i.config["rootfs"]["diff_ids"][0] = Digest::of(b"x").to_string().into(),
            "",
        ),
        (
            "an index elsewhere",
            |i| {
                let index = format!("1:2:3:{}", Digest::of(b"x"));
                i.manifest["layers"][0]["annotations"][annotation::INDEX] = index.into();
            },
            "",
        ),
        (
            "an index that is a path",
            |i| {
                i.manifest["layers"][0]["annotations"][annotation::INDEX] =
                    "1:2:3:sha256:../../x".into();
            },
            "",
        ),
        (
            "an index of 2^64",
            |i| {
                let index = format!("18446744073709551615:9:9:{}", Digest::of(b"x"));
                i.manifest["layers"][0]["annotations"][annotation::INDEX] = index.into();
            },
            "",
        ),
    ]
}

fn documents() -> [Case; 10] {
    [
        (
            "an index, too",
            |i| i.manifest["manifests"] = json!([]),
            "same time",
        ),
        (
            "layers twice, in another case",
            |i| i.manifest["Layers"] = json!([]),
            "other programs",
        ),
        (
            "a digest twice",
            |i| i.manifest["layers"][0]["DIGEST"] = "sha256:00".into(),
            "other programs",
        ),
        (
            "schema 1",
            |i| i.manifest = json!({"schemaVersion": 1, "fsLayers": []}),
            "",
        ),
        (
            "no config",
            |i| i.manifest = json!({"schemaVersion": 2, "layers": []}),
            "",
        ),
        (
            "a size that is negative",
            |i| i.manifest["layers"][0]["size"] = json!(-1),
            "",
        ),
        (
            "a layer too many",
            |i| {
                let layer = i.manifest["layers"][0].clone();
                i.manifest["layers"] = json!([layer, layer]);
            },
            "2 layers and 1 diff ids",
        ),
        (
            "501 layers",
            |i| {
                let layer = i.manifest["layers"][0].clone();
                i.manifest["layers"] = Value::from(vec![layer; 501]);
            },
            "500",
        ),
        (
            "a config that is a list",
            |i| i.config = json!([]),
            "config",
        ),
        (
            "a config without layers",
            |i| i.config = json!({"rootfs": {"diff_ids": []}}),
            "diff ids",
        ),
    ]
}

/// Promise: a manifest or config that lies or can be read in two ways is refused by one sentence, and
/// nothing of it is mounted.
#[test]
fn hostile_documents_are_refused_before_anything_is_mounted() {
    let mut problems = Vec::new();
    for (name, change, words) in digests().into_iter().chain(documents()) {
        let mut image = Image::new();
        change(&mut image);
        image.push();
        let reference = image.registry.reference("team/app", "1");
        let (code, said) = mount(&reference);
        if code != Some(1) || !said.contains(words) || said.contains("panicked") {
            problems.push(format!("{name}: {code:?} {said}"));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Promise: a manifest asked for by digest is that manifest.
#[test]
fn another_manifest_than_the_digest_names_is_refused() {
    let mut image = Image::new();
    image.push();
    let other = Digest::of(b"another manifest");
    let bytes = image.manifest.to_string();
    image
        .registry
        .push_manifest("team/app", &other.to_string(), MANIFEST, bytes);
    let reference = format!("{}/team/app@{other}", image.registry.host());
    let (code, said) = mount(&reference);
    assert_eq!(code, Some(1), "{said}");
}

/// Promise (CVE-2026-53488): annotations in reserved namespaces steer nothing.
#[test]
fn reserved_annotations_of_an_image_are_ignored() {
    let mut image = Image::new();
    let annotations = &mut image.manifest["layers"][0]["annotations"];
    annotations["containerd.io/snapshot/cri.image-ref"] = "169.254.169.254/meta/data:1".into();
    annotations["containerd.io/snapshot.ref"] = "sha256:00".into();
    annotations["containerd.io/snapshot/overlay.lowerdir"] = "/etc".into();
    annotations["containerd.io/gc.root"] = "now".into();
    image.push();
    let reference = image.registry.reference("team/app", "1");
    let (code, said) = mount(&reference);
    assert_eq!(code, Some(0), "{said}");
}
