//! Durations, counted by how long they are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the classes, seconds; longer ones are a class of their own. From a read of the
/// page cache to the default deadline of a read, two or three to each power of ten.
pub const BOUNDS_SECONDS: [f64; 16] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
    2.5, 10.0, 30.0,
];

/// The same, nanoseconds.
const BOUNDS_NANOS: [u64; BOUNDS_SECONDS.len()] = {
    let mut nanos = [0; BOUNDS_SECONDS.len()];
    let mut i = 0;
    while i < nanos.len() {
        // Rounded: 0.000_25 is not a sum of powers of two.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the bounds are positive and at most a minute"
        )]
        {
            nanos[i] = (BOUNDS_SECONDS[i] * 1e9 + 0.5) as u64;
        }
        i += 1;
    }
    nanos
};

/// Durations of one kind, with their sum.
#[derive(Debug, Default)]
pub struct Durations {
    classes: [AtomicU64; BOUNDS_SECONDS.len() + 1],
    nanos: AtomicU64,
}

/// What was measured up to a moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// How many fell into each class: above the bound before, up to and with its own. The last
    /// class has no bound.
    pub classes: [u64; BOUNDS_SECONDS.len() + 1],
    /// Their sum, seconds.
    pub seconds: f64,
}

impl Measured {
    /// How many in all.
    pub fn count(&self) -> u64 {
        self.classes.iter().sum()
    }
}

impl Durations {
    /// One more.
    pub fn add(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let class = BOUNDS_NANOS.iter().position(|bound| nanos <= *bound);
        let class = class.unwrap_or(BOUNDS_NANOS.len());
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// All so far. Those that are added meanwhile may be in the sum and not in their class yet.
    pub fn measured(&self) -> Measured {
        Measured {
            classes: std::array::from_fn(|i| self.classes[i].load(Ordering::Relaxed)),
            seconds: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a duration counts in the first class whose bound it does not exceed.
    #[test]
    fn durations_fall_into_their_class() {
        let durations = Durations::default();
        for (i, bound) in BOUNDS_NANOS.iter().enumerate() {
            durations.add(Duration::from_nanos(*bound));
            durations.add(Duration::from_nanos(bound + 1));
            let measured = durations.measured();
            assert!(measured.classes[i] >= 1, "{bound} ns");
            assert!(measured.classes[i + 1] >= 1, "{bound} ns and one more");
        }
        durations.add(Duration::from_hours(1));
        let measured = durations.measured();
        assert_eq!(measured.count(), 2 * BOUNDS_NANOS.len() as u64 + 1);
        assert_eq!(measured.classes[BOUNDS_NANOS.len()], 2);
        assert!(measured.seconds > 3600.0);
    }

    #[test]
    fn bounds_ascend() {
        assert!(BOUNDS_NANOS.is_sorted_by(|a, b| a < b));
        assert_eq!(BOUNDS_NANOS[2], 250_000);
    }
}
