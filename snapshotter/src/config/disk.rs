//! Where a root directory can be: file systems that cannot hold it are refused before anything is
//! written.

use std::path::Path;

use super::{Config, ConfigError};

/// File systems that cannot hold a container's upper directory, or not serve the images below an
/// EROFS mount, by the numbers statfs(2) gives (linux/magic.h); those of the kernel, which hold no files of
/// anybody; and those that are read only. tmpfs can: all that is lost with it is what was fetched.
const UNFIT: [(u32, &str); 23] = [
    (0x794c_7630, "overlayfs"),
    (0x6573_5546, "FUSE"),
    (0x0000_6969, "NFS"),
    (0x0000_517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9P"),
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0027_e0eb, "cgroup"),
    (0x6367_7270, "cgroup2"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x7363_6673, "securityfs"),
    (0x6265_6570, "configfs"),
    (0x0000_1cd1, "devpts"),
    (0x1980_0202, "mqueue"),
    (0xcafe_4a11, "bpf"),
    (0x6165_676c, "pstore"),
    (0xde5e_81e4, "efivarfs"),
    (0xe0f5_e1e2, "EROFS"),
    (0x7371_7368, "squashfs"),
    (0x0000_9660, "ISO 9660"),
];

impl Config {
    /// Refuses a root directory on a file system that cannot hold it: the kernel's own messages
    /// come late, and blame what was to be mounted.
    pub fn check_disk(&self) -> Result<(), ConfigError> {
        // The directory itself is made at the first start.
        let there = self.root.ancestors().find(|path| path.exists());
        if let Some(path) = there.filter(|path| !path.is_dir()) {
            let reason = format!(
                "{} is no directory: choose another place with --root",
                path.display()
            );
            return Err(ConfigError::Value {
                key: "root",
                reason,
            });
        }
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
        let file = tempfile::NamedTempFile::new().unwrap();
        let on_a_file = file.path().join("root");
        for (root, words) in [
            (
                Path::new("/proc/none/such/root"),
                "is on proc, which cannot hold it",
            ),
            (Path::new("/sys/x"), "is on sysfs, which cannot hold it"),
            (&on_a_file, "is no directory"),
        ] {
            let overrides = Overrides {
                root: Some(root.to_owned()),
                ..Overrides::default()
            };
            let config = Config::load(Some(file.path()), &overrides).unwrap();
            let told = config.check_disk().unwrap_err().to_string();
            assert!(
                told.contains("key root: ") && told.contains(words),
                "{told}"
            );
        }
    }
}
