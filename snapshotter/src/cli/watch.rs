//! `watch-sessions`: a process beside the owner of a root directory without a supervisor, which ends its sessions when
//! the owner is killed.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use larder_fuse::supervisor;

use crate::plane::MountingPlane;

/// The program of this process, also after its file was replaced or removed.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// What its processes are called in lists, so that whoever ends all of ours by their name does not end it before.
const NAME: &str = "larder-watch";

/// Starts it for what `plane` serves. Without it, as where processes cannot be had, everything goes on.
pub(super) fn start(plane: &MountingPlane) -> Option<Child> {
    let mut watcher = Command::new(OWN_PROGRAM);
    watcher.arg0("larder-snapshotter").arg("watch-sessions");
    let started = plane.watch(watcher);
    started
        .inspect_err(|error| {
            tracing::info!(%error, "if this process is killed, the next mount ends what hangs");
        })
        .ok()
}

/// Is it.
pub(super) fn watch() -> anyhow::Result<()> {
    // Its name is all that is lost.
    let _ = std::fs::write("/proc/self/comm", NAME);
    Ok(supervisor::watch()?)
}
