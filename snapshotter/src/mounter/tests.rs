//! Images mounted by hand, from a registry in memory, on a data plane that only remembers.

use larder_test_support::registry::FakeRegistry;
use serde_json::json;

use super::*;
use crate::config::RegistryConfig;
use crate::lazy::tests::FakePlane;

/// Puts an image of one layer into the registry: `blob` is its layer, of which the config says that
/// its tar has digest `diff_id`. The data plane here takes every blob for a tar.
fn push(registry: &FakeRegistry, tag: &str, blob: &str, diff_id: Digest) -> String {
    let put = |document: serde_json::Value| {
        let text = document.to_string();
        let (len, digest) = (text.len(), registry.push_blob(text));
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest.to_string(), "size": len})
    };
    let rootfs = json!({"type": "layers", "diff_ids": [diff_id.to_string()]});
    let config = put(json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs}));
    let location = annotation::IndexLocation {
        offset: 1,
        stored_len: 2,
        len: 3,
        digest: Digest::of(blob.as_bytes()),
    };
    let layer = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
        "digest": registry.push_blob(blob.to_owned()).to_string(),
        "size": blob.len(),
        "annotations": {annotation::INDEX: location.to_string()},
    });
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer],
    });
    registry.push_manifest("team/app", tag, media_type, manifest.to_string());
    registry.reference("team/app", tag)
}

/// An index is used only for the tar that the image's config names, also without containerd.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_config_names_another_tar_is_not_mounted() {
    let registry = FakeRegistry::start().await;
    let scratch = tempfile::tempdir().unwrap();
    let plane = Arc::new(FakePlane::default());
    let registries = Registries::new(&RegistryConfig::default()).unwrap();
    let mounter = Mounter::new(plane, registries, scratch.path(), true).unwrap();
    let target = scratch.path().join("at");
    let honest = push(&registry, "honest", "tar", Digest::of(b"tar"));
    let lying = push(&registry, "lying", "tar", Digest::of(b"harmless"));
    let refused = mounter.mount(&lying, &target, false).await.unwrap_err();
    assert!(
        matches!(refused, MountImageError::Foreign { .. }),
        "{refused}"
    );
    assert!(mounter.list().await.is_empty());
    mounter.mount(&honest, &target, false).await.unwrap();
}
