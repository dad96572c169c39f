//! Where a root directory can be: file systems that cannot hold it are refused before anything is
//! written.

use std::path::Path;

use super::{Config, ConfigError};

/// File systems that cannot hold a container's upper directory, or not serve the images below an
/// EROFS mount, by the numbers statfs(2) gives (linux/magic.h).
const UNFIT: [(u32, &str); 7] = [
    (0x794c_7630, "overlayfs"),
    (0x6573_5546, "FUSE"),
    (0x0000_6969, "NFS"),
    (0x0000_517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9P"),
];

impl Config {
    /// Refuses a root directory on a file system that cannot hold it: the kernel's own messages
    /// come late, and blame what was to be mounted.
    pub fn check_disk(&self) -> Result<(), ConfigError> {
        // The directory itself is made at the first start.
        let there = self.root.ancestors().find(|path| path.exists());
        let found = there.and_then(|path| rustix::fs::statfs(path).ok());
        let found = found.and_then(|found| u32::try_from(found.f_type & 0xffff_ffff).ok());
        match found.and_then(unfit) {
            Some(kind) => Err(refused(&self.root, kind)),
            None => Ok(()),
        }
    }
}

fn unfit(number: u32) -> Option<&'static str> {
    let found = UNFIT.iter().find(|(known, _)| *known == number);
    found.map(|(_, kind)| *kind)
}

fn refused(root: &Path, kind: &str) -> ConfigError {
    let reason = format!(
        "{} is on {kind}, which cannot hold it: choose a directory on a local disk with --root",
        root.display()
    );
    ConfigError::Value {
        key: "root",
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    /// Promise: a root where layers and containers cannot live is refused by one sentence.
    #[test]
    fn a_file_system_that_cannot_hold_a_root_is_named() {
        // EXT4, XFS, btrfs, tmpfs.
        for fit in [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994] {
            assert_eq!(unfit(fit), None);
        }
        for (number, kind) in UNFIT {
            assert_eq!(unfit(number), Some(kind));
        }
        let told = refused(Path::new("/merged/root"), "overlayfs").to_string();
        assert!(
            told.contains("key root: /merged/root is on overlayfs"),
            "{told}"
        );
        assert!(told.contains("local disk"), "{told}");
    }

    #[test]
    fn a_root_that_is_not_there_yet_is_judged_by_what_is() {
        // Not in the list, whatever this machine's disks are.
        let root = Some("/proc/none/such/root".into());
        let overrides = Overrides {
            root,
            ..Overrides::default()
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = Config::load(Some(file.path()), &overrides).unwrap();
        config.check_disk().unwrap();
    }
}
