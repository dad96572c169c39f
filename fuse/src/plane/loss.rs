//! Containers that have lost their files, as the sessions they read through ended: told until the machine is
//! started again, whoever serves since.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use tracing::{debug, warn};

use crate::mount::mounts;
use crate::store::boot_id;

/// The file below the root directory: which run of the kernel, and when, seconds since 1970.
const NAME: &str = "lost";

/// Longest of it, bytes: an identifier of 36 and two numbers.
const BYTES_MAX: u64 = 128;

/// Notes the loss, at `seconds` since 1970. What cannot be written is not told after the next start.
pub(super) fn remember(root: &Path, seconds: u64) {
    let Some(boot) = boot() else {
        return;
    };
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        // No link in its place is followed, and no pipe waited for.
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(root.join(NAME))
        .and_then(|mut file| write!(file, "{boot} {seconds}"));
    if let Err(error) = written {
        debug!(%error, "that containers lost their files cannot be kept");
    }
}

/// The latest loss of this run of the kernel; what ran in one before ended with it.
pub(super) fn remembered(root: &Path) -> Option<u64> {
    let text = larder_registry::bounded::read(&root.join(NAME), BYTES_MAX).ok()?;
    let text = String::from_utf8(text).ok()?;
    let (boot_then, seconds) = text.split_once(' ')?;
    (boot()? == boot_then).then(|| seconds.trim().parse().ok())?
}

/// Notes and tells that a stop takes the files of containers: those whose overlay lies on layers below `root`.
pub(super) fn tell_of_a_stop(root: &Path, now: u64) {
    let table = mounts().unwrap_or_default();
    let theirs = table.iter().filter(|mount| {
        !mount.target.starts_with(root) && mount.layers.iter().any(|layer| layer.starts_with(root))
    });
    let left = theirs.count();
    if left > 0 {
        warn!(
            mounts = left,
            "stopping under containers that are still mounted: they lose their files, and must be restarted"
        );
        remember(root, now);
    }
}

/// Names this run of the kernel, as text.
fn boot() -> Option<String> {
    let text = String::from_utf8(boot_id()?).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a loss is told after every start until the machine is started again; whatever lies in the file's place is
    /// no loss.
    #[test]
    fn a_loss_is_remembered_as_long_as_the_kernel_runs() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(remembered(root.path()), None);
        remember(root.path(), 7);
        remember(root.path(), 1_800_000_000);
        assert_eq!(remembered(root.path()), Some(1_800_000_000));
        let file = root.path().join(NAME);
        for odd in [
            "",
            "another-boot 7",
            "7",
            &format!("{} x", boot().unwrap()),
            &"9".repeat(4096),
        ] {
            fs::write(&file, odd).unwrap();
            assert_eq!(remembered(root.path()), None, "{odd}");
        }
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        remember(root.path(), 7);
        assert_eq!(remembered(root.path()), None);
    }
}
