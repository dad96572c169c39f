//! `mount` and `umount` of the program itself: an image of a registry in memory, without containerd.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use larder_fuse::mount::{Unmount, mounts, unmount};
use larder_proto::annotation;
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers_blocking;
use larder_test_support::registry::{FakeRegistry, Settings};
use larder_test_support::tar::{Entry, TarBuilder};
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

/// A registry, and directories of its own.
struct World {
    registry: FakeRegistry,
    scratch: tempfile::TempDir,
}

/// What a run of the program gave.
struct Ran {
    code: Option<i32>,
    err: String,
}

impl World {
    fn new() -> Self {
        Self {
            registry: FakeRegistry::start_now(Settings::default()),
            scratch: tempfile::tempdir().unwrap(),
        }
    }

    /// A new or old directory, by its canonical path.
    fn directory(&self, name: &str) -> PathBuf {
        let path = self.scratch.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path.canonicalize().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let output = Command::new(env!("CARGO_BIN_EXE_larder-snapshotter"))
            .args(arguments)
            .current_dir(self.scratch.path())
            .output()
            .unwrap();
        Ran {
            code: output.status.code(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    fn umount(&self, root: &Path, at: &Path) -> Ran {
        self.run(&["umount", "--root", text(root), text(at)])
    }

    /// Mounts an image of so many layers, each with a file of its number, by a process that stays.
    fn mount(&self, driver: &str, layers: usize, root: &Path, at: &Path) {
        let reference = self.image(layers);
        let (root, at) = (text(root), text(at));
        let (driver, detach) = (["--fs-driver", driver], ["--detach", "--root", root]);
        let ran = self.run(&[&["mount"][..], &detach, &driver, &[&reference, at]].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }

    /// An image of so many layers, each with a file of its number.
    fn image(&self, layers: usize) -> String {
        let layers: Vec<_> = (0..layers)
            .map(|number| {
                let file = Entry::file(number.to_string(), format!("layer {number}"));
                LayerFixture::new(TarBuilder::new().entry(file).finish())
            })
            .collect();
        self.push(&layers)
    }

    fn push(&self, layers: &[LayerFixture]) -> String {
        let config_type = "application/vnd.oci.image.config.v1+json";
        let diff_ids = layers.iter().map(|layer| {
            let diff_id = larder_proto::digest::Digest::of(&layer.tar);
            Value::from(diff_id.to_string())
        });
        let rootfs = json!({"type": "layers", "diff_ids": diff_ids.collect::<Vec<_>>()});
        let config = json!({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).to_string();
        let size = config.len();
        let digest = self.registry.push_blob(config).to_string();
        let descriptors = layers.iter().map(|layer| {
            self.registry.push_blob(layer.blob.clone());
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
                "digest": layer.digest.to_string(),
                "size": layer.blob.len(),
                "annotations": {annotation::INDEX: layer.index.to_string()},
            })
        });
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": {"mediaType": config_type, "digest": digest, "size": size},
            "layers": descriptors.collect::<Vec<_>>(),
        });
        let (repository, tag) = ("team/app", layers.len().to_string());
        let bytes = manifest.to_string();
        self.registry
            .push_manifest(repository, &tag, media_type, bytes);
        self.registry.reference(repository, &tag)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let scratch = self.scratch.path().canonicalize().unwrap();
        owners(&scratch).into_iter().for_each(kill);
        for mount in mounts().unwrap().iter().rev() {
            if mount.target.starts_with(&scratch) {
                let _ = unmount(&mount.target, Unmount::Lazy);
            }
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn is_mounted(at: &Path) -> bool {
    mounts().unwrap().iter().any(|mount| mount.target == at)
}

fn content(at: &Path) -> String {
    std::fs::read_to_string(at.join("0")).unwrap()
}

/// The processes that own a root directory below `scratch`.
fn owners(scratch: &Path) -> Vec<Pid> {
    let is_owner = |pid: &Pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|&b| b == 0).map(String::from_utf8_lossy);
        words.any(|word| word == "--background")
            && words.any(|word| word.starts_with(text(scratch)))
    };
    let processes = std::fs::read_dir("/proc").unwrap();
    let pids = processes.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.map(Pid::from_raw).filter(is_owner).collect()
}

fn kill(pid: Pid) {
    let _ = send(pid, Signal::SIGKILL);
}

/// Waits until no process owns a root below `scratch`.
fn nobody_owns(scratch: &Path) {
    for _ in 0..6000 {
        if owners(scratch).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("a process stays");
}

/// Promise: `umount` never unmounts what is not Larder's.
#[test]
fn umount_leaves_alone_what_is_not_larders() {
    let world = World::new();
    let (root, at) = (world.directory("root"), world.directory("at"));
    mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).unwrap();
    for root in [&root, &world.scratch.path().join("missing")] {
        let ran = world.umount(root, &at);
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.err.contains("tmpfs") && ran.err.contains("stays"),
            "{}",
            ran.err
        );
        assert!(is_mounted(&at));
    }
    unmount(&at, Unmount::Now).unwrap();
    let ran = world.umount(&root, &at);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("nothing is mounted"), "{}", ran.err);
}

