//! What conversion promises about documents.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::manifest::{Document, Parsed, is_attestation};
use larder_registry::oci::media_type as media;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn location() -> IndexLocation {
    IndexLocation {
        offset: 108,
        stored_len: 20,
        len: 30,
        digest: digest("index"),
    }
}

fn manifest(value: &Value) -> (Document, Manifest) {
    let kind = value["mediaType"].as_str().unwrap_or(media::OCI_MANIFEST);
    let document = Document::new(kind, value.to_string().into_bytes());
    match Parsed::parse(&document).unwrap() {
        Parsed::Manifest(manifest) => (document, *manifest),
        Parsed::Index(_) => panic!("an index"),
    }
}

fn index(value: &Value) -> (Document, larder_registry::oci::ImageIndex) {
    let document = Document::new(
        value["mediaType"].as_str().unwrap(),
        value.to_string().into_bytes(),
    );
    match Parsed::parse(&document).unwrap() {
        Parsed::Index(index) => (document, *index),
        Parsed::Manifest(_) => panic!("a manifest"),
    }
}

fn config(os: &str, tars: &[&str]) -> ImageConfig {
    let diff_ids: Vec<_> = tars.iter().map(|tar| digest(tar).to_string()).collect();
    let value = json!({"os": os, "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}});
    serde_json::from_value(value).unwrap()
}

fn layer(kind: &str, name: &str) -> Value {
    json!({"mediaType": kind, "digest": digest(name).to_string(), "size": 5})
}

fn image(config_kind: &str, layers: &[Value]) -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": {"mediaType": config_kind, "digest": digest("config").to_string(), "size": 2},
        "layers": layers,
    })
}

fn reparsed(document: &Document) -> Value {
    assert_eq!(document.digest, Digest::of(&document.bytes));
    serde_json::from_slice(&document.bytes).unwrap()
}

#[test]
fn what_is_no_linux_image_is_copied_with_its_kind_in_the_reason() {
    let helm = "application/vnd.cncf.helm.config.v1+json";
    let chart = "application/vnd.cncf.helm.chart.content.v1.tar+gzip";
    let (_, chart) = manifest(&image(helm, &[layer(chart, "a")]));
    assert!(is_image(&chart).unwrap_err().contains(helm));
    let mut artifact = image(media::OCI_CONFIG, &[layer(media::OCI_LAYER_GZIP, "a")]);
    artifact["artifactType"] = json!("application/x-thing");
    assert!(
        is_image(&manifest(&artifact).1)
            .unwrap_err()
            .contains("x-thing")
    );

    let intoto = layer("application/vnd.in-toto+json", "a");
    for (os, layers, reason) in [
        (
            "windows",
            vec![layer(media::OCI_LAYER_GZIP, "a")],
            "windows",
        ),
        ("linux", vec![], "no layers"),
        ("linux", vec![intoto], "in-toto"),
    ] {
        let (_, image) = manifest(&image(media::OCI_CONFIG, &layers));
        assert_eq!(is_image(&image), Ok(()));
        match plan_manifest(&image, &config(os, &["tar"])).unwrap() {
            ManifestPlan::Copy(text) => assert!(text.contains(reason), "{text}"),
            ManifestPlan::Layers(plan) => panic!("{plan:?}"),
        }
    }
}

#[test]
fn each_layer_goes_its_own_way() {
    let mut larder = layer(media::OCI_LAYER_ZSTD, "larder");
    larder["annotations"] = json!({
        annotation::INDEX: location().to_string(),
        annotation::LAYER: digest("larder").to_string(),
    });
    // Annotations that were carried over to another blob vouch for nothing.
    let mut stray = larder.clone();
    stray["digest"] = json!(digest("other").to_string());
    let layers = [
        layer(media::DOCKER_LAYER_GZIP, "a"),
        larder,
        stray,
        layer(media::DOCKER_FOREIGN_LAYER, "b"),
        layer("application/x-encrypted", "c"),
    ];
    let (_, image) = manifest(&image(media::OCI_CONFIG, &layers));
    let config = config("linux", &["1", "2", "3", "4", "5"]);
    let ManifestPlan::Layers(plan) = plan_manifest(&image, &config).unwrap() else {
        panic!()
    };
    assert_eq!(
        plan[0],
        LayerPlan::Convert {
            diff_id: digest("1")
        }
    );
    assert_eq!(
        plan[1],
        LayerPlan::Reuse {
            location: location(),
            diff_id: digest("2")
        }
    );
    assert_eq!(
        plan[2],
        LayerPlan::Convert {
            diff_id: digest("3")
        }
    );
    assert!(matches!(&plan[3], LayerPlan::Copy(why) if why.contains("not distributable")));
    assert!(matches!(&plan[4], LayerPlan::Copy(why) if why.contains("encrypted")));
}

