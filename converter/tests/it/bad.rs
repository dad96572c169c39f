//! Bad input: one clear sentence, exit 1, nothing left.

use std::fs;
use std::process::{Command, Stdio};

use larder_proto::digest::Digest;
use larder_test_support::tar::{Entry, TarBuilder};
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::fixture::*;

const CONVERT: &str = "convert oci:@source oci:@dest";

#[track_caller]
fn refused(world: &World, words: &[&str]) {
    let ran = world.larder(CONVERT);
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    let sentence: Vec<_> = ran
        .err
        .lines()
        .filter(|line| line.starts_with("larder: "))
        .collect();
    assert_eq!(sentence.len(), 1, "{}", ran.err);
    for word in words {
        assert!(
            sentence[0].contains(word),
            "{word} is not in: {}",
            sentence[0]
        );
    }
    world.nothing_left();
}

fn image_of(world: &World, blob: &[u8], tar: &[u8]) -> String {
    let layer = world.layer(GZIP, blob);
    world.tag(&world.image("amd64", std::slice::from_ref(&layer), &[tar]));
    layer["digest"].as_str().unwrap().to_owned()
}

/// Promise: every way a layer can be bad is named with the layer, and nothing is pushed.
#[test]
fn bad_layers_are_named() {
    let tar = base();
    let good = gzip(&tar);
    for (blob, tar, words) in [
        (
            good[..good.len() / 2].to_vec(),
            tar.clone(),
            vec!["cut off"],
        ),
        (
            gzip(b"just a text"),
            b"just a text".to_vec(),
            vec!["not a tar"],
        ),
        (good.clone(), b"another".to_vec(), vec!["diffID"]),
        (b"\xfd7zXZ\0 and more".to_vec(), tar.clone(), vec!["xz"]),
    ] {
        let world = World::new();
        let layer = image_of(&world, &blob, &tar);
        refused(&world, &[&words[..], &[layer.as_str()]].concat());
    }
}

/// Promise: what is remembered of a layer is no answer for a config that says it holds another tar,
/// whether the layer was converted or could not be.
#[test]
fn a_wrong_diff_id_is_found_although_the_layer_is_remembered() {
    let sound = base();
    let unrepresentable = TarBuilder::new()
        .entry(Entry::hard_link("a", "missing"))
        .finish();
    for (tar, action) in [(sound, "converted"), (unrepresentable, "copied")] {
        let world = World::new();
        let blob = gzip(&tar);
        image_of(&world, &blob, &tar);
        let honest = world.larder("convert oci:@source oci:@first --json").json();
        assert_eq!(honest["layers"][0]["action"], action, "{honest}");
        let layer = image_of(&world, &blob, b"another");
        refused(&world, &["diffID", &layer]);
        // Nor is it for what an earlier conversion left at the destination.
        let ran = world.larder("convert oci:@source oci:@first");
        assert!(ran.code == 1 && ran.err.contains("diffID"), "{}", ran.err);
    }
}

/// Promise: bytes that are not those the manifest names are found, also for what is only copied.
#[test]
fn wrong_digests_and_sizes_are_found() {
    let tar = base();
    let world = World::new();
    let layer = image_of(&world, &gzip(&tar), &tar);
    let mut bytes = fs::read(world.blob_path("source", &layer)).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(world.blob_path("source", &layer), &bytes).unwrap();
    refused(&world, &[&layer, "damaged"]);
    bytes.truncate(middle);
    fs::write(world.blob_path("source", &layer), &bytes).unwrap();
    refused(&world, &[&layer]);
    fs::remove_file(world.blob_path("source", &layer)).unwrap();
    refused(&world, &["lacks", &layer]);

    let world = World::new();
    let other = world.layer("application/x-other", b"copied as it is");
    let layers = [world.layer(GZIP, &gzip(&tar)), other.clone()];
    world.tag(&world.image("amd64", &layers, &[&tar, b""]));
    let other = other["digest"].as_str().unwrap();
    fs::write(world.blob_path("source", other), b"COPIED as it is").unwrap();
    refused(&world, &[other]);
}

/// A way to spoil a manifest.
type Change = fn(&World, &mut Value);