/// Promise: a living image goes by its own root directory only, and not while something else lies over
/// it; its process then ends.
fn umount_with_another_root_leaves_a_living_image(driver: &str) {
    for layers in [1, 2] {
        let world = World::new();
        let (root, at) = (world.directory("root"), world.directory("at"));
        world.mount(driver, layers, &root, &at);
        let ran = world.umount(&world.directory("other"), &at);
        assert_eq!(ran.code, Some(1), "{layers}");
        assert!(ran.err.contains("another --root"), "{}", ran.err);
        assert_eq!(content(&at), "layer 0");
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).unwrap();
        let ran = world.umount(&root, &at);
        assert_eq!(ran.code, Some(1), "{layers}");
        assert!(
            ran.err.contains("tmpfs") && ran.err.contains("stays"),
            "{}",
            ran.err
        );
        unmount(&at, Unmount::Now).unwrap();
        assert_eq!(content(&at), "layer 0");
        let ran = world.umount(&root, &at);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(!is_mounted(&at));
        nobody_owns(&world.scratch.path().canonicalize().unwrap());
    }
}

/// Promise: `mount --detach` returns when the image is there, also where something is mounted already,
/// which `umount` leaves.
fn an_image_is_mounted_over_something_else(driver: &str) {
    let world = World::new();
    let (root, at) = (world.directory("root"), world.directory("at"));
    mount("tmpfs", &at, "tmpfs", MountFlags::empty(), None).unwrap();
    world.mount(driver, 2, &root, &at);
    assert_eq!(content(&at), "layer 0");
    let ran = world.umount(&root, &at);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(is_mounted(&at));
    let ran = world.umount(&root, &at);
    assert_eq!(ran.code, Some(1));
    assert!(is_mounted(&at));
}

/// Promise: what a process that was killed left mounted can be unmounted.
fn umount_removes_what_a_dead_process_left(driver: &str) {
    for layers in [1, 2] {
        let world = World::new();
        let (root, at) = (world.directory("root"), world.directory("at"));
        world.mount(driver, layers, &root, &at);
        let scratch = world.scratch.path().canonicalize().unwrap();
        owners(&scratch).into_iter().for_each(kill);
        nobody_owns(&scratch);
        assert!(is_mounted(&at));
        let ran = world.umount(&root, &at);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(!is_mounted(&at));
    }
}

/// Promise: the same where another process owns the root by now; what is that one's, it keeps.
fn umount_removes_what_a_former_owner_left(driver: &str) {
    for layers in [1, 2] {
        let world = World::new();
        let [root, at, later] = ["root", "at", "later"].map(|name| world.directory(name));
        world.mount(driver, layers, &root, &at);
        let scratch = world.scratch.path().canonicalize().unwrap();
        owners(&scratch).into_iter().for_each(kill);
        nobody_owns(&scratch);
        world.mount(driver, 2, &root, &later);
        let ran = world.umount(&root, &at);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(!is_mounted(&at));
        let part = root.join("images/1/0");
        assert!(is_mounted(&part));
        for other in [&part, &at] {
            let ran = world.umount(&root, other);
            assert_eq!(ran.code, Some(1), "{}", other.display());
            assert!(ran.err.contains("no image is mounted"), "{}", ran.err);
        }
        assert!(is_mounted(&part));
        assert_eq!(content(&later), "layer 0");
    }
}