#[test]
fn a_config_with_other_layers_is_refused() {
    let (_, image) = manifest(&image(media::OCI_CONFIG, &[layer(media::OCI_LAYER, "a")]));
    let error = plan_manifest(&image, &config("linux", &[])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the image's config lists 0 diffIDs for 1 layers"
    );
}

#[test]
fn a_docker_manifest_becomes_an_oci_manifest_with_the_same_config() {
    let mut gzip = layer(media::DOCKER_LAYER_GZIP, "a");
    gzip["annotations"] = json!({
        "containerd.io/snapshot/stargz/toc.digest": "sha256:00",
        "org.example.note": "kept",
    });
    gzip["urls"] = json!(["https://old.example/blob"]);
    let mut source = image(
        media::DOCKER_CONFIG,
        &[gzip, layer(media::DOCKER_LAYER_GZIP, "b")],
    );
    source["mediaType"] = json!(media::DOCKER_MANIFEST);
    source["futureField"] = json!({"x": 1});
    let (document, image) = manifest(&source);
    let new = Replacement {
        digest: digest("new"),
        size: 9,
        location: location(),
    };
    let result = reparsed(&rewrite_manifest(
        &document,
        &image,
        &[Some(new), None],
        (None, "level=3"),
    ));
    assert_eq!(result["mediaType"], media::OCI_MANIFEST);
    assert_eq!(result["config"]["mediaType"], media::OCI_CONFIG);
    assert_eq!(result["config"]["digest"], source["config"]["digest"]);
    assert_eq!(result["futureField"]["x"], 1);
    assert_eq!(
        result["annotations"][annotation::SOURCE],
        document.digest.to_string()
    );
    assert_eq!(result["annotations"][OPTIONS], "level=3");
    assert_eq!(
        result["layers"][0],
        json!({
            "mediaType": media::OCI_LAYER_ZSTD,
            "digest": digest("new").to_string(),
            "size": 9,
            "annotations": {
                "org.example.note": "kept",
                annotation::INDEX: location().to_string(),
                annotation::LAYER: digest("new").to_string(),
            },
        })
    );
    assert_eq!(result["layers"][1]["mediaType"], media::OCI_LAYER_GZIP);
    assert_eq!(result["layers"][1]["digest"], source["layers"][1]["digest"]);
}

#[test]
fn a_manifest_without_a_converted_layer_stays_byte_for_byte() {
    let (document, image) = manifest(&image(media::OCI_CONFIG, &[layer(media::OCI_LAYER, "a")]));
    assert_eq!(
        rewrite_manifest(&document, &image, &[None], (None, "x")),
        document
    );
}

/// Promise: each layer has the start list that was made for it, and none of another one.
#[test]
fn start_lists_stand_at_their_layers_and_old_ones_go() {
    let mut kept = layer(media::OCI_LAYER_ZSTD, "kept");
    kept["annotations"] = json!({annotation::START: "1:AAAA", "org.example.note": "kept"});
    let layers = [layer(media::OCI_LAYER_GZIP, "a"), kept];
    let (document, image) = manifest(&image(media::OCI_CONFIG, &layers));
    let new = Replacement {
        digest: digest("new"),
        size: 9,
        location: location(),
    };
    let starts = |starts: Option<&[Option<String>]>| {
        let made = rewrite_manifest(&document, &image, &[Some(new), None], (starts, "x"));
        let made = reparsed(&made);
        [0, 1].map(|number| made["layers"][number]["annotations"][annotation::START].clone())
    };
    assert_eq!(starts(None), [Value::Null, json!("1:AAAA")]);
    let lists = [Some("1:AAAB".to_owned()), None];
    assert_eq!(starts(Some(&lists)), [json!("1:AAAB"), Value::Null]);
}

fn two_platforms() -> Value {
    let entry = |name: &str, arch: &str| {
        json!({
            "mediaType": media::DOCKER_MANIFEST, "digest": digest(name).to_string(), "size": 5,
            "platform": {"os": "linux", "architecture": arch, "os.features": ["x"]},
        })
    };
    let attestation = json!({
        "mediaType": media::OCI_MANIFEST, "digest": digest("attestation").to_string(), "size": 5,
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            ATTESTED: digest("amd").to_string(),
        },
        "platform": {"os": "unknown", "architecture": "unknown"},
    });
    json!({
        "schemaVersion": 2, "mediaType": media::DOCKER_INDEX,
        "manifests": [entry("amd", "amd64"), entry("arm", "arm64"), attestation],
    })
}

