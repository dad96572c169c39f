//! Which file system serves the trees, and why.

mod selftest;

use std::fmt;

use crate::config::DriverChoice;

pub(crate) use selftest::{SelfTest, kernel_is_safe};

/// First kernel that mounts an EROFS image from a plain file.
pub const EROFS_FILES_SINCE: (u32, u32) = (6, 12);

/// Kernels whose EROFS may read devices past the page cache, by series and first release. Before, a request could be
/// freed while ext4, on which the metadata lies, still used it, and the kernel panicked: CVE-2026-23224, published in February 2026. The releases
/// of the series that were supported then are of the weeks after; each series from 7.0 on has the repair from its first.
const DIRECT_READS_SINCE: [((u32, u32), u32); 3] = [((6, 12), 75), ((6, 18), 16), ((6, 19), 6)];

/// First series that never was without it.
const DIRECT_READS_ALWAYS: (u32, u32) = (7, 0);

/// A file system that serves layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// The kernel's EROFS, with a device of the FUSE session.
    Erofs,
    /// The FUSE session itself.
    Fuse,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Erofs => "erofs",
            Self::Fuse => "fuse",
        })
    }
}

/// The driver in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverReport {
    /// Which.
    pub driver: Driver,
    /// Why, for the log and for `status`.
    pub reason: String,
}

impl fmt::Display for DriverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.driver, self.reason)
    }
}

/// Why, if it was neither the kernel's nor the self-test's word.
const ASKED_FOR: &str = "asked for by fs_driver";

/// What can be said before the session is there; `None` asks for the self-test. `Err` says why the
/// driver that was asked for cannot be had.
pub(crate) fn decide(choice: DriverChoice, release: &str) -> Result<Option<DriverReport>, String> {
    if choice == DriverChoice::Fuse {
        return fuse(choice, ASKED_FOR.into()).map(Some);
    }
    if kernel_version(release).is_some_and(|found| found >= EROFS_FILES_SINCE) {
        return Ok(None);
    }
    let (major, minor) = EROFS_FILES_SINCE;
    let reason = format!("kernel {release} is older than {major}.{minor}");
    fuse(choice, reason).map(Some)
}

/// The decision after the self-test, which says what makes EROFS unusable here.
pub(crate) fn after_self_test(
    choice: DriverChoice,
    safe: Result<(), String>,
) -> Result<DriverReport, String> {
    match safe {
        Ok(()) => Ok(DriverReport {
            driver: Driver::Erofs,
            reason: "the self-test: the kernel reports failed device reads as errors".into(),
        }),
        Err(reason) => fuse(choice, format!("the self-test: {reason}")),
    }
}

/// The FUSE driver for `reason`, unless that is not what was asked for.
fn fuse(choice: DriverChoice, reason: String) -> Result<DriverReport, String> {
    let driver = Driver::Fuse;
    match choice {
        DriverChoice::Erofs => Err(reason),
        DriverChoice::Auto | DriverChoice::Fuse => Ok(DriverReport { driver, reason }),
    }
}

/// Major and minor version of a kernel by its release, such as `6.1.0-18-amd64`.
pub fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether EROFS may read devices past the page cache on the kernel of this release. What is not known is taken for no.
pub(crate) fn may_read_directly(release: &str) -> bool {
    let Some(series) = kernel_version(release) else {
        return false;
    };
    let patch = release.split(|c: char| !c.is_ascii_digit()).nth(2);
    let patch = patch.and_then(|patch| patch.parse::<u32>().ok());
    let repaired = |(since, first)| series == since && patch.is_some_and(|patch| patch >= first);
    series >= DIRECT_READS_ALWAYS || DIRECT_READS_SINCE.into_iter().any(repaired)
}

/// The release of this kernel; empty if it is unknown.
pub(crate) fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_get_fuse_with_the_reason() {
        for old in [
            "5.15.0-91-generic",
            "6.1.0-18-amd64",
            "6.8.0",
            "6.11.9",
            "odd",
        ] {
            let report = decide(DriverChoice::Auto, old).unwrap().unwrap();
            assert_eq!(report.driver, Driver::Fuse);
            assert!(report.reason.contains(old), "{report}");
        }
        for new in ["6.12.0", "6.18.44-x", "7.0.1"] {
            assert_eq!(decide(DriverChoice::Auto, new), Ok(None));
        }
    }

    /// Promise: EROFS reads past the page cache only where the kernel is known not to panic of it.
    #[test]
    fn a_kernel_that_may_panic_reads_through_the_page_cache() {
        for unknown in [
            "6.12.0-55.el10",
            "6.12.74+deb13-amd64",
            "6.14.0-37-generic",
            "6.18.15",
            "6.19.5",
            "6.18",
            "odd",
            "",
        ] {
            assert!(!may_read_directly(unknown), "{unknown}");
        }
        for repaired in [
            "6.12.75",
            "6.18.16",
            "6.18.44-x",
            "6.19.6",
            "7.0.0-rc1",
            "8.1",
        ] {
            assert!(may_read_directly(repaired), "{repaired}");
        }
    }

    #[test]
    fn an_unsafe_kernel_gets_fuse() {
        let report = after_self_test(DriverChoice::Auto, Err("zeros".into())).unwrap();
        assert_eq!(report.driver, Driver::Fuse);
        assert_eq!(report.reason, "the self-test: zeros");
    }

    /// Promise: asked for EROFS, Larder tests the kernel as well, and refuses one that is too old
    /// or would show zeros.
    #[test]
    fn erofs_is_refused_where_it_would_not_be_safe() {
        assert_eq!(decide(DriverChoice::Erofs, "6.12.0"), Ok(None));
        let refused = decide(DriverChoice::Erofs, "5.15.0").unwrap_err();
        assert!(refused.contains("5.15.0"), "{refused}");
        let refused = after_self_test(DriverChoice::Erofs, Err("zeros".into())).unwrap_err();
        assert!(refused.contains("zeros"), "{refused}");
        let report = after_self_test(DriverChoice::Erofs, Ok(())).unwrap();
        assert_eq!(report.driver, Driver::Erofs);
    }
}