/// Promise: documents that make no sense are refused with what is wrong.
#[test]
fn bad_documents_are_refused() {
    let tar = base();
    let cases: [(Change, &[&str]); 6] = [
        (
            |_, manifest| manifest["layers"][0]["digest"] = json!("sha256:../../etc"),
            &["digest"],
        ),
        (|_, manifest| *manifest = json!([]), &["malformed"]),
        (
            |_, manifest| manifest["manifests"] = json!([]),
            &["same time"],
        ),
        (
            |_, manifest| *manifest = json!({"schemaVersion": 1, "fsLayers": []}),
            &["schema 1"],
        ),
        (
            |_, manifest| {
                manifest["layers"] = json!([manifest["layers"][0], manifest["layers"][0]]);
            },
            &["1 diffIDs for 2 layers"],
        ),
        (
            |world, manifest| {
                let config = world.put(CONFIG, &json!({"os": "linux", "rootfs": 7}));
                manifest["config"] = config;
            },
            &["config", "malformed"],
        ),
    ];
    for (change, words) in cases {
        let world = World::new();
        let image = world.simple(&tar);
        let mut manifest = world.document("source", image["digest"].as_str().unwrap());
        change(&world, &mut manifest);
        world.tag(&world.put(MANIFEST, &manifest));
        refused(&world, words);
    }
    let world = World::new();
    refused(&world, &["index.json"]);
}

/// Promise: hostile paths are placed where containerd would place them or refused, and never
/// leave the image.
#[test]
fn absolute_and_dotted_paths_never_escape() {
    for name in ["/etc/absolute", "../../etc/dotted", "a/../../etc/inner"] {
        let world = World::new();
        let tar = TarBuilder::new().entry(Entry::file(name, "x")).finish();
        world.tag(&world.simple(&tar));
        let ran = world.larder(CONVERT);
        if ran.code == 0 {
            let listed = world.larder("ls oci:@dest /etc").ok().out;
            assert!(
                listed.starts_with(name.rsplit('/').next().unwrap()),
                "{name}: {listed}"
            );
        } else {
            refused(&world, &["entry"]);
        }
    }
}

/// Promise: a PAX size that contradicts the header is not guessed about.
#[test]
fn a_tar_that_means_two_things_is_refused() {
    let tar = TarBuilder::new()
        .entry(
            Entry::file("two-sizes", vec![1; 1024])
                .size(512)
                .record("size", "1024"),
        )
        .entry(Entry::file("after", "x"))
        .finish();
    let world = World::new();
    world.tag(&world.simple(&tar));
    refused(&world, &["two-sizes"]);
}

/// Promise: a damaged or lying conversion does not pass the check.
#[test]
fn check_finds_damage_and_lies() {
    let world = World::new();
    world.tag(&world.simple(&base()));
    world.larder(CONVERT).ok();
    let root = world.root("dest");
    let manifest = world.document("dest", &root);
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().to_owned();
    let path = world.blob_path("dest", &layer);
    let good = fs::read(&path).unwrap();
    for at in [20, good.len() / 3, good.len() - 100, good.len() - 10] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        let ran = world.larder("check oci:@dest --json");
        assert_eq!(ran.code, 1, "byte {at}: {}", ran.out);
        let report: Value = serde_json::from_str(&ran.out).unwrap();
        let problems = report["manifests"][0]["layers"][0]["problems"]
            .as_array()
            .unwrap();
        assert!(
            problems[0].as_str().unwrap().contains(&layer),
            "{problems:?}"
        );
    }
    fs::write(&path, &good).unwrap();
    world.larder("check oci:@dest").ok();

    // Another image that claims to come from this one.
    let other = World::new();
    other.tag(&other.simple(&change()));
    let original = format!(
        "check oci:@dest --against oci:{}",
        other.path("source").display()
    );
    let ran = world.larder(&original);
    assert!(
        ran.code == 1 && ran.out.contains("nothing was made from"),
        "{}",
        ran.out
    );

    // The index of another tar, vouched for by the annotations.
    other.larder(CONVERT).ok();
    let theirs = other.document("dest", &other.root("dest"));
    let mut lie = manifest.clone();
    lie["layers"] = theirs["layers"].clone();
    let their_layer = theirs["layers"][0]["digest"].as_str().unwrap();
    fs::copy(
        other.blob_path("dest", their_layer),
        world.blob_path("dest", their_layer),
    )
    .unwrap();
    let bytes = lie.to_string();
    let digest = Digest::of(bytes.as_bytes()).to_string();
    fs::write(world.blob_path("dest", &digest), &bytes).unwrap();
    let entry = json!({"mediaType": MANIFEST, "digest": digest, "size": bytes.len()});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(world.path("dest/index.json"), index.to_string()).unwrap();
    let ran = world.larder("check oci:@dest");
    assert!(ran.code == 1 && ran.out.contains("diffID"), "{}", ran.out);
}

