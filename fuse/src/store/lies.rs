//! Indexes that lied. Who removes such an image and pulls it again must not start anew with trust.
//!
//! ```text
//! <root>/quarantine/<sha256 of the index>    in which way it lied
//! ```
//!
//! One file each, so that an operator can look, and take one away.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use larder_proto::digest::Digest;
use larder_registry::bounded;

use super::disk::Disk;

/// Most lies kept, the newest: each is one small file, and whoever makes new ones has to have an image
/// completed and proved for each.
const LIES_MAX: usize = 1024;

/// Longest reason read back, bytes: one that quotes the longest path has up to ten for each of its 4,095.
const REASON_BYTES_MAX: u64 = 64 << 10;

/// What is told where the reason was lost.
const REASON_LOST: &str = "its index was found to lie; the reason was lost";

/// The lies found on this node.
#[derive(Debug)]
pub(crate) struct Lies {
    directory: PathBuf,
    disk: Arc<dyn Disk>,
}

impl Lies {
    pub(crate) fn new(root: &Path, disk: Arc<dyn Disk>) -> Self {
        Self {
            directory: root.join("quarantine"),
            disk,
        }
    }

    /// Keeps a lie, durably; the oldest are forgotten when there are too many.
    pub(crate) fn remember(&self, index: &Digest, reason: &str) -> io::Result<()> {
        match self.disk.make_directory(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                made?;
                if let Some(root) = self.directory.parent() {
                    self.disk.sync_data(&File::open(root)?)?;
                }
            }
        }
        let path = self.directory.join(index.hex());
        self.disk.replace_durably(&path, reason.as_bytes())?;
        self.forget_the_oldest();
        Ok(())
    }

    /// In which way an index lied, if it did.
    pub(crate) fn told(&self, index: &Digest) -> Option<String> {
        match bounded::read(&self.directory.join(index.hex()), REASON_BYTES_MAX) {
            Ok(reason) => {
                let reason = String::from_utf8_lossy(&reason).into_owned();
                // A power cut may leave an empty file; that there is one says enough.
                Some(reason)
                    .filter(|reason| !reason.is_empty())
                    .or_else(|| Some(REASON_LOST.to_owned()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // Somebody's words, but for this index.
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Some(REASON_LOST.to_owned())
            }
            // Not known to be true is no reason to trust it.
            Err(error) => {
                let path = self.directory.display();
                tracing::warn!(%index, %error, "cannot read {path}: no index is taken that may have lied");
                Some(format!(
                    "whether its index lied is not known, {path} cannot be read: {error}"
                ))
            }
        }
    }

    fn forget_the_oldest(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        let mut lies: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .map(|entry| {
                let written = entry.metadata().and_then(|found| found.modified());
                (written.unwrap_or(SystemTime::UNIX_EPOCH), entry.path())
            })
            .collect();
        if lies.len() > LIES_MAX {
            lies.sort();
            for (_, path) in &lies[..lies.len() - LIES_MAX] {
                drop(std::fs::remove_file(path));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StdDisk;

    fn digest(number: usize) -> Digest {
        Digest::of(number.to_string().as_bytes())
    }

    /// Promise: an index that lied is known again after a restart, also when the reason was lost.
    #[test]
    fn a_lie_is_remembered() {
        let root = tempfile::tempdir().unwrap();
        let lies = || Lies::new(root.path(), Arc::new(StdDisk));
        assert_eq!(lies().told(&digest(1)), None);
        lies()
            .remember(&digest(1), "other mode of /bin/su")
            .unwrap();
        lies().remember(&digest(2), "").unwrap();
        assert_eq!(
            lies().told(&digest(1)).as_deref(),
            Some("other mode of /bin/su")
        );
        assert_eq!(lies().told(&digest(2)).as_deref(), Some(REASON_LOST));
        assert_eq!(lies().told(&digest(3)), None);
        let file = root.path().join("quarantine").join(digest(1).hex());
        File::create(file).unwrap().set_len(1 << 30).unwrap();
        assert_eq!(lies().told(&digest(1)).as_deref(), Some(REASON_LOST));
    }

    /// Regression: every honest index was told as one that was found to lie.
    ///
    /// Promise: where what is kept of lies cannot be read, no index is trusted, and that is told as the reason.
    #[test]
    fn what_cannot_be_read_is_no_lie_and_no_reason_to_trust() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("quarantine"), "").unwrap();
        let told = Lies::new(root.path(), Arc::new(StdDisk)).told(&digest(1));
        let told = told.unwrap();
        assert!(told.contains("is not known"), "{told}");
        assert!(told.contains("quarantine cannot be read"), "{told}");
    }

    #[test]
    fn of_too_many_lies_the_oldest_are_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let lies = Lies::new(root.path(), Arc::new(StdDisk));
        lies.remember(&digest(0), "first").unwrap();
        for number in 1..LIES_MAX + 2 {
            let path = root.path().join("quarantine").join(digest(number).hex());
            std::fs::write(path, "later").unwrap();
        }
        lies.remember(&digest(LIES_MAX + 2), "last").unwrap();
        assert_eq!(lies.told(&digest(0)), None);
        assert_eq!(lies.told(&digest(LIES_MAX + 2)).as_deref(), Some("last"));
        let left = std::fs::read_dir(root.path().join("quarantine")).unwrap();
        assert_eq!(left.count(), LIES_MAX);
    }
}
