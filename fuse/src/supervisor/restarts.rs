//! How long to wait before the next daemon.
//!
//! Whoever kills a daemon wants another one. One that fails at its start fails again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A daemon that served that long did not fail at its start, and the next one begins at once. So does
/// the one after a daemon that had begun to serve and was ended from outside.
const SERVED: Duration = Duration::from_millis(100);

/// Pauses after daemons that did not, one after the other. Containers wait meanwhile.
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
];

/// So many of them within [`WINDOW`], and none that served between them, are no accident any more.
const DEATHS_MAX: usize = 20;

/// See [`DEATHS_MAX`].
const WINDOW: Duration = Duration::from_mins(1);

/// The pause from then on: an operator has to do something.
const PAUSE_LONGEST: Duration = Duration::from_secs(10);

/// What daemons before came to.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    in_a_row: usize,
    early: VecDeque<Instant>,
}

/// When to start the next daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause {
    pub(super) length: Duration,
    /// Whether the daemon keeps dying, and an operator should know.
    pub(super) is_loop: bool,
}

impl Restarts {
    /// Notes that a daemon ended at `now`, after it had served for `served`, by its own fault or not.
    pub(super) fn died(&mut self, now: Instant, served: Option<Duration>, failed: bool) -> Pause {
        if served.is_some_and(|served| !failed || served >= SERVED) {
            self.in_a_row = 0;
            self.early.clear();
            return Pause {
                length: Duration::ZERO,
                is_loop: false,
            };
        }
        let length = PAUSES[self.in_a_row.min(PAUSES.len() - 1)];
        self.in_a_row += 1;
        self.early.push_back(now);
        while self.early.len() > DEATHS_MAX {
            self.early.pop_front();
        }
        let recent = |first: &Instant| now.duration_since(*first) < WINDOW;
        let is_loop = self.early.len() == DEATHS_MAX && self.early.front().is_some_and(recent);
        Pause {
            length: if is_loop { PAUSE_LONGEST } else { length },
            is_loop,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: what dies at its start is restarted at once, then more and more slowly, and a loop
    /// is told; what had served is restarted at once, however often.
    #[test]
    fn pauses_grow_only_with_deaths_at_the_start() {
        let mut restarts = Restarts::default();
        let mut now = Instant::now();
        let millis = |restarts: &mut Restarts, now, served| {
            let pause = restarts.died(now, served, true);
            (pause.length.as_millis(), pause.is_loop)
        };
        for _ in 0..100 {
            assert_eq!(millis(&mut restarts, now, Some(SERVED)), (0, false));
        }
        for _ in 0..100 {
            let killed = restarts.died(now, Some(Duration::ZERO), false);
            assert_eq!((killed.length, killed.is_loop), (Duration::ZERO, false));
        }
        for expected in [0, 10, 100, 1000, 1000] {
            assert_eq!(millis(&mut restarts, now, None), (expected, false));
        }
        assert_eq!(millis(&mut restarts, now, Some(SERVED)), (0, false));
        for expected in [0, 10] {
            assert_eq!(
                millis(&mut restarts, now, Some(SERVED / 2)),
                (expected, false)
            );
        }
        for _ in 2..19 {
            assert!(!restarts.died(now, None, true).is_loop);
        }
        assert_eq!(millis(&mut restarts, now, None), (10_000, true));
        now += WINDOW;
        assert_eq!(millis(&mut restarts, now, None), (1000, false));
    }
}
