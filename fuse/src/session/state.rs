//! What the next daemon has to know of a session.
//!
//! Fields are only ever added, each with a default that says what its absence means. `readable_since`
//! is the oldest version whose reader understands what is written; who is older than that ends, and
//! the mounts wait for one who is not.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::greeting::Exchange;
use crate::driver::{Driver, DriverReport};
use crate::supervisor::Takeovers;

/// The version this build writes. Version 1 had no `lost`, version 2 neither `verified` nor
/// `takeovers`.
pub(super) const VERSION: u32 = 3;

/// The first version whose daemons keep what they verified.
const KEEPS_VERIFIED: u32 = 3;

/// What it needs of its readers.
const READABLE_SINCE: u32 = 1;

/// Longest state, bytes: two messages of a hundred bytes and a few words.
const STATE_BYTES_MAX: u64 = 64 << 10;

/// What is written instead of [`VERSION`], for tests of upgrades.
static WRITTEN: AtomicU32 = AtomicU32::new(VERSION);

/// Has this process behave like a build that knew only `version` of the state: for tests of upgrades
/// and downgrades.
#[doc(hidden)]
pub fn write_state_as(version: u32) {
    WRITTEN.store(version, Ordering::Relaxed);
}

/// Whether this process is of a build that keeps what it verified for the next daemon.
pub(crate) fn keeps_verified() -> bool {
    WRITTEN.load(Ordering::Relaxed) >= KEEPS_VERIFIED
}

/// A session's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SessionState {
    version: u32,
    readable_since: u32,
    /// Which driver it was mounted for: decided once, with the session.
    driver: String,
    driver_reason: String,
    pub(super) exchange: Exchange,
    /// That containers lost their mounts when it began, seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lost: Option<u64>,
    /// Names the memory of what this daemon verified: it kept that in order. A daemon that does not know
    /// of it leaves this out, and the next one believes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) verified: Option<u64>,
    /// How often it was taken over.
    #[serde(default)]
    pub(crate) takeovers: Takeovers,
}

/// What the next daemon is told of a session, apart from its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// See [`SessionState::lost`].
    pub(crate) lost: Option<u64>,
    /// See [`SessionState::verified`].
    pub(crate) verified: Option<u64>,
    /// See [`SessionState::takeovers`].
    pub(crate) takeovers: Takeovers,
}

/// A state this build cannot go on from.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// A later build wrote it.
    #[error(
        "the sessions' state has version {found}, for readers of version {needed} or later; this \
         build reads {VERSION}. The mounts wait for a build that can: put it back in place of this one"
    )]
    TooNew {
        /// Who wrote it.
        found: u32,
        /// Who can read it.
        needed: u32,
    },
    /// It is not one.
    #[error("the sessions' state cannot be read: {0}")]
    Damaged(String),
}

impl SessionState {
    pub(super) fn new(report: &DriverReport, exchange: Exchange, told: Told) -> Self {
        Self {
            version: VERSION,
            readable_since: READABLE_SINCE,
            driver: report.driver.to_string(),
            driver_reason: report.reason.clone(),
            exchange,
            lost: told.lost,
            verified: told.verified,
            takeovers: told.takeovers,
        }
    }

    pub(super) fn told(&self) -> Told {
        Told {
            lost: self.lost,
            verified: self.verified,
            takeovers: self.takeovers,
        }
    }

    /// Which version wrote it.
    pub(super) fn version(&self) -> u32 {
        self.version
    }

    /// The driver, and why.
    pub(super) fn driver(&self) -> Result<DriverReport, StateError> {
        let driver = match &*self.driver {
            "erofs" => Driver::Erofs,
            "fuse" => Driver::Fuse,
            other => return Err(StateError::Damaged(format!("driver {other:?}"))),
        };
        let reason = self.driver_reason.clone();
        Ok(DriverReport { driver, reason })
    }

    /// In memory that outlives this process.
    pub(super) fn write(&self) -> io::Result<OwnedFd> {
        let version = WRITTEN.load(Ordering::Relaxed);
        let written = Self {
            version,
            lost: self.lost.filter(|_| version > 1),
            verified: self.verified.filter(|_| version >= KEEPS_VERIFIED),
            takeovers: if version >= KEEPS_VERIFIED {
                self.takeovers
            } else {
                Takeovers::default()
            },
            ..self.clone()
        };
        let mut file = File::from(memfd_create("larder-session", MemfdFlags::CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&written)?)?;
        Ok(file.into())
    }

    /// What [`SessionState::write`] wrote, in this build or another.
    pub(super) fn read(memory: OwnedFd) -> Result<Self, StateError> {
        #[derive(Deserialize)]
        struct Versions {
            version: u32,
            readable_since: u32,
        }
        let damaged = |error: &dyn std::fmt::Display| StateError::Damaged(error.to_string());
        let mut bytes = Vec::new();
        let mut file = File::from(memory);
        file.rewind()
            .and_then(|()| (&file).take(STATE_BYTES_MAX).read_to_end(&mut bytes))
            .map_err(|error| damaged(&error))?;
        let versions: Versions = serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
        if versions.readable_since > WRITTEN.load(Ordering::Relaxed) {
            return Err(StateError::TooNew {
                found: versions.version,
                needed: versions.readable_since,
            });
        }
        serde_json::from_slice(&bytes).map_err(|error| damaged(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(text: &str) -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.into()
    }

    /// Promise: a state of the version before and one of a later version that says so are read; one
    /// that needs a later reader is refused with what to do.
    #[test]
    fn states_of_neighbouring_versions_are_read() {
        let first = r#"{"version":1,"readable_since":1,"driver":"fuse","driver_reason":"asked",
            "exchange":{"request":[1],"reply":[2]}"#;
        let read = SessionState::read(memory(&format!("{first}}}"))).unwrap();
        assert_eq!(read.driver().unwrap().driver, Driver::Fuse);
        assert_eq!(read.lost, None);
        let later = first.replace(r#""version":1"#, r#""version":9"#);
        let later = format!(r#"{later},"lost":7,"verified":8,"unheard of":[1]}}"#);
        let read = SessionState::read(memory(&later)).unwrap();
        assert_eq!((read.lost, read.verified), (Some(7), Some(8)));
        let rewritten = SessionState::read(read.write().unwrap()).unwrap();
        assert_eq!((rewritten.version(), read.version()), (VERSION, 9));
        assert_eq!(rewritten.told(), read.told());
        let needs = later.replace(r#""readable_since":1"#, r#""readable_since":9"#);
        let refused = SessionState::read(memory(&needs)).unwrap_err().to_string();
        assert!(refused.contains("put it back"), "{refused}");
        for damaged in ["", "{}", "null", &first[..40]] {
            let read = SessionState::read(memory(damaged));
            assert!(matches!(read, Err(StateError::Damaged(_))), "{damaged}");
        }
    }
}
