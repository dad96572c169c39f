//! Which places go together: a socket where something else is to be would be found out late, and a
//! root directory is closed to everybody else.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Component, Path, PathBuf};

use super::{Config, ConfigError};
use crate::metrics::MetricsAddress;

/// Directories that others need, or that belong to others. A root directory becomes mode 0700 and is
/// filled: with one of these the machine, or containerd, would stop to work.
const OTHERS: [&str; 38] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/dev/shm",
    "/etc",
    "/etc/containerd",
    "/etc/larder",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/run/containerd",
    "/run/lock",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/local",
    "/usr/sbin",
    "/usr/share",
    "/var",
    "/var/cache",
    "/var/lib",
    "/var/lib/containerd",
    "/var/lib/docker",
    "/var/lib/kubelet",
    "/var/log",
    "/var/tmp",
];

impl Config {
    /// Refuses a root directory that is not for Larder alone, and sockets where something else is.
    pub(super) fn check_places(&self) -> Result<(), ConfigError> {
        let root = real(&self.root);
        if OTHERS.iter().any(|other| root == real(Path::new(other))) {
            let reason = "is a directory of the system, and would be closed to everybody else: choose one for \
                          Larder alone, such as /var/lib/larder";
            return Err(refused("root", &self.root, reason));
        }
        let mut before = vec![("containerd.address", real(&self.containerd))];
        let metrics = match &self.metrics {
            Some(MetricsAddress::Socket(path)) => Some(path),
            _ => None,
        };
        let address = Some(("address", &self.address));
        for (key, path) in address
            .into_iter()
            .chain(metrics.map(|path| ("metrics_address", path)))
        {
            let place = real(path);
            if let Some((other, _)) = before.iter().find(|(_, other)| *other == place) {
                let reason =
                    format!("is the socket of {other}, too: choose another path for one of them");
                return Err(refused(key, path, &reason));
            }
            check_beside(key, path, &place, &root)?;
            check_free(key, path)?;
            before.push((key, place));
        }
        Ok(())
    }
}

/// Refuses a path at which no socket can be made, as something else is there or above it.
fn check_free(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    let there = std::fs::metadata(path);
    if there.is_ok_and(|found| !found.file_type().is_socket()) {
        let reason = "is there and no socket: remove it, or choose another path";
        return Err(refused(key, path, reason));
    }
    let above = path.ancestors().skip(1);
    if above
        .filter_map(|above| std::fs::metadata(above).ok())
        .any(|found| !found.is_dir())
    {
        let reason = "lies below something that is no directory: choose another path";
        return Err(refused(key, path, reason));
    }
    Ok(())
}

/// Refuses a socket that is the root directory, above it, or among what is kept in it.
fn check_beside(
    key: &'static str,
    path: &Path,
    place: &Path,
    root: &Path,
) -> Result<(), ConfigError> {
    if root.starts_with(place) {
        let reason = "is the root directory or one above it: choose the path of a socket, such as one in /run/larder";
        return Err(refused(key, path, reason));
    }
    let Ok(inside) = place.strip_prefix(root) else {
        return Ok(());
    };
    // Whatever this build or a later one keeps there, none of it is called so but the control socket.
    let is_free = inside.components().count() == 1
        && inside
            .extension()
            .is_some_and(|extension| extension == "sock")
        && Config::control(root) != place;
    if is_free {
        return Ok(());
    }
    let reason = "lies where the root directory keeps its own files: choose a path outside, such as one in /run/larder";
    Err(refused(key, path, reason))
}

/// `path` without links and `..`, as far as it exists; what does not exist is no link.
fn real(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    let there = path.ancestors().find_map(|above| {
        let found = above.canonicalize().ok()?;
        Some((found, path.strip_prefix(above).unwrap_or(Path::new(""))))
    });
    let (found, rest) = there.unwrap_or_else(|| (PathBuf::new(), path));
    real.push(found);
    for part in rest.components() {
        match part {
            Component::ParentDir => {
                real.pop();
            }
            Component::CurDir => {}
            part => real.push(part),
        }
    }
    real
}

