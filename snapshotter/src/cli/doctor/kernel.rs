//! What the kernel can do.

use std::fs;
use std::path::Path;

use larder_fuse::{EROFS_FILES_SINCE, kernel_version};

use super::Finding;

pub(super) fn look() -> Vec<Finding> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    vec![
        erofs(release.trim(), &filesystems),
        fuse(Path::new("/dev/fuse"), &filesystems),
        overlay(&filesystems),
        root(nix::unistd::geteuid().is_root()),
    ]
}

fn erofs(release: &str, filesystems: &str) -> Finding {
    let what = "EROFS driver";
    let advice =
        "the FUSE driver is used, which is slower on metadata; fs_driver = \"auto\" does it";
    match kernel_version(release) {
        Some(found) if found < EROFS_FILES_SINCE => {
            let (major, minor) = EROFS_FILES_SINCE;
            let seen = format!("kernel {release} is older than {major}.{minor}");
            Finding::notice(what, seen, advice)
        }
        Some(_) if has(filesystems, "erofs") => Finding::good(what, format!("kernel {release}")),
        Some(_) => {
            let seen = "the module is not loaded";
            Finding::notice(what, seen, "modprobe erofs, or else: ".to_owned() + advice)
        }
        None => Finding::notice(
            what,
            format!("cannot read kernel release {release:?}"),
            advice,
        ),
    }
}

fn fuse(device: &Path, filesystems: &str) -> Finding {
    let what = "FUSE";
    if !has(filesystems, "fuse") {
        return Finding::bad(what, "the kernel has no fuse", "modprobe fuse");
    }
    match fs::OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Finding::good(what, device.display().to_string()),
        Err(error) => {
            let advice = "modprobe fuse; in a container, pass the device /dev/fuse in";
            Finding::bad(what, format!("open {}: {error}", device.display()), advice)
        }
    }
}

fn overlay(filesystems: &str) -> Finding {
    let what = "overlayfs";
    if has(filesystems, "overlay") {
        return Finding::good(what, "available");
    }
    Finding::bad(what, "the kernel has no overlay", "modprobe overlay")
}

fn root(is_root: bool) -> Finding {
    let what = "privileges";
    if is_root {
        return Finding::good(what, "root");
    }
    Finding::bad(
        what,
        "not root",
        "run larder-snapshotter as root: it mounts file systems",
    )
}

fn has(filesystems: &str, name: &str) -> bool {
    filesystems
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn kernels_are_told_apart() {
        let both = "nodev\toverlay\nnodev\tfuse\n\terofs\n";
        for (release, filesystems, expected) in [
            ("6.18.44", both, Verdict::Good),
            ("6.12.0-rc1", both, Verdict::Good),
            ("6.1.0-18-amd64", both, Verdict::Notice),
            ("5.15.0", both, Verdict::Notice),
            ("6.18.0", "nodev\toverlay\n", Verdict::Notice),
            ("odd", both, Verdict::Notice),
        ] {
            assert_eq!(erofs(release, filesystems).verdict, expected, "{release}");
        }
        assert_eq!(overlay(both).verdict, Verdict::Good);
        assert_eq!(overlay("nodev\toverlayish\n").verdict, Verdict::Bad);
        assert_eq!(fuse(Path::new("/nonexistent"), both).verdict, Verdict::Bad);
    }
}
