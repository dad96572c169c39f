//! How daemons ended, as it is counted.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use serde::{Deserialize, Serialize};

use super::signals::CRASHES;

/// Takeovers, by how the daemon before had ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Takeovers {
    /// Somebody ended it by a signal, or the kernel did for want of memory.
    pub killed: u64,
    /// By its own fault: it crashed, or gave up.
    pub failed: u64,
    /// It made room in order, as for an upgrade.
    pub replaced: u64,
    /// Nobody saw it.
    pub unknown: u64,
}

impl Takeovers {
    /// The causes and their counts.
    pub fn all(&self) -> [(&'static str, u64); 4] {
        let mut copy = *self;
        copy.all_mut().map(|(cause, count)| (cause, *count))
    }

    /// Adds those of `others`.
    pub(crate) fn add(&mut self, others: Self) {
        for ((_, count), (_, more)) in self.all_mut().into_iter().zip(others.all()) {
            *count = count.saturating_add(more);
        }
    }

    /// What [`Takeovers::words`] said, in this build or another; a cause that is not known is none.
    pub(super) fn hear(&mut self, words: &str) {
        let Some((cause, count)) = words.split_once(' ') else {
            return;
        };
        let Ok(more) = count.parse() else { return };
        let causes = self.all_mut().into_iter();
        let known = causes.filter(|(name, _)| *name == cause);
        known.for_each(|(_, count)| *count = count.saturating_add(more));
    }

    /// In words for another process, a message each.
    pub(super) fn words(&self) -> Vec<String> {
        let counted = self.all().into_iter().filter(|(_, count)| *count > 0);
        counted
            .map(|(cause, count)| format!("{cause} {count}"))
            .collect()
    }

    fn all_mut(&mut self) -> [(&'static str, &mut u64); 4] {
        [
            ("killed", &mut self.killed),
            ("failed", &mut self.failed),
            ("replaced", &mut self.replaced),
            ("unknown", &mut self.unknown),
        ]
    }
}

/// Whether a daemon ended by its own fault: not when somebody ended it by a signal, and not when it made room for
/// the next one in order.
pub(super) fn failed(status: ExitStatus) -> bool {
    match status.signal() {
        Some(signal) => CRASHES.iter().any(|crash| *crash as i32 == signal),
        None => !status.success(),
    }
}
