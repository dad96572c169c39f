//! What the commands refuse, and in which words.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, symlink};
use std::os::unix::net::UnixListener;

use serde_json::{Value, json};

use crate::fixture::*;
use crate::local::platforms;

/// Promise: an archive replaces a file of its name, and nothing else. `oci-archive:/dev/null` once
/// replaced the device of the whole machine.
#[test]
fn an_archive_replaces_no_device_and_no_link() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    let _socket = UnixListener::bind(world.path("device")).unwrap();
    fs::write(world.path("file"), "mine").unwrap();
    symlink(world.path("file"), world.path("stdout")).unwrap();
    symlink(world.path("nowhere"), world.path("dangling")).unwrap();
    for (name, what) in [
        ("device", "device"),
        ("stdout", "link"),
        ("dangling", "link"),
    ] {
        let ran = world.larder(&format!("convert oci:@source oci-archive:@{name}"));
        assert!(
            ran.code == 1 && ran.err.contains(name) && ran.err.contains(what),
            "{name}: {}",
            ran.err
        );
    }
    let kind = |name| world.path(name).symlink_metadata().unwrap().file_type();
    assert!(kind("device").is_socket() && kind("stdout").is_symlink());
    assert_eq!(fs::read(world.path("file")).unwrap(), b"mine");
    world.nothing_left();
    world.larder("convert oci:@source oci-archive:@file").ok();
    world.larder("check oci-archive:@file").ok();
}

/// Promise: an image that is not named is told from one that is not there.
#[test]
fn what_a_layout_has_is_told() {
    let world = World::new();
    let image = world.simple(&change());
    let refused = |index: &[Value], name: &str| {
        let text = json!({"schemaVersion": 2, "manifests": index}).to_string();
        fs::write(world.path("source/index.json"), text).unwrap();
        let ran = world.larder(&format!("inspect oci:@source{name}"));
        assert_eq!(ran.code, 1, "{}", ran.err);
        ran.err
    };
    let none = refused(&[], "");
    assert!(none.contains("source has no images"), "{none}");
    let named = |name: &str| {
        let mut entry = image.clone();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entry
    };
    let several = refused(&[named("one"), named("two")], "");
    assert!(
        several.contains("2 images") && several.contains("one, two"),
        "{several}"
    );
    let other = refused(&[named("one")], ":two");
    assert!(other.contains("no image two; it has: one"), "{other}");
}

/// Promise: a layer that is not there is told as absent, not as damaged; one that is damaged still is.
#[test]
fn a_layer_that_is_absent_is_told_from_one_that_is_bad() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    world.larder("convert oci:@source oci:@dest").ok();
    let details = world.larder("inspect oci:@dest --json").json();
    let layer = &details["manifests"][0]["layers"][0];
    let blob = world.blob_path("dest", layer["digest"].as_str().unwrap());
    let bytes = fs::read(&blob).unwrap();
    fs::write(&blob, vec![0; bytes.len()]).unwrap();
    let bad = world.larder("inspect oci:@dest").ok().out;
    assert!(bad.contains("BAD: "), "{bad}");
    fs::remove_file(&blob).unwrap();
    let absent = world.larder("inspect oci:@dest").ok().out;
    assert!(
        absent.contains("absent: ") && !absent.contains("BAD"),
        "{absent}"
    );
    assert!(absent.contains("lacks blob"), "{absent}");
    let details = world.larder("inspect oci:@dest --json").json();
    let layer = &details["manifests"][0]["layers"][0];
    assert!(layer["absent"].is_string() && layer["problem"].is_null());
}

/// Promise: of an image of many platforms only the one that is looked at must be there.
#[test]
fn the_other_platforms_need_not_be_there() {
    let world = World::new();
    let (own, foreign) = match std::env::consts::ARCH {
        "aarch64" => ("arm64", "amd64"),
        _ => ("amd64", "arm64"),
    };
    let [of_own, of_foreign] = [own, foreign].map(|name| {
        let tar = change();
        let mut entry = world.image(name, &[world.layer(GZIP, &gzip(&tar))], &[&tar]);
        entry["platform"] = json!({"os": "linux", "architecture": name});
        entry
    });
    let other = of_foreign["digest"].as_str().unwrap().to_owned();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [of_foreign, of_own]});
    world.tag(&world.put(INDEX, &index));
    fs::remove_file(world.blob_path("source", &other)).unwrap();
    world.larder("ls oci:@source /etc").ok();
    world.larder("cat oci:@source etc/passwd").ok();
    let told = world.larder(&format!(
        "inspect oci:@source --platform linux/{own} --json"
    ));
    assert_eq!(told.json()["manifests"].as_array().unwrap().len(), 1);
    let ran = world.larder("inspect oci:@source");
    assert!(ran.code == 1 && ran.err.contains(&other), "{}", ran.err);
}

/// Promise: who converted some platforms is told that check wants to hear which.
#[test]
fn a_check_against_more_platforms_says_so() {
    let world = World::new();
    platforms(&world);
    world
        .larder("convert oci:@source oci:@dest --platform linux/amd64")
        .ok();
    let ran = world.larder("check oci:@dest --against oci:@source");
    assert!(
        ran.code == 1 && ran.err.contains("linux/arm64") && ran.err.contains("--platform"),
        "{}",
        ran.err
    );
    world
        .larder("check oci:@dest --against oci:@source --platform linux/amd64")
        .ok();
}

/// Promise: a converted image gets no name with a digest, which could only be another's.
#[test]
fn no_destination_is_named_by_a_digest() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    let digest = world.root("source");
    for to in ["containerd:x/y", "r.test/x/y"] {
        let ran = world.larder(&format!("convert oci:@source {to}@{digest}"));
        assert!(
            ran.code == 64 && ran.err.contains("by a tag"),
            "{}",
            ran.err
        );
    }
}

/// Promise: the answer in JSON says all that is wrong with the command line.
#[test]
fn the_json_answer_to_a_wrong_command_line_is_whole() {
    let world = World::new();
    let ran = world.larder("convert --json");
    let answer: Value = serde_json::from_str(&ran.out).unwrap();
    let text = answer["error"].as_str().unwrap();
    assert!(
        ran.code == 64 && text.ends_with("<SOURCE> <DEST>"),
        "{text}"
    );
}

/// Promise: a cache directory that is not absolute is not made wherever the command runs.
#[test]
fn a_relative_cache_directory_is_ignored() {
    let world = World::new();
    world.tag(&world.simple(&change()));
    let mut command = world.command("convert oci:@source oci:@dest");
    command
        .env("XDG_CACHE_HOME", "cache")
        .env("HOME", world.path("home"))
        .current_dir(world.path("tmp"));
    run(&mut command).ok();
    assert!(!world.path("tmp/cache").exists());
    assert!(world.path("home/.cache/larder").exists());
}

/// Promise: a log that goes into a file has no colours.
#[test]
fn a_log_in_a_file_is_plain_text() {
    let world = World::new();
    let ran = run(world
        .command("inspect 127.0.0.1:1/a:b")
        .env("LARDER_LOG", "trace"));
    assert!(ran.err.contains("TRACE"), "{}", ran.err);
    assert!(!ran.err.contains('\u{1b}'), "{}", ran.err);
}
