//! Disk usage of a directory, counted as containerd counts it.

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::Usage;

/// Tells a running count that nobody waits for it any more, when dropped.
#[derive(Debug)]
pub struct Cancel<'a>(pub &'a AtomicBool);

impl Drop for Cancel<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts bytes and inodes at and below `root`, hard links once, without following symlinks.
///
/// Files that disappear meanwhile do not count. Returns nothing once `cancelled` is set.
pub fn count(root: &Path, cancelled: &AtomicBool) -> io::Result<Option<Usage>> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        if cancelled.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(found) = unless_gone(fs::symlink_metadata(&path))? else {
            continue;
        };
        if found.nlink() > 1 && !found.is_dir() && !linked.insert((found.dev(), found.ino())) {
            continue;
        }
        // `blocks` counts units of 512 bytes whatever the file system's block size is.
        usage.bytes += found.blocks() * 512;
        usage.inodes += 1;
        if !found.is_dir() {
            continue;
        }
        let Some(entries) = unless_gone(fs::read_dir(&path))? else {
            continue;
        };
        for entry in entries {
            pending.push(entry?.path());
        }
    }
    Ok(Some(usage))
}

fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn hard_links_count_once_and_symlinks_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), vec![1; 8192]).unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        symlink("/", dir.path().join("root")).unwrap();
        let usage = count(dir.path(), &AtomicBool::new(false)).unwrap().unwrap();
        assert_eq!(usage.inodes, 3);
        assert!((8192..65536).contains(&usage.bytes), "{usage:?}");
    }

    #[test]
    fn a_cancelled_count_stops() {
        let cancelled = AtomicBool::new(false);
        drop(Cancel(&cancelled));
        assert_eq!(count(Path::new("/"), &cancelled).unwrap(), None);
    }
}
