//! Conversions between layouts and archives.

use std::fs;

use larder_proto::digest::Digest;
use larder_test_support::tar::{Entry, TarBuilder};
use serde_json::{Value, json};

use crate::fixture::*;

const CONVERT: &str = "convert oci:@source oci:@dest";

/// An image of two layers, of which the second changes, removes and adds.
fn two_layers(world: &World) -> Value {
    let (base, change) = (base(), change());
    let layers = [world.layer(GZIP, &gzip(&base)), world.layer(PLAIN, &change)];
    world.image("amd64", &layers, &[&base, &change])
}

/// Promise: config, image ID and diffIDs stay; the converted image proves sound against its
/// original; it can be listed and read without unpacking.
#[test]
fn an_image_is_converted_checked_listed_and_read() {
    let world = World::new();
    let image = two_layers(&world);
    world.tag(&image);
    let report = world.larder(&format!("{CONVERT} --json")).json();
    assert_eq!(report["layers"].as_array().unwrap().len(), 2);
    let manifest = world.document("dest", &world.root("dest"));
    let source = world.document("source", image["digest"].as_str().unwrap());
    assert_eq!(manifest["config"], source["config"]);
    assert_eq!(
        manifest["annotations"]["io.larder.source.digest"],
        image["digest"]
    );
    for layer in manifest["layers"].as_array().unwrap() {
        assert_eq!(layer["mediaType"], ZSTD);
        assert_eq!(
            layer["annotations"]["containerd.io/snapshot/larder.layer"],
            layer["digest"]
        );
    }

    let checked = world.larder("check oci:@dest --against oci:@source").ok();
    assert!(
        checked.out.contains("everything is as it should be"),
        "{}",
        checked.out
    );
    assert_eq!(
        world.larder("ls oci:@dest").ok().out,
        "bin\netc\nusr\nvar\n"
    );
    assert_eq!(world.larder("ls oci:@dest /etc").ok().out, "passwd\n");
    assert_eq!(
        world.larder("cat oci:@dest etc/passwd").ok().out,
        "changed\n"
    );
    let large = world.larder("cat oci:@dest /bin/large").ok().out;
    assert!(large.starts_with("line 0 of") && large.ends_with("line 59999 of the large file\n"));
    // The same from the original, which has no index.
    assert_eq!(world.larder("cat oci:@source /bin/large").ok().out, large);
    assert_eq!(
        world.larder("ls oci:@source -l /").ok().out,
        world.larder("ls oci:@dest -l /").ok().out
    );
    let listed = world.larder("ls -l oci:@dest /usr/tool").ok().out;
    assert!(
        listed.starts_with("-rwsr-xr-x   1     1     2         10 2023-11-14"),
        "{listed}"
    );
    let details = world.larder("inspect oci:@dest --json").json();
    assert_eq!(
        details["manifests"][0]["layers"][0]["larder"]["tar_size"],
        base().len()
    );
    assert_eq!(world.larder("cat oci:@dest /etc/old").code, 1);
    assert_eq!(world.larder("cat oci:@dest /etc").code, 1);
}

/// Promise: the same image gives the same digest on any number of cores.
#[test]
fn the_result_does_not_depend_on_jobs() {
    let world = World::new();
    world.tag(&two_layers(&world));
    let digest = |jobs: u32| {
        let arguments =
            format!("convert oci:@source oci:@dest{jobs} --jobs {jobs} --no-cache --json");
        world.larder(&arguments).json()["digest"].clone()
    };
    assert_eq!(digest(1), digest(2));
    assert_eq!(digest(1), digest(5));
}

/// Promise: what is done is not done again: by the cache, by what is at the destination, and for
/// layers that are in Larder's form already.
#[test]
fn nothing_is_converted_twice() {
    let world = World::new();
    world.tag(&two_layers(&world));
    let counts = |arguments: &str| {
        let report = world.larder(&format!("{arguments} --json")).json();
        let count = |action: &str| {
            let layers = report["layers"].as_array().unwrap();
            layers
                .iter()
                .filter(|layer| layer["action"] == action)
                .count()
        };
        (
            count("converted"),
            count("reused"),
            report["uploaded"].as_u64().unwrap() > 0,
        )
    };
    assert_eq!(counts(CONVERT), (2, 0, true));
    let digest = world.root("dest");
    assert_eq!(counts(CONVERT), (0, 2, false), "by the cache");
    fs::remove_dir_all(world.path("cache")).unwrap();
    assert_eq!(counts(CONVERT), (0, 2, false), "by the destination");
    assert_eq!(world.root("dest"), digest);
    assert_eq!(
        counts(&format!("{CONVERT} --level 1")).0,
        2,
        "with other options it is another"
    );
    let again = "convert oci:@dest oci:@again";
    assert_eq!(counts(again), (0, 2, true), "in Larder's form already");
    assert_eq!(world.root("again"), world.root("dest"), "byte for byte");
    // A cache that promises what the destination lost does not help.
    fs::remove_dir_all(world.path("dest")).unwrap();
    assert_eq!(counts(CONVERT), (2, 0, true));
}

