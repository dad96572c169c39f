//! The mark of a device file that the kernel may read past us.
//!
//! EROFS reads a complete, proven layer from its store file, and goes on reading while anything
//! uses the mount, also after it was unmounted and after the daemon was replaced. A hole in that file
//! would read as zeros. So the file is marked before it is mounted, and what is marked is never
//! punched; it is evicted by putting an empty file in its place. No mount outlives the kernel, so a
//! mark of another boot is void.
//!
//! When the kernel reads it, it notes the time at the file. That is the only thing we see of it: the time is set
//! to one that is none, and looked at later. On a file system mounted with `noatime` nobody ever seems to read.

use std::fs::{File, FileTimes};
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use larder_registry::bounded;

use super::disk::Disk;
use super::stored::StoredLayer;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys::is_open_elsewhere;

/// The file beside the device; holds the kernel's boot id.
const NAME: &str = "direct";

/// Longest mark that is read, bytes: a boot id has 37.
const BOOT_ID_BYTES_MAX: u64 = 64;

/// Whether the device file was mounted in this boot.
#[derive(Debug)]
pub(crate) struct DirectMark {
    is_set: AtomicBool,
    /// Whether it was read, and its pages are still in memory.
    was_read: AtomicBool,
}

impl DirectMark {
    /// What a former run left in `directory`.
    pub(super) fn found(directory: &Path, disk: &dyn Disk) -> Self {
        let path = directory.join(NAME);
        let is_set = match bounded::read(&path, BOOT_ID_BYTES_MAX) {
            // Without a boot id, or with an unreadable mark, it counts.
            Ok(marked) => boot_id().is_none_or(|boot| boot == marked),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        if !is_set && path.exists() {
            let _ = disk.remove_file(&path);
        }
        Self {
            is_set: AtomicBool::new(is_set),
            was_read: AtomicBool::new(false),
        }
    }

    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::SeqCst)
    }

    /// Marks the file, first on the disk.
    pub(super) fn set(&self, directory: &Path, disk: &dyn Disk) -> io::Result<()> {
        if !self.is_set() {
            disk.replace(&directory.join(NAME), &boot_id().unwrap_or_default())?;
            self.is_set.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// What was read of it is in memory.
    pub(super) fn note_read(&self) {
        self.was_read.store(true, Ordering::Relaxed);
    }

    /// Whether it was read; from here on it was not.
    pub(super) fn take_read(&self) -> bool {
        self.was_read.swap(false, Ordering::Relaxed)
    }

    /// The file is another one now.
    pub(super) fn clear(&self, directory: &Path, disk: &dyn Disk) {
        if !self.is_set() {
            return;
        }
        // A mark that stays costs only that the new file is not punched before the next boot.
        let is_gone = match disk.remove_file(&directory.join(NAME)) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if is_gone {
            self.is_set.store(false, Ordering::SeqCst);
        }
    }
}

impl StoredLayer {
    /// Whether the kernel reads the device past us at this moment: a mount that was detached goes on as long as
    /// anything uses it, and no table shows it.
    pub(crate) fn is_held(&self) -> bool {
        self.direct.is_set() && is_held(&self.device.file())
    }
}

/// The same of a layer in `directory` that is not open.
pub(super) fn is_held_in(directory: &Path, disk: &dyn Disk) -> bool {
    let device = directory.join("device");
    // Without the file there is nothing to hold, and it would be made.
    directory.join(NAME).exists()
        && device.exists()
        && disk.open(&device).is_ok_and(|device| is_held(&device))
}

fn is_held(device: &File) -> bool {
    is_open_elsewhere(device).unwrap_or_else(|error| {
        tracing::debug!(%error, "the file system does not tell whether a device is mounted");
        false
    })
}

/// Whether anybody read a marked file since this was last asked. A reader in the moment between the two steps is
/// seen when it is read again.
pub(super) fn was_read_lately(device: &File) -> io::Result<bool> {
    let was_read = device.metadata()?.accessed()? != UNIX_EPOCH;
    if was_read {
        device.set_times(FileTimes::new().set_accessed(UNIX_EPOCH))?;
    }
    Ok(was_read)
}

/// Names this run of the kernel.
pub(crate) fn boot_id() -> Option<Vec<u8>> {
    std::fs::read("/proc/sys/kernel/random/boot_id").ok()
}

#[cfg(test)]
mod tests {
    use super::super::disk::StdDisk;
    use super::*;

    /// Promise: a mark outlives the process and not the boot, and a damaged one counts as none of
    /// another boot's.
    #[test]
    fn a_mark_lasts_as_long_as_the_kernel() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path();
        let mark = DirectMark::found(directory, &StdDisk);
        assert!(!mark.is_set());
        mark.set(directory, &StdDisk).unwrap();
        assert!(DirectMark::found(directory, &StdDisk).is_set());
        std::fs::write(directory.join(NAME), "another boot\n").unwrap();
        assert!(!DirectMark::found(directory, &StdDisk).is_set());
        assert!(!directory.join(NAME).exists());
        mark.set(directory, &StdDisk).unwrap();
        mark.clear(directory, &StdDisk);
        assert!(!DirectMark::found(directory, &StdDisk).is_set());
    }
}
