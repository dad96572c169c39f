//! One run of neighbouring chunks, from the first try to the last waiter's answer.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::{debug, warn};

use super::decode::open_frame;
use super::{FetchError, Fetcher, Landed, Priority, Tracked};
use crate::source::{Delivery, ask, no_answer};
use crate::store::{ChunkState, Published};

/// First pause after all sources failed; doubled each time, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// Longest pause between two rounds: an application waits, so the registry's return must be seen
/// soon; six rounds per default deadline bound what a dead registry is asked.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// One source may take this part of the deadline before the next one is asked, or the same again
/// on a new connection.
const ATTEMPTS_PER_DEADLINE: u32 = 3;

/// Chunks that fly together. Dropping it lands what is left as failed, so no waiter is forgotten.
pub(super) struct Run {
    fetcher: Arc<Fetcher>,
    /// Rows not landed yet, ascending.
    rows: Vec<usize>,
    priority: Priority,
    started: Instant,
    /// Who failed last, and how.
    last_failure: Option<(String, String)>,
    /// Who was last waited for in vain. Apart, because silence hides what failures say.
    last_silence: Option<(String, String)>,
}

impl Run {
    pub(super) fn new(fetcher: Arc<Fetcher>, rows: Range<usize>, priority: Priority) -> Self {
        Self {
            fetcher,
            rows: rows.collect(),
            priority,
            started: Instant::now(),
            last_failure: None,
            last_silence: None,
        }
    }

    /// Lands every chunk of the run, at the deadline at the latest.
    pub(super) async fn fly(mut self) {
        let deadline = self.started + self.fetcher.deadline;
        self.verify_claims().await;
        if timeout_at(deadline, self.fetch(deadline)).await.is_err() {
            self.give_up();
        }
    }

    /// Lands the chunks that a former run of the daemon left in the store, if they are intact.
    async fn verify_claims(&mut self) {
        let is_claimed =
            |&row: &usize| self.fetcher.layer.presence().state(row) == ChunkState::Claimed;
        let claimed: Vec<_> = self.rows.iter().copied().filter(is_claimed).collect();
        for row in claimed {
            let layer = self.fetcher.layer.clone();
            let verify = move || {
                layer
                    .index()
                    .chunk(row)
                    .is_some_and(|c| layer.verify(row, &c))
            };
            match tokio::task::spawn_blocking(verify).await {
                Ok(true) => self.land(row, Landed::Stored),
                Ok(false) => warn!(
                    layer = %self.fetcher.blob(), chunk = row,
                    "a chunk in the store is damaged; fetching it again"
                ),
                Err(_) => return,
            }
        }
    }