pub(crate) struct Platforms {
    amd: Value,
    attestation: Value,
    chart: Value,
}

/// An index of two platforms that share a layer, one of them nested, an attestation and a chart.
pub(crate) fn platforms(world: &World) -> Platforms {
    let (base, change) = (base(), change());
    let shared = world.layer(GZIP, &gzip(&base));
    let amd = world.image("amd64", std::slice::from_ref(&shared), &[&base]);
    let arm = world.image(
        "arm64",
        &[shared, world.layer(ZSTD, &zstd(&change))],
        &[&base, &change],
    );
    let statement = world.layer("application/vnd.in-toto+json", b"{}");
    let attestation = world.image("unknown", &[statement], &[b"{}"]);
    let chart = {
        let config = world.put(
            "application/vnd.cncf.helm.config.v1+json",
            &json!({"name": "chart"}),
        );
        let layer = world.layer(
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
            b"chart",
        );
        let value = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
        world.put(MANIFEST, &value)
    };
    let with = |mut entry: Value, key: &str, value: Value| {
        entry[key] = value;
        entry
    };
    let platform = |name: &str| json!({"os": "linux", "architecture": name});
    let inner = world.put(
        INDEX,
        &json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [with(arm.clone(), "platform", platform("arm64"))],
        }),
    );
    let about = json!({
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": amd["digest"],
    });
    let root = world.put(
        INDEX,
        &json!({
            "schemaVersion": 2, "mediaType": INDEX, "annotations": {"note": "kept"},
            "manifests": [
                with(attestation.clone(), "annotations", about),
                with(amd.clone(), "platform", platform("amd64")),
                inner, chart.clone(),
            ],
        }),
    );
    world.tag(&root);
    Platforms {
        amd,
        attestation,
        chart,
    }
}

/// Promise: whole indexes: every platform, nested indexes, attestations that go on naming what
/// they attest, and things that are no images copied as they are.
#[test]
fn an_index_is_converted_whole() {
    let world = World::new();
    let Platforms {
        amd,
        attestation,
        chart,
    } = platforms(&world);

    let report = world.larder(&format!("{CONVERT} --json")).json();
    assert_eq!(
        report["layers"].as_array().unwrap().len(),
        2,
        "the shared layer is done once"
    );
    let index = world.document("dest", &world.root("dest"));
    assert_eq!(index["annotations"]["note"], "kept");
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries[0]["digest"], attestation["digest"]);
    let amd_digest = entries[1]["digest"].as_str().unwrap();
    assert_ne!(amd_digest, amd["digest"]);
    assert_eq!(
        entries[0]["annotations"]["vnd.docker.reference.digest"],
        amd_digest
    );
    let nested = world.document("dest", entries[2]["digest"].as_str().unwrap());
    assert_eq!(nested["manifests"][0]["platform"]["architecture"], "arm64");
    assert_eq!(entries[3], chart);
    world.larder("check oci:@dest --against oci:@source").ok();

    let one = "convert oci:@source oci:@one --platform linux/arm64";
    world.larder(one).ok();
    let index = world.document("one", &world.root("one"));
    assert_eq!(
        index["manifests"].as_array().unwrap().len(),
        2,
        "the nested index and the chart"
    );
    let none = world.larder("convert oci:@source oci:@none --platform plan9/mips");
    assert!(
        none.code == 1 && none.err.contains("no image for plan9/mips"),
        "the chart, which has no platform, is not what was asked for: {}",
        none.err
    );
    assert_eq!(
        world
            .larder("ls oci:@dest --platform linux/amd64 /etc")
            .ok()
            .out,
        "old\npasswd\n"
    );
    assert_eq!(
        world
            .larder("ls oci:@dest --platform linux/arm64 /etc")
            .ok()
            .out,
        "passwd\n"
    );
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

/// Promise: an image of Docker's schema 2 becomes an OCI image with the same config bytes.
#[test]
fn a_docker_image_becomes_an_oci_image_with_the_same_id() {
    let world = World::new();
    let base = base();
    let layers = [world.layer(DOCKER_GZIP, &gzip(&base))];
    let image = world.image_as((DOCKER_MANIFEST, DOCKER_CONFIG), "amd64", &layers, &[&base]);
    world.tag(&image);
    world.larder(CONVERT).ok();
    let manifest = world.document("dest", &world.root("dest"));
    let source = world.document("source", image["digest"].as_str().unwrap());
    assert_eq!(manifest["mediaType"], MANIFEST);
    assert_eq!(manifest["config"]["mediaType"], CONFIG);
    assert_eq!(manifest["config"]["digest"], source["config"]["digest"]);
    world.larder("check oci:@dest --against oci:@source").ok();
}

