//! How often slow reads are reported.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Reports at once. A registry that stalls makes every reader slow; five lines show which image,
/// file and source it is.
const BURST: u32 = 5;

/// One more report in this time. An hour of stalls makes 360 lines, and each costs a walk over the
/// names of a layer.
const EVERY: Duration = Duration::from_secs(10);

/// Decides which slow reads of a node are reported.
#[derive(Debug)]
pub(crate) struct SlowReads {
    after: Option<Duration>,
    account: Mutex<Account>,
}

#[derive(Debug)]
struct Account {
    reports: u32,
    /// When [`Account::reports`] last grew.
    settled: Instant,
    suppressed: u64,
}

impl SlowReads {
    /// Reads that take `after` or longer are slow; without it, none is.
    pub(crate) fn new(after: Option<Duration>) -> Self {
        Self {
            after,
            account: Mutex::new(Account {
                reports: BURST,
                settled: Instant::now(),
                suppressed: 0,
            }),
        }
    }

    pub(crate) fn is_slow(&self, took: Duration) -> bool {
        self.after.is_some_and(|after| took >= after)
    }

    /// Whether one more is reported, and how many were not since the last that was.
    pub(crate) fn report(&self) -> Option<u64> {
        let mut account = self.account.lock().unwrap_or_else(PoisonError::into_inner);
        let periods = account.settled.elapsed().as_secs() / EVERY.as_secs();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        account.reports = account.reports.saturating_add(periods).min(BURST);
        account.settled += EVERY * periods;
        if account.reports == 0 {
            account.suppressed += 1;
            return None;
        }
        account.reports -= 1;
        Some(std::mem::take(&mut account.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a flood of slow reads makes a few lines, and the next one says how many were left
    /// out.
    #[tokio::test(start_paused = true)]
    async fn a_flood_of_slow_reads_makes_a_few_lines() {
        let slow = SlowReads::new(Some(Duration::from_secs(1)));
        let reported = |count: usize| (0..count).filter_map(|_| slow.report()).collect::<Vec<_>>();
        assert_eq!(reported(1000), [0; 5]);
        tokio::time::advance(EVERY).await;
        assert_eq!(reported(1000), [995]);
        tokio::time::advance(EVERY * 100).await;
        assert_eq!(reported(7), [999, 0, 0, 0, 0]);
        assert_eq!(slow.account.lock().unwrap().suppressed, 2);
    }

    #[test]
    fn without_a_threshold_no_read_is_slow() {
        assert!(!SlowReads::new(None).is_slow(Duration::MAX));
        let slow = SlowReads::new(Some(Duration::from_secs(1)));
        assert!(slow.is_slow(Duration::from_secs(1)));
        assert!(!slow.is_slow(Duration::from_millis(999)));
    }
}
