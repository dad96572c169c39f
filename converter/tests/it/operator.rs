//! What an operator expects of the commands beside the conversion itself.

use std::fs;

use larder_test_support::registry::{Fault, On, Settings};
use serde_json::{Value, json};

use crate::fixture::*;
use crate::local::platforms;
use crate::registry::{larder, pushed};

/// Promise: the first line on standard output is a name that every command takes.
#[test]
fn the_name_of_the_result_is_taken_by_every_command() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    let out = world.larder("convert oci:@source oci:@dest:two").ok().out;
    let name = out.lines().next().unwrap();
    for command in ["check", "inspect", "ls"] {
        world.larder(&format!("{command} {name}")).ok();
    }
    assert!(
        out.contains(&format!("digest: {}", world.root("dest"))),
        "{out}"
    );
}

/// Promise: a directory full of other things, and a name other tools would refuse, are refused
/// before anything is written.
#[test]
fn what_is_no_place_for_an_image_is_refused() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    fs::create_dir(world.path("certificates")).unwrap();
    fs::write(world.path("certificates/ca.pem"), "x").unwrap();
    let ran = world.larder("convert oci:@source oci:@certificates");
    assert!(
        ran.code == 1 && ran.err.contains("is not empty"),
        "{}",
        ran.err
    );
    assert_eq!(names(&world.path("certificates")), ["ca.pem"]);
    let ran = world.larder("convert oci:@source oci:@dest:a!b");
    assert!(ran.code == 1 && ran.err.contains("a!b"), "{}", ran.err);
    let ran = world.larder("convert oci:@source oci-archive:@certificates");
    assert!(
        ran.code == 1 && ran.err.contains("certificates"),
        "{}",
        ran.err
    );
    world.nothing_left();
}

/// Promise: each platform that is asked for is there, or the command fails and names it.
#[test]
fn every_platform_that_is_asked_for_must_be_there() {
    let world = World::new();
    platforms(&world);
    let ran = world
        .larder("convert oci:@source oci:@dest --platform linux/aarch64 --platform linux/s390x");
    let expected = "no image for linux/s390x; there is: linux/amd64, linux/arm64";
    assert!(ran.code == 1 && ran.err.contains(expected), "{}", ran.err);
    world
        .larder("convert oci:@source oci:@dest --platform linux/aarch64")
        .ok();
}

/// Promise: a converted layer whose annotations were lost on the way does not pass for sound.
#[test]
fn a_converted_layer_without_its_annotations_is_a_problem() {
    let world = World::new();
    world.tag(&world.simple(&base()));
    world.larder("convert oci:@source oci:@dest").ok();
    let mut manifest = world.document("dest", &world.root("dest"));
    manifest["layers"][0]["annotations"] = json!({});
    let lost = world.put(MANIFEST, &manifest);
    for name in names(&world.path("dest/blobs/sha256")) {
        let from = world.path("dest/blobs/sha256").join(&name);
        fs::copy(from, world.path("source/blobs/sha256").join(&name)).unwrap();
    }
    world.tag(&lost);
    let ran = world.larder("check oci:@source");
    assert!(
        ran.code == 1 && ran.err.contains("1 problem found") && ran.err.contains("does not name"),
        "{}",
        ran.err
    );
}

/// Promise: a file or directory named by a flag is looked at first, and a wrong command line gets
/// its answer in JSON where JSON was asked for.
#[test]
fn flags_are_taken_at_their_word() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    fs::write(world.path("bad.json"), "{bad").unwrap();
    for flag in [
        "--authfile @none",
        "--authfile @bad.json",
        "--certs-dir @none",
    ] {
        let ran = world.larder(&format!("inspect oci:@source {flag}"));
        let name = flag.split(' ').next().unwrap();
        assert!(
            ran.code == 64 && ran.err.contains(name),
            "{flag}: {}",
            ran.err
        );
    }
    for arguments in [
        "check --json",
        "convert --json --level no oci:a oci:b",
        "check --json oci:",
    ] {
        let ran = world.larder(arguments);
        let answer: Value = serde_json::from_str(&ran.out).unwrap();
        assert!(
            ran.code == 64 && answer["error"].is_string(),
            "{arguments}: {answer}"
        );
    }
    world
        .larder("convert oci:@source oci:@dest --chunk-size 1MiB")
        .ok();
}

