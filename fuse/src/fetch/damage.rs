//! Chunks that a disk damaged: counted each, told once in a while.

use std::sync::PoisonError;
use std::time::Duration;

use tracing::warn;

use super::Fetcher;
use crate::sync::time::Instant;

/// Least time between two lines about one layer: a disk that loses a file would fill the log with one for
/// each of its chunks.
const TOLD_EVERY: Duration = Duration::from_mins(1);

/// What was told of a layer's damage.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// Chunks that were counted.
    counted: u64,
    /// Of them, those that were told.
    told: u64,
    last: Option<Instant>,
}

impl Fetcher {
    /// Counts and tells what was found damaged since the last call.
    pub(crate) fn tell_damage(&self) {
        let found = self.layer.damaged();
        let mut damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in damage.counted..found {
            self.context.counts.damage();
        }
        damage.counted = damage.counted.max(found);
        let chunks = damage.counted - damage.told;
        if chunks == 0 || damage.last.is_some_and(|last| last.elapsed() < TOLD_EVERY) {
            return;
        }
        damage.told = damage.counted;
        damage.last = Some(Instant::now());
        warn!(
            layer = %self.blob(), chunks,
            "a chunk in the store is damaged; fetching it again"
        );
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;
    use crate::fetch::tests::Scene;

    /// Promise: each damaged chunk is counted, and a minute's are told in one line.
    #[tokio::test(start_paused = true)]
    async fn damage_is_counted_at_once_and_told_once_a_minute() {
        let scene = Scene::new();
        let told = || {
            let damage = scene.fetcher.damage.lock().unwrap();
            (damage.counted, damage.told)
        };
        let expected = [(1, 1), (2, 1), (3, 1), (4, 4)];
        for (number, expected) in expected.into_iter().enumerate() {
            if number == 3 {
                tokio::time::sleep(TOLD_EVERY).await;
            }
            scene.fetcher.layer.note_damage();
            scene.fetcher.tell_damage();
            assert_eq!(told(), expected);
        }
        assert_eq!(scene.fetcher.context.counts.damaged(), 4);
    }
}