fn became(kind: &str, name: &str) -> Descriptor {
    Descriptor::new(kind, digest(name), 7)
}

#[test]
fn an_index_follows_its_manifests_and_attestations_follow_what_they_attest() {
    let source = two_platforms();
    let (document, list) = index(&source);
    assert!(is_attestation(&list.manifests[2]));
    let new = BTreeMap::from([
        (digest("amd"), became(media::OCI_MANIFEST, "new amd")),
        (
            digest("attestation"),
            became(media::OCI_MANIFEST, "attestation"),
        ),
    ]);
    let result = reparsed(&rewrite_index(&document, &list, &new));
    assert_eq!(result["mediaType"], media::OCI_INDEX);
    assert_eq!(
        result["annotations"][annotation::SOURCE],
        document.digest.to_string()
    );
    let manifests = result["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 2, "arm64 was left out");
    assert_eq!(manifests[0]["digest"], digest("new amd").to_string());
    assert_eq!(manifests[0]["mediaType"], media::OCI_MANIFEST);
    assert_eq!(manifests[0]["platform"], source["manifests"][0]["platform"]);
    assert_eq!(manifests[1]["digest"], digest("attestation").to_string());
    assert_eq!(
        manifests[1]["annotations"][ATTESTED],
        digest("new amd").to_string()
    );
}

#[test]
fn an_index_nothing_of_which_changed_stays_byte_for_byte() {
    let (document, list) = index(&two_platforms());
    let same = |entry: &Descriptor| (entry.digest, entry.clone());
    let new = list.manifests.iter().map(same).collect();
    assert_eq!(rewrite_index(&document, &list, &new), document);
}

/// Promise: a platform means the same however it is written, as containerd's `platforms` has it.
#[test]
fn a_platform_is_the_same_however_it_is_written() {
    let admits = |filter: &str, architecture: &str, variant: Option<&str>| {
        let platform = json!({"os": "linux", "architecture": architecture, "variant": variant});
        let filter: PlatformFilter = filter.parse().unwrap();
        filter.admits(&serde_json::from_value(platform).unwrap())
    };
    for (filter, architecture, variant, expected) in [
        ("linux/amd64/v1", "amd64", None, true),
        ("linux/amd64", "amd64", Some("v1"), true),
        ("linux/amd64/v1", "amd64", Some("v3"), false),
        ("linux/amd64/v3", "amd64", None, false),
        ("linux/x86_64/v2", "amd64", Some("v2"), true),
        ("linux/arm64/v8", "arm64", None, true),
        ("linux/arm64", "arm64", Some("v8"), true),
        ("linux/aarch64/8", "arm64", Some("v8"), true),
        ("linux/arm64/v9", "arm64", None, false),
        ("linux/arm/v7", "arm", None, true),
        ("linux/arm/7", "arm", Some("v7"), true),
        ("linux/armhf", "arm", Some("v6"), false),
        ("linux/armel", "arm", Some("v6"), true),
        ("Linux/AMD64", "amd64", None, true),
        ("linux/riscv64", "riscv64", None, true),
        ("linux/ppc64le/power9", "ppc64le", Some("power9"), true),
    ] {
        let found = admits(filter, architecture, variant);
        assert_eq!(found, expected, "{filter} for {architecture} {variant:?}");
    }
    assert_eq!(
        "linux/amd64/v1"
            .parse::<PlatformFilter>()
            .unwrap()
            .to_string(),
        "linux/amd64/v1"
    );
}

#[test]
fn platforms_without_a_variant_admit_every_variant() {
    let platform = |variant: Option<&str>| {
        serde_json::from_value(json!({"os": "linux", "architecture": "arm", "variant": variant}))
            .unwrap()
    };
    let any: PlatformFilter = "linux/arm".parse().unwrap();
    let v7: PlatformFilter = "linux/arm/v7".parse().unwrap();
    assert!(any.admits(&platform(Some("v7"))) && any.admits(&platform(None)));
    assert!(v7.admits(&platform(Some("v7"))) && !v7.admits(&platform(Some("v6"))));
    for text in ["", "linux", "linux/", "/arm", "a/b/c/d"] {
        assert!(text.parse::<PlatformFilter>().is_err(), "{text}");
    }
}
