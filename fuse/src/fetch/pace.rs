//! Whether readers of this node wait for the network, so that the background lets them go first.

use std::sync::Arc;
use std::time::Duration;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::time::Instant;

/// When somebody last waited for bytes, whatever the layer. One for all layers of a node.
#[derive(Debug)]
pub(crate) struct Pace {
    began: Instant,
    /// Milliseconds between `began` and the latest moment at which somebody waited.
    latest: AtomicU64,
    waiting: AtomicUsize,
}

/// Somebody waits for as long as this lives.
#[derive(Debug)]
pub(crate) struct Demand(Arc<Pace>);

impl Pace {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            latest: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Notes that a reader waits, until what is returned is dropped.
    pub(crate) fn demand(self: &Arc<Self>) -> Demand {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        self.touch();
        Demand(self.clone())
    }

    /// Notes that a reader waits now.
    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.latest.fetch_max(now, Ordering::AcqRel);
    }

    /// For how long nobody has waited; zero while somebody does.
    pub(crate) fn quiet(&self) -> Duration {
        if self.waiting.load(Ordering::Acquire) > 0 {
            return Duration::ZERO;
        }
        let latest = Duration::from_millis(self.latest.load(Ordering::Acquire));
        self.began.elapsed().saturating_sub(latest)
    }
}

impl Drop for Demand {
    fn drop(&mut self) {
        self.0.touch();
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_quiet_only_after_the_last_reader_was_answered() {
        let pace = Arc::new(Pace::new());
        let (first, second) = (pace.demand(), pace.demand());
        tokio::time::advance(Duration::from_secs(5)).await;
        drop(first);
        assert_eq!(pace.quiet(), Duration::ZERO, "one still waits");
        drop(second);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(pace.quiet(), Duration::from_secs(3));
        pace.touch();
        assert_eq!(pace.quiet(), Duration::ZERO);
    }
}