/// Promise: a layer that only cannot be represented is copied, with the reason; the image works.
#[test]
fn an_unrepresentable_layer_is_copied_with_the_reason() {
    let world = World::new();
    let (base, odd) = (
        base(),
        TarBuilder::new()
            .entry(Entry::hard_link("link", "elsewhere/in/another/layer"))
            .finish(),
    );
    let odd_layer = world.layer(GZIP, &gzip(&odd));
    let layers = [world.layer(GZIP, &gzip(&base)), odd_layer.clone()];
    world.tag(&world.image("amd64", &layers, &[&base, &odd]));
    let ran = world.larder(CONVERT).ok();
    assert!(
        ran.err.contains("copied") && ran.err.contains("link"),
        "{}",
        ran.err
    );
    let manifest = world.document("dest", &world.root("dest"));
    assert_eq!(manifest["layers"][0]["mediaType"], ZSTD);
    assert_eq!(manifest["layers"][1], odd_layer);
    world.larder("check oci:@dest --against oci:@source").ok();
    let again = world.larder(&format!("{CONVERT} --json")).json();
    assert_eq!(again["layers"][1]["action"], "copied");
}

/// Promise: archives of both kinds and of both of docker's ages are sources, OCI archives are
/// destinations, and the result is the same as from a layout.
#[test]
fn archives_convert_like_layouts() {
    let world = World::new();
    world.tag(&two_layers(&world));
    world.larder(CONVERT).ok();
    world
        .larder("convert oci:@source oci-archive:@a.tar:v1")
        .ok();
    world.larder("convert oci-archive:@a.tar oci:@back:v2").ok();
    assert_eq!(world.root("back"), world.root("dest"));
    world
        .larder("check oci-archive:@a.tar --against oci:@source")
        .ok();

    let (base, change) = (base(), change());
    let config = world.document("source", &world.root("source"))["config"]["digest"].clone();
    let config = fs::read(world.blob_path("source", config.as_str().unwrap())).unwrap();
    let (old, new) = (["one/layer.tar", "two/layer.tar"], [&base, &gzip(&change)]);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    for names in [old.map(String::from), new.map(|bytes| blob(bytes))] {
        let list = json!([{
            "Config": "config.json", "RepoTags": ["example.org/a:1"], "Layers": names,
        }]);
        let layers = if names[0].starts_with("blobs") {
            [&base, &gzip(&change)]
        } else {
            [&base, &change]
        };
        let tar = TarBuilder::new()
            .entry(Entry::file(&names[0], layers[0]))
            .entry(Entry::file(&names[1], layers[1]))
            .entry(Entry::file("config.json", &config))
            .entry(Entry::file("manifest.json", list.to_string()))
            .finish();
        fs::write(world.path("docker.tar"), tar).unwrap();
        let report =
            world.larder("convert docker-archive:@docker.tar:example.org/a:1 oci:@dest --json");
        let report = report.json();
        assert_eq!(
            report["manifests"][0]["image_id"],
            Digest::of(&config).to_string()
        );
        world
            .larder("check oci:@dest --against docker-archive:@docker.tar")
            .ok();
        assert_eq!(world.larder("cat oci:@dest /var/new").ok().out, "new\n");
    }
    let missing = world.larder("convert docker-archive:@docker.tar:example.org/b oci:@none");
    assert!(
        missing.code == 1 && missing.err.contains("example.org/a:1"),
        "{}",
        missing.err
    );
}

/// Promise: other names in a layout stay, and each name can be read.
#[test]
fn a_layout_holds_several_images() {
    let world = World::new();
    world.tag(&two_layers(&world));
    world.larder("convert oci:@source oci:@dest:one").ok();
    world.tag(&world.simple(&change()));
    world.larder("convert oci:@source oci:@dest:two").ok();
    assert_eq!(
        world.larder("ls oci:@dest:one").ok().out,
        "bin\netc\nusr\nvar\n"
    );
    assert_eq!(world.larder("ls oci:@dest:two").ok().out, "etc\nvar\n");
    assert_eq!(
        names(&world.path("dest")),
        ["blobs", "index.json", "oci-layout"]
    );
}

/// Promise: completions exist, and a command line that makes no sense exits with 64.
#[test]
fn usage_errors_exit_with_64() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    assert!(world.larder("completions bash").ok().out.contains("larder"));
    for arguments in [
        "",
        "convert oci:@source",
        "convert oci:@source oci:@dest --level 99",
        "convert oci:@source oci:@dest --level many",
        "convert oci:@source oci:@dest --chunk-size 1K",
        "convert oci:@source oci:@dest --jobs 0",
        "convert oci:@source oci:@dest --platform linux",
        "convert oci:@source docker-archive:@dest",
        "convert oci: oci:@dest",
        "cat oci:@source",
        "no-such-command",
    ] {
        let ran = world.larder(arguments);
        assert_eq!(ran.code, 64, "{arguments}: {}", ran.err);
    }
    world.nothing_left();
}
