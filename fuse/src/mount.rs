//! Mounts: EROFS, overlay and binds by the kernel's newer calls, and what is mounted where.
//!
//! None of this may run on a FUSE thread: mounting enters our own session.

mod attach;
mod mountinfo;
mod overlay;
mod owner;

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

pub(crate) use attach::{
    Erofs, bind, buffer_reads, mount_erofs, mount_memory, open_erofs, open_fuse_control, replace,
};
pub use mountinfo::{Mount, mounts};
pub use overlay::{Overlay, mount_overlay};
pub use owner::{clear_left, refuse_foreign};

/// What mount tables show as the source of Larder's own mounts.
pub const SOURCE: &str = "larder";

/// A mount that did not come about, or would not go away.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}: {error}{}", .kernel.as_deref().unwrap_or_default())]
pub struct MountFailed {
    doing: &'static str,
    path: PathBuf,
    error: io::Error,
    /// What the kernel said beside the error number.
    kernel: Option<String>,
}

impl MountFailed {
    fn new(doing: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self {
            doing,
            path: path.to_owned(),
            error: error.into(),
            kernel: None,
        }
    }

    /// The system's error.
    pub fn io_error(&self) -> &io::Error {
        &self.error
    }
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// At once, or not at all when it is in use.
    Now,
    /// Out of sight at once; gone when nobody uses it any more.
    Lazy,
}

/// Unmounts the topmost mount at `target`. Nothing mounted there is no error.
pub fn unmount(target: &Path, how: Unmount) -> Result<(), MountFailed> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if how == Unmount::Lazy {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(target, flags) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(MountFailed::new("unmount", target, error)),
    }
}

/// Ends a FUSE session that nobody serves. A thread of its dead daemon that waits for an answer in the
/// kernel would keep it, and its readers with it, for ever.
fn abort(session: &Mount, root: &Path) {
    // Not what another root shows of its own here.
    let is_session = session.kind == "fuse"
        && session.root == Path::new("/")
        && session.target.parent() == Some(root);
    let minor = session.device.split_once(':').map(|(_, minor)| minor);
    if let (true, Some(minor)) = (is_session, minor) {
        // Where the session has ended, there is nothing to do.
        let path = Path::new("/sys/fs/fuse/connections").join(minor);
        if std::fs::write(path.join("abort"), "1").is_err() {
            // Where that is not mounted. The kernel ends the session first, and then says that it is in use.
            let flags = UnmountFlags::FORCE | UnmountFlags::NOFOLLOW;
            let _ = rustix::mount::unmount(&session.target, flags);
        }
    }
}

/// Unmounts what is still mounted below `root` when everything that is known of was unmounted.
pub(crate) fn unmount_left(root: &Path) {
    let left = mounts().unwrap_or_default().into_iter();
    let mut left: Vec<_> = left.filter(|mount| mount.is_ours(root)).collect();
    left.reverse();
    for mount in &left {
        tracing::info!(place = %mount.target.display(), "unmounting what was left");
        if let Err(error) = unmount(&mount.target, Unmount::Lazy) {
            tracing::warn!(%error, "a mount stays");
        }
    }
}

/// Unmounts what Larder mounted below `root` and a former run left behind, dead or alive.
pub fn unmount_stale(root: &Path) -> io::Result<usize> {
    let mut stale: Vec<_> = mounts()?
        .into_iter()
        .filter(|mount| mount.is_ours(root))
        .collect();
    // The last mounted first, so that nothing hides what is below it.
    stale.reverse();
    for mount in &stale {
        abort(mount, root);
        if let Err(error) = unmount(&mount.target, Unmount::Lazy) {
            tracing::warn!(%error, "a mount of a former run stays");
        }
    }
    Ok(stale.len())
}
