//! Layers made to harm, through the program: each is refused, copied with the reason, or converted, in
//! bounded time and memory, and nothing outside of the destination is touched.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use larder_test_support::hostile::{Answer, Canary, HostileTar, blobs, tars};
use serde_json::json;

use crate::fixture::*;

/// Most memory of one conversion, kB: the promise for images, the largest index among them.
const MEMORY_MAX_KB: u64 = 256 << 10;

/// Longest conversion: seconds on a machine with nothing else to do, in a debug build.
const TIME_MAX: Duration = Duration::from_mins(3);

/// Longest time to see that a layer is no tar (CVE-2021-20291 waited for ever), on a busy machine.
const NO_TAR_TIME_MAX: Duration = Duration::from_secs(30);

/// What a run cost, beside what it gave.
struct Cost {
    ran: Ran,
    memory_kb: u64,
    time: Duration,
}

/// Converts, and watches how much memory that takes.
fn convert(world: &World) -> Cost {
    let begun = Instant::now();
    let mut child = world
        .command("convert oci:@source oci:@dest --json")
        .stdout(Stdio::from(fs::File::create(world.path("out")).unwrap()))
        .stderr(Stdio::from(fs::File::create(world.path("err")).unwrap()))
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut memory_kb = 0;
    let code = loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
        memory_kb = memory_kb.max(now.unwrap_or(0));
        match child.try_wait().unwrap() {
            Some(status) => break status.code().unwrap_or(-1),
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    Cost {
        ran: Ran {
            code,
            out: fs::read_to_string(world.path("out")).unwrap(),
            err: fs::read_to_string(world.path("err")).unwrap(),
        },
        memory_kb,
        time: begun.elapsed(),
    }
}

/// What is wrong with how `hostile` was converted, if anything is.
fn problem(world: &World, hostile: &HostileTar) -> Option<String> {
    let layer = world.layer(PLAIN, &hostile.tar);
    world.tag(&world.image("amd64", std::slice::from_ref(&layer), &[&hostile.tar]));
    let cost = convert(world);
    let Ran { code, out, err } = &cost.ran;
    let action = || serde_json::from_str::<serde_json::Value>(out).unwrap()["layers"][0].clone();
    let fits = match hostile.answer {
        Answer::SameTree => *code == 0 && action()["action"] == "converted",
        Answer::Copied(words) | Answer::CopiedByUs(words) => {
            *code == 0
                && action()["action"] == "copied"
                && action()["reason"]
                    .as_str()
                    .is_some_and(|why| why.contains(words))
        }
        Answer::Broken(words) | Answer::BrokenToUs(words) => {
            *code == 1 && err.contains(words) && err.contains(layer["digest"].as_str().unwrap())
        }
    };
    let quiet =
        |text: &str| !text.contains(['\x1b', '\x07', '\u{202e}']) && !text.contains("panicked");
    let fits = fits && quiet(out) && quiet(err);
    let cheap = cost.memory_kb < MEMORY_MAX_KB && cost.time < TIME_MAX;
    (!fits || !cheap).then(|| {
        let (name, answer) = (hostile.name, hostile.answer);
        let (memory, time) = (cost.memory_kb, cost.time);
        format!("{name}: {answer:?}, {memory} kB, {time:?}, code {code}: {out}{err}")
    })
}

/// Promise: every hostile tar is converted, copied with the reason, or refused with the layer's name,
/// within 256 MiB, and nothing outside of the destination is as much as opened.
#[test]
fn hostile_tars_are_converted_copied_or_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let canary = Canary::new(scratch.path()).unwrap();
    let table = tars(canary.path());
    assert!(table.len() >= 60, "{}", table.len());
    let problems: Vec<_> = table
        .iter()
        .filter_map(|hostile| problem(&World::new(), hostile))
        .collect();
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(canary.touched(), [""; 0]);
}

/// Promise: what is no tar, or compressed with malice, is refused by the layer's name at once and in
/// little memory; nothing is pushed.
#[test]
fn hostile_streams_are_refused_at_once() {
    let mut problems = Vec::new();
    for hostile in blobs() {
        let world = World::new();
        let layer = world.layer(GZIP, &hostile.blob);
        world.tag(&world.image("amd64", std::slice::from_ref(&layer), &[b"another tar"]));
        let cost = convert(&world);
        let Ran { code, err, .. } = &cost.ran;
        let named = err.contains(layer["digest"].as_str().unwrap());
        let fits = *code == 1 && named && err.contains(hostile.refusal);
        if !fits || cost.memory_kb >= MEMORY_MAX_KB || cost.time > NO_TAR_TIME_MAX {
            let (memory, time) = (cost.memory_kb, cost.time);
            problems.push(format!("{}: {memory} kB, {time:?}: {err}", hostile.name));
        }
        world.nothing_left();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Promise: annotations that an image gives itself, in whatever namespace, neither steer the
/// conversion nor survive where they would steer a node.
#[test]
fn annotations_of_a_source_do_not_steer() {
    let world = World::new();
    let tar = base();
    let mut layer = world.layer(GZIP, &gzip(&tar));
    let foreign = format!("1:2:3:sha256:{}", "0".repeat(64));
    layer["annotations"] = json!({
        "containerd.io/snapshot/larder.index": foreign,
        "containerd.io/snapshot/larder.layer": "sha256:../../etc/passwd",
        "containerd.io/snapshot.ref": "sha256:00",
        "containerd.io/snapshot/cri.image-ref": "169.254.169.254/latest/meta-data:1",
        "containerd.io/gc.root": "yes",
    });
    world.tag(&world.image("amd64", &[layer], &[&tar]));
    let report = world.larder("convert oci:@source oci:@dest --json").json();
    assert_eq!(report["layers"][0]["action"], "converted", "{report}");
    let manifest = world.document("dest", &world.root("dest"));
    let written = &manifest["layers"][0];
    let annotations = &written["annotations"];
    assert_eq!(
        annotations["containerd.io/snapshot/larder.layer"],
        written["digest"]
    );
    assert_ne!(
        annotations["containerd.io/snapshot/larder.index"],
        foreign.as_str()
    );
    world.larder("check oci:@dest").ok();
}
