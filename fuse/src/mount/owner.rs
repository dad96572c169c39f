//! Whose mounts are whose: at a place outside of the root directory anybody may mount.

use std::io;
use std::path::Path;

use super::mountinfo::{Mount, mounts};
use super::{MountFailed, SOURCE, Unmount, unmount};

/// Fails unless what is mounted at `target` is nothing, or an image or a layer of the data plane
/// whose root directory is `root`, by its canonical path.
pub fn refuse_foreign(target: &Path, root: &Path) -> Result<(), MountFailed> {
    let failed = |error| MountFailed::new("unmount", target, error);
    match foreign(&mounts().map_err(failed)?, target, root) {
        None => Ok(()),
        Some(other) => Err(failed(io::Error::other(format!(
            "what is mounted there, {} from {}, is no image of {}; it stays",
            other.kind,
            other.source.display(),
            root.display()
        )))),
    }
}

/// Takes away what is mounted at `target` of the data plane whose root directory is `root`, one over the other, down to
/// what is somebody else's, or of which `lives` says in view of all mounts that a process serves it: what processes
/// that are gone left there. How many.
pub fn clear_left(
    target: &Path,
    root: &Path,
    lives: impl Fn(&[Mount], &Mount) -> bool,
) -> Result<usize, MountFailed> {
    let mut taken = 0;
    loop {
        let failed = |error| MountFailed::new("unmount", target, error);
        let table = mounts().map_err(failed)?;
        let at = table.iter().filter(|mount| mount.target == target);
        let Some(topmost) = at.clone().next_back() else {
            return Ok(taken);
        };
        let count = at.count();
        if lives(&table, topmost) || foreign(&table, target, root).is_some() {
            return Ok(taken);
        }
        unmount(target, Unmount::Lazy)?;
        // What the kernel does not let go is not tried again.
        let left = mounts().map_err(failed)?;
        if left.iter().filter(|mount| mount.target == target).count() >= count {
            return Ok(taken);
        }
        taken += 1;
    }
}

/// The topmost mount at `target`, if it is not the data plane's.
fn foreign<'a>(table: &'a [Mount], target: &Path, root: &Path) -> Option<&'a Mount> {
    let topmost = table.iter().rfind(|mount| mount.target == target)?;
    let is_ours = match topmost.kind.as_str() {
        "erofs" => Path::new(&topmost.source).starts_with(root),
        "overlay" => {
            let mut layers = topmost.layers.iter();
            topmost.source == SOURCE && layers.any(|layer| layer.starts_with(root))
        }
        // A tree of a session; which one the number tells, as long as the session is mounted.
        "fuse" => {
            let mut sessions = table.iter().filter(|mount| mount.is_ours(root));
            topmost.source == SOURCE
                && (sessions.any(|session| session.device == topmost.device) || is_dead(target))
        }
        _ => false,
    };
    (!is_ours).then_some(topmost)
}

/// Whether the process that served a FUSE mount is gone: nobody misses it. Attributes may come from the
/// kernel's cache even then; this is asked of the process each time.
fn is_dead(target: &Path) -> bool {
    rustix::fs::statvfs(target).is_err_and(|error| error == rustix::io::Errno::NOTCONN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str, kind: &str, source: &str, device: &str) -> Mount {
        Mount {
            target: target.into(),
            root: "/".into(),
            device: device.into(),
            kind: kind.into(),
            source: source.into(),
            layers: Vec::new(),
            reads_directly: false,
        }
    }

    /// Promise: only images of this root are taken for them, whatever else is mounted there.
    #[test]
    fn images_of_other_roots_and_other_file_systems_are_foreign() {
        let overlay = |layer: &str| Mount {
            layers: vec![layer.into()],
            ..mount("/at", "overlay", "larder", "0:7")
        };
        let session = mount("/r/session", "fuse", "larder", "0:8");
        for (topmost, expected) in [
            (mount("/at", "erofs", "/r/store/a/meta", "0:7"), false),
            (mount("/at", "erofs", "/r2/store/a/meta", "0:7"), true),
            (mount("/at", "erofs", "/dev/sdb", "0:7"), true),
            (overlay("/r/images/1/0"), false),
            (overlay("/r2/images/1/0"), true),
            (mount("/at", "overlay", "overlay", "0:7"), true),
            (mount("/at", "fuse", "larder", "0:8"), false),
            (mount("/at", "fuse", "larder", "0:9"), true),
            (mount("/at", "fuse", "sshfs", "0:8"), true),
            (mount("/at", "tmpfs", "larder", "0:7"), true),
        ] {
            let below = mount("/at", "erofs", "/r/store/a/meta", "0:6");
            let table = [session.clone(), below, topmost.clone()];
            let found = foreign(&table, Path::new("/at"), Path::new("/r"));
            assert_eq!(found, expected.then_some(&topmost));
        }
        assert_eq!(foreign(&[session], Path::new("/at"), Path::new("/r")), None);
    }
}
