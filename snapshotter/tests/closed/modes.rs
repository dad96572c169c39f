//! Sockets, directories and files that other users cannot open, whatever the umask, and after an upgrade
//! from a build that left them open.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_fuse::mount::mounts;

use crate::daemon::World;

/// A user who is not root.
const OTHER: u32 = 1000;

/// What lies below `directory`, without what is mounted there and without files of images.
fn everything(directory: &Path, found: &mut Vec<PathBuf>) {
    found.push(directory.to_owned());
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        let of_images = path.ends_with("fs") || path.ends_with("work");
        if mounts().unwrap().iter().any(|mount| mount.target == path) || of_images {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            everything(&path, found);
        } else {
            found.push(path);
        }
    }
}

/// What of the daemon's is open to others, by its mode.
fn open_to_others(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    everything(&world.path("root"), &mut found);
    found.push(world.path("s.sock"));
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o7777;
    let is_right = |path: &PathBuf| {
        let expected = if path.is_dir() { 0o700 } else { 0o600 };
        mode(path) == expected
    };
    found.retain(|path| !is_right(path));
    found
        .iter()
        .map(|path| format!("{} {:o}", path.display(), mode(path)))
        .collect()
}

/// What another user gets who tries to connect to a socket, or to list or read a file.
fn as_another_user(what: &str, path: &Path) -> String {
    let program = match what {
        "connect" => "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])",
        _ => "import os, sys; os.open(sys.argv[1], os.O_RDONLY)",
    };
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", program]).arg(path).current_dir("/");
    let output = python.uid(OTHER).gid(OTHER).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        "success".into()
    } else {
        said
    }
}

/// The sockets of a process that have an abstract name, or listen on a port.
fn reachable_without_a_path(pid: u32) -> Vec<String> {
    let inodes: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| {
            let name = link.to_str()?.strip_prefix("socket:[")?;
            Some(name.strip_suffix(']')?.to_owned())
        })
        .collect();
    let is_ours = |line: &str| {
        line.split_whitespace()
            .any(|word| inodes.iter().any(|one| one == word))
    };
    let mut found = Vec::new();
    for (file, mark) in [("unix", " @"), ("tcp", " 0A "), ("tcp6", " 0A ")] {
        let table = fs::read_to_string(format!("/proc/{pid}/net/{file}")).unwrap();
        let lines = table
            .lines()
            .filter(|line| line.contains(mark) && is_ours(line));
        found.extend(lines.map(|line| format!("{file}: {line}")));
    }
    found
}

/// Promise: with the worst umask, and also where an earlier build left things open, sockets are 0600,
/// directories 0700 and files 0600; another user gets EACCES everywhere; nothing listens without a path.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_daemon_is_open_to_other_users() {
    let mut world = World::new();
    // What protects is the daemon's own, not the test's directory.
    fs::set_permissions(world.path(""), Permissions::from_mode(0o755)).unwrap();
    for start in ["fresh", "after an open one"] {
        world.start().await;
        assert!(world.prepare(0).await, "{}", world.log());
        assert_eq!(world.read(0, "f0").await, None);
        assert_eq!(open_to_others(&world), [""; 0], "{start}");
        let root = world.path("root");
        for (what, path) in [
            ("connect", world.path("s.sock")),
            ("connect", root.join("control.sock")),
            ("open", root.clone()),
            ("open", root.join("snapshots.redb")),
            ("open", root.join("store")),
            ("open", world.place(0).await),
        ] {
            let said = as_another_user(what, &path);
            assert!(
                said.contains("PermissionError"),
                "{start}: {}: {said}",
                path.display()
            );
        }
        assert!(
            fs::symlink_metadata(world.path("s.sock"))
                .unwrap()
                .file_type()
                .is_socket()
        );
        assert_eq!(reachable_without_a_path(world.pid()), [""; 0]);
        world.stop();
        for path in ["", "snapshots.redb", "store", "snapshots"] {
            let open = if root.join(path).is_dir() {
                0o755
            } else {
                0o644
            };
            fs::set_permissions(root.join(path), Permissions::from_mode(open)).unwrap();
        }
    }
}
