//! Lists directories for the kernel to remember them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::Receiver;

use super::walks::Visit;
use crate::sys::leave_descriptors;

/// Lists what is asked for, through the mount of the session at `session`, until nobody asks any
/// more. For a thread of its own, which waits for the FUSE threads and so holds nothing of the
/// session, not even a slot.
pub(super) fn run(visits: &Receiver<Visit>, session: &Path) {
    if let Err(error) = leave_descriptors() {
        tracing::debug!(%error, "no directory is listed ahead");
        return;
    }
    for visit in visits {
        let tree = session.join("tree").join(visit.slot.to_string());
        for path in visit.paths {
            // Nothing is kept open, since the session ends when nobody has a file of it open.
            match std::fs::read_dir(tree.join(OsStr::from_bytes(&path))) {
                Ok(entries) => entries.for_each(drop),
                Err(error) => {
                    tracing::debug!(slot = visit.slot, %error, "not listed ahead");
                    break;
                }
            }
        }
    }
}
