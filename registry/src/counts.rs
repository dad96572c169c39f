//! What a client counts for its operator.

use std::sync::atomic::{AtomicU64, Ordering};

/// Statuses counted apart; the rest are `other`, so that a registry cannot make up new ones.
const STATUSES: [u16; 21] = [
    200, 201, 202, 206, 301, 302, 303, 307, 308, 400, 401, 403, 404, 408, 416, 429, 500, 502, 503,
    504, 507,
];

/// Requests to registries, and what came of them. One for all clients of a process that share it.
#[derive(Debug, Default)]
pub struct RequestCounts {
    statuses: [AtomicU64; STATUSES.len()],
    other: AtomicU64,
    broken: AtomicU64,
    retries: AtomicU64,
    tokens: [AtomicU64; 2],
}

impl RequestCounts {
    /// Requests by the status of their answer; `other` for rare ones, `none` where none came.
    pub fn statuses(&self) -> Vec<(String, u64)> {
        let counted = STATUSES.iter().zip(&self.statuses);
        let counted = counted.map(|(status, count)| (status.to_string(), get(count)));
        let rest = [("other", &self.other), ("none", &self.broken)];
        let rest = rest.map(|(name, count)| (name.to_owned(), get(count)));
        counted.chain(rest).collect()
    }

    /// Calls that were begun again after a failure, with a pause before.
    pub fn retries(&self) -> u64 {
        get(&self.retries)
    }

    /// Requests to token servers that brought a token.
    pub fn tokens(&self) -> u64 {
        get(&self.tokens[1])
    }

    /// Requests to token servers that did not.
    pub fn tokens_failed(&self) -> u64 {
        get(&self.tokens[0])
    }

    pub(crate) fn answered(&self, status: u16) {
        let known = STATUSES.iter().position(|one| *one == status);
        one(known.map_or(&self.other, |place| &self.statuses[place]));
    }

    pub(crate) fn broken(&self) {
        one(&self.broken);
    }

    pub(crate) fn retried(&self) {
        one(&self.retries);
    }

    pub(crate) fn token(&self, came: bool) {
        one(&self.tokens[usize::from(came)]);
    }
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

fn one(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: whatever a registry answers, the number of lines is fixed.
    #[test]
    fn statuses_that_nobody_knows_are_counted_together() {
        let counts = RequestCounts::default();
        for status in 0..u16::MAX {
            counts.answered(status);
        }
        counts.broken();
        let told = counts.statuses();
        assert_eq!(told.len(), STATUSES.len() + 2);
        assert!(told.contains(&("206".into(), 1)));
        let known = u64::try_from(STATUSES.len()).unwrap();
        assert!(told.contains(&("other".into(), u64::from(u16::MAX) - known)));
        assert!(told.contains(&("none".into(), 1)));
    }
}