/// Promise: a full disk is named as such, with what to do, and leaves nothing.
#[test]
fn a_full_disk_is_named() {
    let world = World::new();
    let noise: Vec<u8> = (0_u32..2_000_000)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    world.tag(
        &world.simple(
            &TarBuilder::new()
                .entry(Entry::file("noise", noise))
                .finish(),
        ),
    );
    fs::create_dir(world.path("small")).unwrap();
    // The mount lives and dies with the namespace of the command.
    let script = "mount -t tmpfs -o size=2m small \"$SMALL\" && \"$@\"; code=$?; ls -A \"$SMALL\"; exit $code";
    let inner = world.command("convert oci:@source oci:@small/dest");
    let ran = run(Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(inner.get_program())
        .args(inner.get_args())
        .env("SMALL", world.path("small"))
        .env("XDG_CACHE_HOME", world.path("cache")));
    assert_eq!(ran.code, 1, "{}", ran.err);
    // TMPDIR would not help: what waits for a layout waits beside it.
    assert!(
        ran.err.contains("small: No space left on device")
            && ran.err.contains("free some space there")
            && !ran.err.contains("TMPDIR"),
        "{}",
        ran.err
    );
    assert_eq!(ran.out, "", "files were left on the full disk");
}

/// An image whose only file is `gigabytes` GiB of zeros, in a layer a thousandth of that.
fn zeros(world: &World, gigabytes: u64) {
    let head = TarBuilder::new()
        .entry(Entry::file("zeros", "").size(gigabytes << 30))
        .unfinished();
    // Many gzip members make a stream of any length from one that is made once.
    let zeros = vec![0; 64 << 20];
    let member = gzip(&zeros);
    let mut blob = gzip(&head);
    let mut diff_id = sha2::Sha256::new_with_prefix(&head);
    for _ in 0..gigabytes * 16 {
        blob.extend(&member);
        diff_id.update(&zeros);
    }
    blob.extend(gzip(&zeros[..1024]));
    diff_id.update(&zeros[..1024]);
    let diff_id = Digest::from_bytes(diff_id.finalize().into()).to_string();
    let config = json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}});
    let config = world.put(CONFIG, &config);
    let layer = world.layer(GZIP, &blob);
    let image = json!({"schemaVersion": 2, "config": config, "layers": [layer]});
    world.tag(&world.put(MANIFEST, &image));
}

/// Promise: a small layer that decompresses to a huge one costs time, not memory.
#[test]
fn a_bomb_converts_in_bounded_memory() {
    let world = World::new();
    zeros(&world, 5);
    let mut child = world
        .command(CONVERT)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let code = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
        peak = peak.max(kilobytes.unwrap_or(0_u64));
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    };
    assert_eq!(code, Some(0));
    assert!((1..150_000).contains(&peak), "peak memory was {peak} kB");
    let manifest = world.document("dest", &world.root("dest"));
    let size = manifest["layers"][0]["size"].as_u64().unwrap();
    assert!(size < 5 << 20, "{size} bytes for 5 GiB of zeros");
}

/// Promise: an interrupt leaves nothing half done.
#[test]
fn an_interrupt_leaves_nothing() {
    let world = World::new();
    zeros(&world, 2);
    let mut child = world
        .command(CONVERT)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // From the moment on when it takes an interrupt: bit 1 of the mask.
    let takes_interrupts = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let mask = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & 2 != 0)
    };
    let status = format!("/proc/{}/status", child.id());
    while !takes_interrupts(fs::read_to_string(&status).unwrap()) {
        assert_eq!(child.try_wait().unwrap(), None, "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // Into the middle of it, on a machine that has time.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    world.nothing_left();
}
