//! Fetching what nobody waits for: a part of a layer at a time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{BACKGROUND_REQUESTS, FetchError, Fetcher, Landing, Priority};
use crate::store::ChunkState;
use crate::sync::atomic::Ordering;
use crate::sync::time::{Instant, sleep};

/// How long nobody may have waited for the network before the next polite request.
const GAP: Duration = Duration::from_secs(1);

/// After so long without a gap one polite request is made all the same, or a busy node would never be
/// done: 0.2 MB/s at most.
const GAP_WAITED_MAX: Duration = Duration::from_secs(5);

/// How often it is looked for a gap.
const GAP_LOOK: Duration = Duration::from_millis(100);

/// Longest rest between two polite requests.
const REST_MAX: Duration = Duration::from_secs(5);

impl Fetcher {
    /// Fetches every chunk that is not there yet.
    pub(crate) async fn fetch_all(self: &Arc<Self>) -> Result<(), Arc<FetchError>> {
        // What comes while another write finds out whether a full disk has room again is kept the next time.
        for _ in 0..2 {
            self.fetch_some(u64::MAX).await?;
            if self.layer.presence().all_verified() {
                return Ok(());
            }
        }
        Err(Arc::new(FetchError::NoRoom { layer: self.blob() }))
    }

    /// Fetches the first chunks that are not there yet, about `bytes` of the blob, as fast as a
    /// background may. Ends when the layer is removed.
    pub(crate) async fn fetch_some(
        self: &Arc<Self>,
        mut bytes: u64,
    ) -> Result<(), Arc<FetchError>> {
        let mut waiting: VecDeque<Landing> = VecDeque::new();
        let mut next = 0;
        loop {
            // One more than can be in flight keeps the link busy, and memory bounded.
            let first = self.first_missing(next).filter(|_| bytes > 0);
            if let Some(first) = first.filter(|_| waiting.len() <= BACKGROUND_REQUESTS) {
                self.still_wanted()?;
                let end = self.batch_end(first, self.part_bytes());
                bytes = bytes.saturating_sub(self.stored_bytes(first, end));
                let landing = self.request(first..end, Priority::Background);
                waiting.push_back(landing);
                next = end;
                continue;
            }
            let Some(landing) = waiting.pop_front() else {
                return Ok(());
            };
            landing.stored().await?;
        }
    }

    /// The same one small request at a time, when no reader of the node waits, and at half the speed
    /// of the link at most.
    pub(crate) async fn fetch_politely(
        self: &Arc<Self>,
        mut bytes: u64,
    ) -> Result<(), Arc<FetchError>> {
        let mut next = 0;
        while let Some(first) = self.first_missing(next).filter(|_| bytes > 0) {
            self.gap().await;
            self.still_wanted()?;
            let end = self.batch_end(first, self.part_bytes());
            bytes = bytes.saturating_sub(self.stored_bytes(first, end));
            let began = Instant::now();
            let landing = self.request(first..end, Priority::Background);
            landing.stored().await?;
            next = end;
            sleep(began.elapsed().min(REST_MAX)).await;
        }
        Ok(())
    }

    /// From now on nothing is fetched but what readers ask for.
    pub(crate) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// Looks at the whole layer again, though no chunk arrives.
    pub(crate) fn complete_again(&self) {
        self.completed.notify_one();
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    fn still_wanted(&self) -> Result<(), Arc<FetchError>> {
        if self.is_removed() {
            return Err(Arc::new(FetchError::Removed { layer: self.blob() }));
        }
        Ok(())
    }

    async fn gap(&self) {
        let until = Instant::now() + GAP_WAITED_MAX;
        while self.context.pace.quiet() < GAP && Instant::now() < until {
            sleep(GAP_LOOK).await;
        }
    }

    fn first_missing(&self, from: usize) -> Option<usize> {
        let presence = self.layer.presence();
        (from..self.layer.index().chunk_count())
            .find(|&row| presence.state(row) != ChunkState::Verified)
    }

    fn stored_bytes(&self, first: usize, end: usize) -> u64 {
        let chunks = (first..end).filter_map(|row| self.layer.index().chunk(row));
        chunks.map(|chunk| u64::from(chunk.stored_len)).sum()
    }
}