/// Promise: a CA file without a certificate is refused before anything is asked, by its name; and so
/// it is where the registry is only the destination.
#[test]
fn a_ca_file_without_a_certificate_is_refused() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    let certificates = larder_test_support::certificates::Certificates::new();
    let place = world.path("certs/r.test");
    fs::create_dir_all(&place).unwrap();
    let hosts = "server = \"https://r.test\"\nca = \"ca.pem\"\n";
    for (file, hosts) in [("ca.pem", Some(hosts)), ("ca.crt", None)] {
        fs::write(
            place.join(file),
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        )
        .unwrap();
        if let Some(hosts) = hosts {
            fs::write(place.join("hosts.toml"), hosts).unwrap();
        }
        for command in ["inspect r.test/app:1", "convert oci:@source r.test/app:1"] {
            let ran = world.larder(&format!("{command} --certs-dir @certs"));
            assert!(
                ran.code == 64 && ran.err.contains("no certificate"),
                "{command}: {}",
                ran.err
            );
            assert!(ran.err.contains(file), "{command}: {}", ran.err);
        }
        // With one, it is the registry that is not there.
        fs::copy(certificates.authority(), place.join(file)).unwrap();
        let ran = world.larder("inspect r.test/app:1 --certs-dir @certs");
        assert!(
            ran.code == 1 && !ran.err.contains("no certificate"),
            "{}",
            ran.err
        );
        fs::remove_file(place.join(file)).unwrap();
        let _ = fs::remove_file(place.join("hosts.toml"));
    }
}

/// Promise: help says what an image can be called, wherever one is asked for.
#[test]
fn help_says_what_an_image_can_be_called() {
    let world = World::new();
    for command in ["convert", "check", "inspect", "ls", "cat"] {
        let help = world.larder(&format!("{command} --help")).ok().out;
        for form in [
            "HOST/REPO:TAG",
            "oci:DIR",
            "oci-archive:FILE",
            "docker-archive:FILE",
            "containerd:REF",
        ] {
            assert!(help.contains(form), "{command}: {help}");
        }
    }
}

/// Promise: a layer that is converted already stays as it is, and says so if its chunks are of
/// another size than asked for; `--no-cache` cuts it anew.
#[test]
fn a_converted_layer_is_cut_anew_only_where_asked() {
    let world = World::new();
    world.tag(&world.simple(&base()));
    world.larder("convert oci:@source oci:@dest").ok();
    let again = |dest: &str, flags: &str| {
        let line = format!("convert oci:@dest oci:@{dest} --chunk-size 64K --json {flags}");
        world.larder(&line).json()["layers"][0].clone()
    };
    let kept = again("kept", "");
    let reason = kept["reason"].as_str().unwrap();
    assert!(
        kept["action"] == "reused" && reason.contains("--no-cache"),
        "{kept}"
    );
    let cut = again("cut", "--no-cache");
    assert_eq!(cut["action"], "converted");
    world.larder("check oci:@cut --against oci:@dest").ok();
}

/// Promise: converting an image onto its own name says where the original is now.
#[test]
fn an_image_converted_onto_its_own_name_says_where_the_original_is() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    let original = world.root("source");
    let ran = world.larder("convert oci:@source oci:@source:latest").ok();
    assert!(ran.err.contains(&original), "{}", ran.err);
}

/// Promise: a registry that will not take the result is noticed before the layers are fetched.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_refuses_is_noticed_first() {
    let (world, registry, layer) = pushed(Settings::default()).await;
    registry.fault(
        On::Path("POST", "/b/dest/blobs/uploads/"),
        Fault::Status(403, None),
    );
    let ran = larder(&world, &registry, "convert R/a/source:v1 R/b/dest:v2").await;
    assert!(ran.code == 1 && ran.err.contains("b/dest"), "{}", ran.err);
    let layer = layer.to_string();
    let fetched = registry
        .requests()
        .iter()
        .any(|seen| seen.path.contains(&layer));
    assert!(!fetched, "the layer was fetched for nothing");
}
