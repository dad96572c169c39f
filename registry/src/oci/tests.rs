//! Documents survive being read and written.

use super::media_type::{self, Compression};
use super::*;

const MANIFEST: &str = r#"{
  "schemaVersion": 2,
  "config": {"mediaType": "c", "size": 2,
    "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    "x-vendor": {"z": 1, "a": [true, null]}},
  "zebra": 1, "apple": "2",
  "layers": null,
  "annotations": {"b": "1", "a": "2"}
}"#;

#[test]
fn unknown_fields_are_written_back_in_one_order() {
    let manifest: Manifest = serde_json::from_str(MANIFEST).unwrap();
    assert_eq!(manifest.layers, []);
    let written = serde_json::to_string(&manifest).unwrap();
    assert_eq!(
        written,
        concat!(
            r#"{"schemaVersion":2,"config":{"mediaType":"c","digest":"sha256:44136fa355b3678a1146"#,
            r#"ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"x-vendor":{"a":[true,null]"#,
            r#","z":1}},"layers":[],"annotations":{"a":"2","b":"1"},"apple":"2","zebra":1}"#
        )
    );
    let again: Manifest = serde_json::from_str(&written).unwrap();
    assert_eq!(again, manifest);
}

#[test]
fn an_index_keeps_platforms_it_does_not_know() {
    let text = concat!(
        r#"{"schemaVersion":2,"manifests":[{"mediaType":"m","digest":"sha256:44136fa355b3678a1146a"#,
        r#"d16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2,"platform":{"architecture":"riscv"#,
        r#"64","os":"plan9","os.version":"4","os.features":["x"],"variant":"v9","brand":"ours"}}]}"#
    );
    let index: ImageIndex = serde_json::from_str(text).unwrap();
    assert_eq!(index.manifests[0].platform.as_ref().unwrap().os, "plan9");
    assert_eq!(serde_json::to_string(&index).unwrap(), text);
}

#[test]
fn a_descriptor_without_a_usable_digest_or_size_is_refused() {
    for text in [
        r#"{"mediaType":"m","digest":"sha256:..","size":2}"#,
        r#"{"mediaType":"m","size":2}"#,
        r#"{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":-1}"#,
    ] {
        assert!(serde_json::from_str::<Descriptor>(text).is_err(), "{text}");
    }
}

#[test]
fn media_types_are_told_apart() {
    for (kind, compression) in [
        (media_type::OCI_LAYER, Some(Compression::None)),
        (media_type::OCI_LAYER_GZIP, Some(Compression::Gzip)),
        (media_type::DOCKER_LAYER_GZIP, Some(Compression::Gzip)),
        (media_type::OCI_LAYER_ZSTD, Some(Compression::Zstd)),
        (media_type::DOCKER_FOREIGN_LAYER, None),
        ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", None),
        (media_type::OCI_CONFIG, None),
    ] {
        assert_eq!(media_type::layer_compression(kind), compression, "{kind}");
    }
    assert!(media_type::is_index(media_type::DOCKER_INDEX));
    assert!(!media_type::is_index(media_type::OCI_MANIFEST));
    assert!(media_type::is_manifest(media_type::DOCKER_MANIFEST));
    assert!(media_type::is_config(media_type::DOCKER_CONFIG));
    assert!(media_type::is_foreign_layer(
        media_type::DOCKER_FOREIGN_LAYER
    ));
    for kind in [media_type::OCI_MANIFEST, media_type::OCI_INDEX] {
        assert!(media_type::ACCEPT_MANIFESTS.contains(kind), "{kind}");
    }
}
