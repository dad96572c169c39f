//! A directory that nobody has any business in.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

/// A directory with a file in it, and a watch on both that notices whoever as much as opens them.
#[derive(Debug)]
pub struct Canary {
    path: PathBuf,
    watch: OwnedFd,
}

impl Canary {
    /// Makes the directory `canary` in `parent`.
    ///
    /// # Errors
    /// If the kernel refuses the directory or the watch.
    pub fn new(parent: &Path) -> io::Result<Self> {
        let path = parent.canonicalize()?.join("canary");
        fs::create_dir(&path)?;
        fs::write(path.join("secret"), "outside")?;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, &path, WatchFlags::ALL_EVENTS)?;
        inotify::add_watch(&watch, path.join("secret"), WatchFlags::ALL_EVENTS)?;
        Ok(Self { path, watch })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was done to it since it was last asked, in words; nothing is as it should be.
    pub fn touched(&self) -> Vec<String> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        let mut touched = Vec::new();
        while let Ok(event) = events.next() {
            let name = event
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            let flags: ReadFlags = event.events();
            touched.push(format!("{flags:?} of {}", name.unwrap_or_default()));
        }
        touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A watch that notices nothing would prove nothing.
    #[test]
    fn whoever_opens_or_changes_anything_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        let canary = Canary::new(scratch.path()).unwrap();
        assert_eq!(canary.touched(), [""; 0]);
        fs::read(canary.path().join("secret")).unwrap();
        assert!(!canary.touched().is_empty());
        fs::File::create(canary.path().join("new")).unwrap();
        assert!(!canary.touched().is_empty());
        fs::hard_link(canary.path().join("secret"), scratch.path().join("link")).unwrap();
        assert!(!canary.touched().is_empty());
        assert_eq!(canary.touched(), [""; 0]);
    }
}