/// Promise: the root of the machine is not covered by an image, and a root directory that cannot be
/// made is named.
#[test]
fn places_that_cannot_be_used_are_named() {
    let world = World::new();
    let reference = world.image(1);
    let (root, at) = (world.directory("root"), world.directory("at"));
    let ran = world.run(&["mount", "--detach", "--root", text(&root), &reference, "/"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("/ is the root"), "{}", ran.err);
    let file = world.scratch.path().join("file");
    std::fs::write(&file, "").unwrap();
    let ran = world.run(&[
        "mount",
        "--detach",
        "--root",
        text(&file),
        &reference,
        text(&at),
    ]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains(text(&file)), "{}", ran.err);
}

/// Promise: of several first `mount --detach` that are started together, one becomes the owner, and
/// all images are mounted by it.
fn images_mounted_together_find_one_owner(driver: &str) {
    let world = World::new();
    let root = world.directory("root");
    let reference = world.image(2);
    let places: Vec<_> = (0..4)
        .map(|number| world.directory(&format!("at{number}")))
        .collect();
    let mounting = places.iter().map(|at| {
        let words = ["mount", "--detach", "--root", text(&root)];
        Command::new(env!("CARGO_BIN_EXE_larder-snapshotter"))
            .args(words)
            .args(["--fs-driver", driver, &reference, text(at)])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    });
    for started in mounting.collect::<Vec<_>>() {
        let ended = started.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{said}");
    }
    assert_eq!(
        places.iter().map(|at| content(at)).collect::<Vec<_>>(),
        ["layer 0"; 4]
    );
    let scratch = world.scratch.path().canonicalize().unwrap();
    // Who was too late ends, once the other has mounted for it.
    let late = std::time::Instant::now() + Duration::from_secs(30);
    while owners(&scratch).len() > 1 && std::time::Instant::now() < late {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(owners(&scratch).len(), 1);
    for at in &places {
        let ran = world.umount(&root, at);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }
    nobody_owns(&scratch);
}

/// Promise: where the root was removed under its owner, what is mounted stays readable, and `umount` of
/// it ends the process, with all its mounts.
fn umount_after_the_root_was_removed_ends_the_owner(driver: &str) {
    for layers in [1, 2] {
        let world = World::new();
        let (root, at) = (world.directory("root"), world.directory("at"));
        world.mount(driver, layers, &root, &at);
        remove_files(&root);
        assert_eq!(content(&at), "layer 0", "{layers}");
        let ran = world.umount(&root, &at);
        assert_eq!(ran.code, Some(0), "{}", ran.err);
        assert!(!is_mounted(&at));
        let scratch = world.scratch.path().canonicalize().unwrap();
        nobody_owns(&scratch);
        let left = mounts().unwrap();
        let left: Vec<_> = left
            .iter()
            .filter(|one| one.target.starts_with(&scratch))
            .collect();
        assert!(left.is_empty(), "{layers}: {left:?}");
    }
}

/// Promise: the process that `mount --detach` leaves behind keeps nothing of its caller's busy.
fn a_detached_owner_leaves_its_callers_directory(driver: &str) {
    let world = World::new();
    let at = world.directory("at");
    let reference = world.image(1);
    let root = world.directory("root");
    let root = text(&root);
    let words = ["mount", "--detach", "--root", root, "--fs-driver", driver];
    let ran = world.run(&[&words[..], &[&reference, "at"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let scratch = world.scratch.path().canonicalize().unwrap();
    let owner = owners(&scratch)[0];
    let place = std::fs::read_link(format!("/proc/{owner}/cwd")).unwrap();
    assert_eq!(place, Path::new("/"));
    assert_eq!(content(&at), "layer 0");
    let ran = world.run(&["umount", "--root", root, "at"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    nobody_owns(&scratch);
}

/// Promise: an image that somebody unmounts by `umount(2)` is listed no more, its place can be used again, and
/// the last one ends the process; one that is bound somewhere else stays.
fn an_image_that_somebody_unmounts_is_let_go(driver: &str) {
    for layers in [1, 2] {
        let world = World::new();
        let (root, at) = (world.directory("root"), world.directory("at"));
        let (kept, bound) = (world.directory("kept"), world.directory("bound"));
        let scratch = world.scratch.path().canonicalize().unwrap();
        let listed = || {
            let words = ["status", "--json", "--root", text(&root)];
            let mut command = Command::new(env!("CARGO_BIN_EXE_larder-snapshotter"));
            let output = command.args(words).output().unwrap();
            let status: Value = serde_json::from_slice(&output.stdout).unwrap();
            let all = status["mounted"].as_array().unwrap().clone();
            all.iter()
                .map(|one| one["target"].as_str().unwrap().to_owned())
                .collect::<Vec<_>>()
        };
        world.mount(driver, 3 - layers, &root, &kept);
        world.mount(driver, layers, &root, &at);
        unmount(&at, Unmount::Lazy).unwrap();
        assert_eq!(listed(), [text(&kept)], "{layers}");
        world.mount(driver, layers, &root, &at);
        assert_eq!(content(&at), "layer 0");
        mount(&at, &bound, "", MountFlags::BIND, None).unwrap();
        unmount(&at, Unmount::Lazy).unwrap();
        assert_eq!(listed().len(), 2, "{layers}");
        assert_eq!(content(&bound), "layer 0");
        unmount(&bound, Unmount::Lazy).unwrap();
        unmount(&kept, Unmount::Lazy).unwrap();
        nobody_owns(&scratch);
        let left = mounts().unwrap();
        let left: Vec<_> = left
            .iter()
            .filter(|one| one.target.starts_with(&scratch))
            .collect();
        assert!(left.is_empty(), "{layers}: {left:?}");
    }
}

/// Removes all below `root` but what is mounted, as `rm -r --one-file-system` does.
fn remove_files(root: &Path) {
    let ended = Command::new("rm")
        .args(["-rf", "--one-file-system", text(root)])
        .stderr(std::process::Stdio::null())
        .status();
    ended.unwrap();
    assert!(!root.join("control.sock").exists());
    assert!(!root.join("lock").exists());
}

on_both_drivers_blocking!(
    a_detached_owner_leaves_its_callers_directory,
    an_image_that_somebody_unmounts_is_let_go,
    images_mounted_together_find_one_owner,
    umount_after_the_root_was_removed_ends_the_owner,
    an_image_is_mounted_over_something_else,
    umount_with_another_root_leaves_a_living_image,
    umount_removes_what_a_dead_process_left,
    umount_removes_what_a_former_owner_left,
);
