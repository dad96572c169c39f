//! When and how often a failed request is repeated.
//!
//! Three things bound it: attempts of one call, the deadline of the call, and a budget shared by
//! all calls to a registry, so that a registry in trouble sees a tenth more requests, not six
//! times as many.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use crate::calendar;
use crate::clock::Clock;

/// Shortest wait a registry may ask for: below it, a retry only adds to the load.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);

/// Longest wait a registry may ask for: a read of a container waits no longer than this at all.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Retries that may be spent at once; enough for every call of one start-up to be unlucky once
/// (8 connections, 2 retries each), and refilled by time and by success.
const BUDGET_MAX: f64 = 16.0;

/// Share of a retry that each successful call earns: retries stay within 10 % of the requests.
const BUDGET_PER_SUCCESS: f64 = 0.1;

/// Retries that come back each second, so that one caller alone is not starved after an outage.
const BUDGET_PER_SECOND: f64 = 0.5;

/// How often and how fast one call is repeated.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Times a call is tried at most, the first time included; at least 1.
    pub attempts_max: u32,
    /// The wait before the second attempt, before jitter; it doubles with every further one.
    pub delay_min: Duration,
    /// The longest wait between two attempts that the registry did not ask for.
    pub delay_max: Duration,
}

impl Default for RetryPolicy {
    /// Six attempts over about 200 ms, 400 ms, … 3.2 s: a registry's restart is outlived, and a
    /// read with a deadline of 30 s still gets its error in time.
    fn default() -> Self {
        Self {
            attempts_max: 6,
            delay_min: Duration::from_millis(200),
            delay_max: Duration::from_secs(5),
        }
    }
}

impl RetryPolicy {
    /// The wait after the `failed`-th failure (from 1), given what the registry asked for.
    ///
    /// Half of it is fixed and half is chance, so that nodes that failed together do not come
    /// back together.
    pub fn delay(&self, failed: u32, asked: Option<Duration>, fraction: f64) -> Duration {
        if let Some(asked) = asked {
            let jitter = self.delay_min.mul_f64(fraction);
            return (asked + jitter).clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX);
        }
        let doublings = failed.saturating_sub(1).min(16);
        let whole = self
            .delay_min
            .saturating_mul(1 << doublings)
            .min(self.delay_max);
        whole.mul_f64(0.5 + 0.5 * fraction)
    }
}

/// Reads a `Retry-After` header, seconds or a date, and clamps it to what is bearable.
///
/// `None` if it is neither; a date in the past asks for the shortest wait.
pub fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let asked = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs)
    } else {
        calendar::http_date(text)?
            .duration_since(now)
            .unwrap_or_default()
    };
    Some(asked.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
}

/// What may still be spent on retries at one registry.
#[derive(Debug)]
pub(crate) struct Budget(Mutex<Account>);

#[derive(Debug)]
struct Account {
    retries: f64,
    /// When time was last credited, by the client's uptime.
    settled: Duration,
}

impl Budget {
    pub(crate) fn new(clock: &dyn Clock) -> Self {
        Self(Mutex::new(Account {
            retries: BUDGET_MAX,
            settled: clock.uptime(),
        }))
    }

    /// Earns for a call that succeeded.
    pub(crate) fn earn(&self) {
        let mut account = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        account.retries = (account.retries + BUDGET_PER_SUCCESS).min(BUDGET_MAX);
    }

    /// Pays for one retry; `false` if there is nothing left to pay with.
    pub(crate) fn pay(&self, now: Duration) -> bool {
        let mut account = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let seconds = now.saturating_sub(account.settled).as_secs_f64();
        account.retries = (account.retries + seconds * BUDGET_PER_SECOND).min(BUDGET_MAX);
        account.settled = now;
        if account.retries < 1.0 {
            return false;
        }
        account.retries -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    #[test]
    fn delays_double_up_to_the_limit_and_keep_half_for_chance() {
        let policy = RetryPolicy::default();
        let delays =
            |fraction| [1, 2, 3, 9, 99].map(|n| policy.delay(n, None, fraction).as_millis());
        assert_eq!(delays(0.0), [100, 200, 400, 2_500, 2_500]);
        assert_eq!(delays(0.5), [150, 300, 600, 3_750, 3_750]);
    }

    #[test]
    fn what_the_registry_asks_for_is_kept_within_reason() {
        let now = calendar::http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (text, seconds) in [
            ("7", Some(7.0)),
            (" 7 ", Some(7.0)),
            ("0", Some(0.1)),
            ("86400", Some(30.0)),
            ("99999999999999999999999", Some(30.0)),
            ("Sun, 06 Nov 1994 08:49:42 GMT", Some(5.0)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0.1)),
            ("Sun, 06 Nov 2094 08:49:00 GMT", Some(30.0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let found = retry_after(text, now).map(|delay| delay.as_secs_f64());
            assert_eq!(found, seconds, "{text}");
        }
        let policy = RetryPolicy::default();
        let delay = policy.delay(1, Some(Duration::from_secs(7)), 0.5);
        assert_eq!(delay, Duration::from_millis(7_100));
        assert_eq!(policy.delay(1, Some(RETRY_AFTER_MAX), 0.9), RETRY_AFTER_MAX);
    }

    /// A thousand failing calls may retry sixteen times in all, and then a tenth of successes.
    #[test]
    fn the_budget_bounds_the_amplification() {
        let budget = Budget::new(&SystemClock);
        let now = SystemClock.uptime();
        let paid = (0..1_000).filter(|_| budget.pay(now)).count();
        assert_eq!(paid, 16);
        for _ in 0..21 {
            budget.earn();
        }
        assert!(budget.pay(now) && budget.pay(now) && !budget.pay(now));
        let later = now + Duration::from_secs(4);
        assert!(budget.pay(later) && budget.pay(later) && !budget.pay(later));
    }
}
