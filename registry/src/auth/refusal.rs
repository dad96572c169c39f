//! Credentials that were refused: not shown again for a while.
//!
//! A container reads all the time, and each read would log in again: a wrong password, shown once a
//! second, locks the account of whoever owns it.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use crate::credentials::Credential;
use crate::error::Cause;

/// How long credentials that were refused are not shown again: two tries a minute for a repository.
/// Other credentials are tried at once, so this is only noticed where the account is mended elsewhere.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Tells credentials apart without keeping them; means nothing outside of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u64);

/// Makes marks, by keys of its own.
#[derive(Debug, Default)]
pub(super) struct Marker(RandomState);

impl Marker {
    pub(super) fn of(&self, credential: Option<&Credential>) -> Mark {
        Mark(self.0.hash_one(credential))
    }
}

/// That some credentials were refused, when, and in which words.
#[derive(Debug)]
pub(super) struct Refusal {
    shown: Mark,
    at: Duration,
    cause: Cause,
}

impl Refusal {
    pub(super) const fn new(shown: Mark, at: Duration, cause: Cause) -> Self {
        Self { shown, at, cause }
    }

    /// Whether it still stands.
    pub(super) fn stands(&self, now: Duration) -> bool {
        now.saturating_sub(self.at) < REMEMBERED
    }

    /// The cause, for somebody who would show `credential` now.
    pub(super) fn of(&self, credential: Mark, now: Duration) -> Option<&Cause> {
        (self.shown == credential && self.stands(now)).then_some(&self.cause)
    }
}
