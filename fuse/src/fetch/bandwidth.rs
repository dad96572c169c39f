//! A limit of bytes per second for what nobody waits for and no start is known to read.

use std::num::NonZeroU64;
use std::sync::PoisonError;
use std::time::Duration;

use crate::sync::Mutex;
use crate::sync::time::{self, Instant};

/// Lets so many bytes per second through, of all layers of a node.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    bytes_per_second: Option<NonZeroU64>,
    /// When those let through before are paid for.
    free: Mutex<Option<Instant>>,
}

impl Bandwidth {
    /// Without a limit, everything goes at once.
    pub(crate) fn new(bytes_per_second: Option<NonZeroU64>) -> Self {
        Self {
            bytes_per_second,
            free: Mutex::default(),
        }
    }

    /// Waits until those before have had their time.
    pub(super) async fn take(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else {
            return;
        };
        let at = {
            let now = Instant::now();
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let at = free.map_or(now, |free| free.max(now));
            *free = Some(at + Duration::from_secs_f64(bytes as f64 / rate.get() as f64));
            at
        };
        time::sleep_until(at).await;
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Promise: over any time, no more than the limit and one request goes through, and time in which
    /// nobody asked is not made up for.
    #[tokio::test(start_paused = true)]
    async fn bytes_go_at_the_limit() {
        let bandwidth = Bandwidth::new(NonZeroU64::new(1_000_000));
        tokio::time::sleep(Duration::from_mins(1)).await;
        let begun = Instant::now();
        for _ in 0..11 {
            bandwidth.take(500_000).await;
        }
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
    }
}
