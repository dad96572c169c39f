//! Time and chance, as seams that tests replace.

use std::fmt::Debug;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::BoxFuture;

/// What the client knows of time and chance.
///
/// Tests pass a clock of their own, so that expiry and back-off are exact and cost no waiting.
pub trait Clock: Debug + Send + Sync {
    /// The wall-clock time: what dates on the wire are compared with where their sender does not say
    /// what time it is there.
    fn now(&self) -> SystemTime;

    /// The time since some beginning, which no step of the wall clock changes. Tokens, redirects and
    /// everything that is remembered for a while live by it.
    fn uptime(&self) -> Duration;

    /// Waits for `delay` before a retry.
    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()>;

    /// A number in `[0, 1)`, uniformly distributed, for jitter.
    fn fraction(&self) -> f64;
}

/// The system's clock and its random numbers.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn uptime(&self) -> Duration {
        static BEGINNING: OnceLock<Instant> = OnceLock::new();
        BEGINNING.get_or_init(Instant::now).elapsed()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(delay))
    }

    fn fraction(&self) -> f64 {
        // Every `RandomState` has other keys, so the hash of nothing is a fresh random number;
        // its upper 53 bits are what an f64 holds exactly.
        let bits = RandomState::new().hash_one(()) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_differ_and_stay_below_one() {
        let drawn: Vec<f64> = (0..100).map(|_| SystemClock.fraction()).collect();
        assert!(drawn.iter().all(|f| (0.0..1.0).contains(f)), "{drawn:?}");
        assert!(
            drawn
                .windows(2)
                .any(|pair| (pair[0] - pair[1]).abs() > 0.01),
            "{drawn:?}"
        );
    }
}
