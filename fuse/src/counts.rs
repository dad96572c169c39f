//! What the data plane counts for its operator. A read costs two looks at the clock and four
//! additions; nothing here waits or locks on the way of a read that the store answers.

mod durations;
mod senders;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use durations::{BOUNDS_SECONDS, Durations, Measured};
use senders::Senders;
pub use senders::{SenderCounts, SenderKind};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a read failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFailure {
    /// Its bytes did not come by its deadline.
    Deadline,
    /// No source gives them before somebody mends something.
    Refused,
    /// The store's disk gave an error on bytes that had just come.
    Disk,
    /// The data plane is being shut down.
    ShutDown,
}

/// What a range request to a source came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As many bytes as were asked for; whether they are right is told by the chunks.
    Delivered,
    /// The source does not have the blob.
    Absent,
    /// It refused our credentials.
    Refused,
    /// It failed, and may do better next time.
    Failed,
    /// It did not answer within its part of the deadline.
    Silent,
}

/// What took most of the time of a slow read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    /// Waiting for a turn: too many requests of the layer at once, or too few processors.
    Queued,
    /// The source's answer.
    Network,
    /// Sources that failed before one delivered, and the pauses between asking.
    Retry,
    /// Hashing and decompressing.
    Verification,
    /// The node's own disk.
    Disk,
}

impl ReadFailure {
    /// All of them, in the order of [`ReadFailure::name`]'s table.
    pub const ALL: [Self; 4] = [Self::Deadline, Self::Refused, Self::Disk, Self::ShutDown];

    /// One word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Refused => "refused",
            Self::Disk => "disk",
            Self::ShutDown => "shutdown",
        }
    }
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Delivered,
        Self::Absent,
        Self::Refused,
        Self::Failed,
        Self::Silent,
    ];

    /// One word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Silent => "silent",
        }
    }
}

impl Delay {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Queued,
        Self::Network,
        Self::Retry,
        Self::Verification,
        Self::Disk,
    ];

    /// One word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Network => "network",
            Self::Retry => "retry",
            Self::Verification => "verification",
            Self::Disk => "disk",
        }
    }
}

/// The figures of one data plane since it started.
#[derive(Debug, Default)]
pub struct Counts {
    hits: Durations,
    misses: Durations,
    bytes_read: Count,
    waiting: AtomicU64,
    failed: [Count; ReadFailure::ALL.len()],
    slow: [Count; Delay::ALL.len()],
    asked: [Count; Outcome::ALL.len()],
    senders: Senders,
    damaged: Count,
    quarantined: Count,
}

impl Counts {
    /// Reads that the store answered, by how long that took.
    pub fn hits(&self) -> Measured {
        self.hits.measured()
    }

    /// Reads that had to wait for bytes, by how long; failed ones are among them.
    pub fn misses(&self) -> Measured {
        self.misses.measured()
    }

    /// Bytes answered to the kernel. What its page cache holds is not asked for again.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.get()
    }

    /// Reads that wait now.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Reads that failed, by the reason.
    pub fn failed(&self, why: ReadFailure) -> u64 {
        self.failed[why as usize].get()
    }

    /// Slow reads, by what took the time.
    pub fn slow(&self, why: Delay) -> u64 {
        self.slow[why as usize].get()
    }

    /// Range requests to sources, by what came of them.
    pub fn asked(&self, outcome: Outcome) -> u64 {
        self.asked[outcome as usize].get()
    }

    /// Who sent how much, and how much of it was wrong.
    pub fn senders(&self) -> Vec<SenderCounts> {
        self.senders.all()
    }

    /// Chunks in the store that were found damaged and fetched again, and metadata images.
    pub fn damaged(&self) -> u64 {
        self.damaged.get()
    }

    /// Layers whose index was found to lie.
    pub fn quarantined(&self) -> u64 {
        self.quarantined.get()
    }

    pub(crate) fn hit(&self, took: Duration, bytes: usize) {
        self.hits.add(took);
        self.bytes_read.add(bytes as u64);
    }

    /// A read begins to wait; it ends when the guard goes.
    pub(crate) fn wait(self: &std::sync::Arc<Self>) -> WaitingRead {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        WaitingRead(self.clone())
    }

    pub(crate) fn missed(&self, took: Duration, ended: Result<usize, ReadFailure>) {
        self.misses.add(took);
        match ended {
            Ok(bytes) => self.bytes_read.add(bytes as u64),
            Err(why) => self.failed[why as usize].one(),
        }
    }

    pub(crate) fn slow_read(&self, why: Delay) {
        self.slow[why as usize].one();
    }

    pub(crate) fn answered(&self, outcome: Outcome) {
        self.asked[outcome as usize].one();
    }

    /// A chunk came from `host` on behalf of `source`, and was right.
    pub(crate) fn fetched(&self, source: &str, host: Option<&str>, bytes: u64) {
        self.senders.fetched(source, host, bytes);
    }

    /// A chunk came from there, and was wrong.
    pub(crate) fn rejected(&self, source: &str, host: Option<&str>) {
        self.senders.rejected(source, host);
    }

    pub(crate) fn damage(&self) {
        self.damaged.one();
    }

    pub(crate) fn quarantine(&self) {
        self.quarantined.one();
    }
}

/// A read that waits.
#[derive(Debug)]
pub(crate) struct WaitingRead(std::sync::Arc<Counts>);

impl Drop for WaitingRead {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// The place of a word in its table is its number, by which it is counted.
    #[test]
    fn every_reason_is_counted_under_its_own_name() {
        for (place, why) in ReadFailure::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, place, "{}", why.name());
        }
        for (place, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, place, "{}", outcome.name());
        }
        for (place, why) in Delay::ALL.into_iter().enumerate() {
            assert_eq!(why as usize, place, "{}", why.name());
        }
    }

    #[test]
    fn a_read_waits_from_its_first_to_its_last_moment() {
        let counts = Arc::new(Counts::default());
        let first = counts.wait();
        let second = counts.wait();
        assert_eq!(counts.waiting(), 2);
        drop(first);
        assert_eq!(counts.waiting(), 1);
        drop(second);
        assert_eq!(counts.waiting(), 0);
    }
}
