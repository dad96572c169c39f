//! The places of mounts, made while there is room for them.
//!
//! A directory takes a block of the disk, and a start must not fail for want of one: what is complete
//! and in the store is served. So the places every start needs are made with the first one and stay;
//! those that come and go, one for each EROFS file system, are made in memory while the disk is full.

use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use tracing::{info, warn};

use crate::driver::Driver;
use crate::mount::mount_memory;

/// With less room than this, the places of EROFS mounts are made in memory: a block of 4 KiB for each of
/// two file systems of 2048 layers, more than a node has.
const ROOM: u64 = 16 << 20;

/// With fewer files left to be made than this, too.
const FILES: u64 = 2 * 2048;

/// Where EROFS file systems are mounted.
pub(super) fn erofs(root: &Path) -> PathBuf {
    root.join("erofs")
}

/// Makes the places that the data plane below `root` needs, whatever its driver is the next time. Nothing is
/// mounted there yet but sessions.
pub(super) fn make_places(root: &Path, driver: Driver) {
    let place = erofs(root);
    for path in [&root.join("session-plain"), &place] {
        // Only the other driver needs it, or mounting tells.
        if let Err(error) = crate::create_private(path) {
            info!(path = %path.display(), %error, "a place for mounts is not made now");
        }
    }
    if driver != Driver::Erofs || has_room(&place) {
        return;
    }
    match mount_memory(&place) {
        Ok(()) => warn!(
            path = %place.display(),
            "the disk is full: until the next start, the places of mounts are in memory"
        ),
        Err(error) => warn!(%error, "the disk is full, and layers may not be mounted"),
    }
}

/// Whether the disk has room for the places of mounts, as far as it tells.
fn has_room(place: &Path) -> bool {
    statvfs(place).is_ok_and(|disk| {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        // Some file systems do not count files.
        free >= ROOM && (disk.f_files == 0 || disk.f_favail >= FILES)
    })
}