    /// Asks the sources in order, round after round, until every chunk has landed.
    async fn fetch(&mut self, deadline: Instant) {
        let mut pause = PAUSE_MIN;
        while !self.rows.is_empty() {
            let mut retry_after = None;
            let sources = self.fetcher.sources.in_order();
            for tracked in &sources {
                // What another source delivered is not asked for again.
                for rows in neighbours(&self.rows) {
                    let wish = self.fetch_from(tracked, rows, deadline).await;
                    retry_after = retry_after.max(wish);
                }
                if self.rows.is_empty() {
                    return;
                }
            }
            if self.fetcher.sources.look_elsewhere(sources.len()).await {
                continue;
            }
            tokio::time::sleep(retry_after.unwrap_or_default().clamp(pause, PAUSE_MAX)).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Asks one source for the neighbours `rows`; says when it wants to be asked again.
    async fn fetch_from(
        &mut self,
        tracked: &Tracked,
        rows: Range<usize>,
        deadline: Instant,
    ) -> Option<Duration> {
        let index = self.fetcher.layer.index();
        let (first, last) = (index.chunk(rows.start)?, index.chunk(rows.end - 1)?);
        let range = first.stored_range().start..last.stored_range().end;
        let attempt = self.fetcher.deadline / ATTEMPTS_PER_DEADLINE;
        let begun;
        let answer = {
            let permits = match self.priority {
                Priority::Demand => &self.fetcher.demand,
                Priority::Background => &self.fetcher.background,
            };
            let _permit = permits.acquire().await.ok()?;
            begun = Instant::now();
            let until = deadline.min(begun + attempt);
            timeout_at(until, ask(tracked.source.as_ref(), range)).await
        };
        tracked.asked();
        let (failure, retry_after) = match answer {
            Ok(Ok(delivery)) => {
                self.open(tracked, rows, delivery).await;
                return None;
            }
            Ok(Err(failure)) => (failure.reason, failure.retry_after),
            Err(_) => {
                self.silent(tracked, begun.elapsed(), attempt);
                return None;
            }
        };
        self.failed(tracked, failure);
        retry_after
    }

    /// Verifies, decompresses and publishes the chunks of one answer.
    async fn open(&mut self, tracked: &Tracked, rows: Range<usize>, delivery: Delivery) {
        let mut rest = delivery.bytes.clone();
        for row in rows {
            let Some(chunk) = self.fetcher.layer.index().chunk(row) else {
                return;
            };
            let frame = rest.split_to(chunk.stored_len as usize);
            let layer = self.fetcher.layer.clone();
            let opened = tokio::task::spawn_blocking(move || {
                let content = open_frame(&chunk, frame)?;
                let published = layer.publish(row, &chunk, &content);
                Ok::<_, String>((published, content))
            });
            match opened.await {
                Ok(Ok((published, content))) => {
                    tracked.delivered(chunk.stored_len.into());
                    let landed = match published {
                        Published::Stored => Landed::Stored,
                        Published::NotStored => Landed::Held(Arc::new(content)),
                    };
                    self.land(row, landed);
                }
                Ok(Err(lie)) => {
                    delivery.distrust();
                    self.failed(tracked, format!("chunk {row} is wrong: {lie}"));
                }
                Err(_) => return,
            }
        }
    }

    fn land(&mut self, row: usize, landed: Landed) {
        self.rows.retain(|&other| other != row);
        match &landed {
            Landed::Stored => {
                self.fetcher.recent.clear();
                if self.fetcher.layer.presence().all_verified() {
                    self.fetcher.completed.notify_one();
                }
            }
            Landed::Held(content) => {
                self.fetcher
                    .recent
                    .put(self.fetcher.id, row, content.clone());
            }
            Landed::Failed(_) => {}
        }
        self.fetcher.lock_flights().land(row, landed);
    }

    fn failed(&mut self, tracked: &Tracked, reason: String) {
        let source = tracked.source.name();
        debug!(layer = %self.fetcher.blob(), source, reason, "trying the next source");
        tracked.failed(reason.clone());
        self.last_failure = Some((source.to_owned(), reason));
    }

    /// Notes that a source did not answer in `waited`, of the time `attempt` each has.
    fn silent(&mut self, tracked: &Tracked, waited: Duration, attempt: Duration) {
        let source = tracked.source.as_ref();
        let said_something = self.last_failure.is_some() || self.last_silence.is_some();
        if waited < attempt && said_something {
            // The read's deadline cut it off: that says nothing of the source.
            return;
        }
        // Whole milliseconds: a person reads it.
        let waited = Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        let (name, reason) = (
            source.name().to_owned(),
            no_answer(source, waited.min(attempt)),
        );
        tracked.failed(reason.clone());
        self.last_silence = Some((name, reason));
    }

    /// Answers every waiter with the reason, and logs it once.
    fn give_up(&mut self) {
        let reason = match (self.last_failure.take(), self.last_silence.take()) {
            (Some((name, failure)), Some((other, silence))) => {
                (name, format!("{failure}; {other}: {silence}"))
            }
            (Some(reason), None) | (None, Some(reason)) => reason,
            (None, None) if self.fetcher.sources.all().is_empty() => (
                "no source".to_owned(),
                "none is known for this layer".to_owned(),
            ),
            (None, None) => (
                "this node".to_owned(),
                "the bytes came and were not verified in time; is it overloaded?".to_owned(),
            ),
        };
        let (source_name, reason) = reason;
        let Some(&chunk) = self.rows.first() else {
            return;
        };
        let error = Arc::new(FetchError::Deadline {
            layer: self.fetcher.blob(),
            chunk,
            waited: self.started.elapsed(),
            source_name: source_name.clone(),
            reason: reason.clone(),
        });
        warn!(
            layer = %self.fetcher.blob(), chunk, chunks = self.rows.len(), source = source_name,
            cause = reason, waited = ?self.started.elapsed(),
            "a read fails: its bytes did not arrive in time"
        );
        for row in std::mem::take(&mut self.rows) {
            self.land(row, Landed::Failed(error.clone()));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for row in std::mem::take(&mut self.rows) {
            self.land(row, Landed::Failed(Arc::new(FetchError::ShutDown)));
        }
    }
}

/// Groups ascending rows that follow each other.
fn neighbours(rows: &[usize]) -> Vec<Range<usize>> {
    let groups = rows.chunk_by(|a, b| a + 1 == *b);
    groups
        .filter_map(|group| Some(*group.first()?..*group.last()? + 1))
        .collect()
}
