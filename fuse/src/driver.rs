//! Which file system serves the trees, and why.

mod selftest;

use std::fmt;

use crate::config::DriverChoice;

pub(crate) use selftest::{SelfTest, kernel_is_safe};

/// First kernel that mounts an EROFS image from a plain file.
pub const EROFS_FILES_SINCE: (u32, u32) = (6, 12);

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