fn refused(key: &'static str, path: &Path, reason: &str) -> ConfigError {
    let reason = format!("{} {reason}", path.display());
    ConfigError::Value { key, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()), &Overrides::default())
    }

    fn refusal(text: &str) -> String {
        load(text).expect_err(text).to_string()
    }

    /// Promise: a directory that others need is not closed to them, however it is written.
    #[test]
    fn a_root_that_is_not_for_larder_alone_is_refused() {
        for root in [
            "/",
            "//",
            "/tmp/..",
            "/etc",
            "/none/../var/lib",
            "/proc",
            "/var/lib/containerd/.",
        ] {
            let told = refusal(&format!("root = {root:?}"));
            assert!(told.contains("line 1, key root: "), "{told}");
            assert!(
                told.contains(root) && told.contains("/var/lib/larder"),
                "{told}"
            );
        }
        for root in [
            "/var/lib/larder",
            "/data",
            "/tmp/../tmp/x",
            "/var/lib/containerd/larder",
        ] {
            load(&format!("root = {root:?}")).unwrap();
        }
    }

    /// Promise: two sockets at one place are refused by both keys, also where a link leads to it.
    #[test]
    fn sockets_at_the_same_place_are_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path().display();
        std::os::unix::fs::symlink(scratch.path(), scratch.path().join("link")).unwrap();
        for (key, other, text) in [
            (
                "metrics_address",
                "address",
                format!("address = \"{at}/a\"\nmetrics_address = \"{at}/a\""),
            ),
            (
                "metrics_address",
                "address",
                format!("address = \"{at}/a\"\nmetrics_address = \"{at}/link/./a\""),
            ),
            (
                "metrics_address",
                "address",
                format!("address = \"{at}/a\"\nmetrics_address = \"unix:{at}/none/../a\""),
            ),
            (
                "address",
                "containerd.address",
                format!("address = \"{at}/a\"\n[containerd]\naddress = \"{at}/a\""),
            ),
        ] {
            let told = refusal(&text);
            assert!(told.contains(&format!("key {key}: ")), "{told}");
            assert!(
                told.contains(&format!("the socket of {other}, too")),
                "{told}"
            );
        }
        load(&format!(
            "address = \"{at}/a\"\nmetrics_address = \"{at}/b\""
        ))
        .unwrap();
    }

    /// Regression: `--check-config` found nothing wrong, and the start failed for ever.
    ///
    /// Promise: where no socket can be made, as something else is there or above it, that is a mistake in the
    /// configuration; a socket of before may be there.
    #[test]
    fn a_place_that_is_taken_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().display();
        std::fs::write(root.path().join("file"), "").unwrap();
        let socket = root.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (key, before) in [("address", ""), ("metrics_address", "unix:")] {
            for (place, words) in [
                ("", "is there and no socket"),
                ("/file", "is there and no socket"),
                ("/file/x.sock", "lies below something"),
            ] {
                let told = refusal(&format!("{key} = \"{before}{at}{place}\""));
                assert!(told.contains(&format!("key {key}: ")), "{told}");
                assert!(told.contains(words), "{told}");
            }
            load(&format!("{key} = \"{before}{at}/socket\"")).unwrap();
            load(&format!("{key} = \"{before}{at}/none/yet.sock\"")).unwrap();
        }
    }

    /// Promise: a socket takes no place of what the root directory holds, nor that of the directory.
    #[test]
    fn a_socket_among_the_files_of_the_root_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let at = root.path().display();
        for key in ["address", "metrics_address"] {
            for (place, words) in [
                ("", "is the root directory"),
                ("/..", "or one above it"),
                ("/control.sock", "keeps its own files"),
                ("/snapshots/../control.sock", "keeps its own files"),
                ("/store", "keeps its own files"),
                ("/snapshots/1/x.sock", "keeps its own files"),
                ("/snapshots.redb", "keeps its own files"),
            ] {
                let told = refusal(&format!("root = \"{at}\"\n{key} = \"{at}{place}\""));
                assert!(told.contains(&format!("line 2, key {key}: ")), "{told}");
                assert!(told.contains(words), "{told}");
            }
            load(&format!("root = \"{at}\"\n{key} = \"{at}/own.sock\"")).unwrap();
        }
    }
}
