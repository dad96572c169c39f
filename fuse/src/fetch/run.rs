//! One run of neighbouring chunks, from the first try to the last waiter's answer.

use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use larder_registry::Origin;
use tokio::sync::SemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::debug;

use super::arriving::{Arriving, Frame};
use super::decode::open_frame;
use super::flight::Urgency;
use super::lane::{Asked, Lane};
use super::outage::{PAUSE_MAX, PAUSE_MIN, longer};
use super::sources::Door;
use super::spent::Spent;
use super::troubles::Troubles;
use super::{Failed, FetchError, Fetcher, Landed, Priority, Tracked};
use crate::counts::{Delay, Outcome};
use crate::source::{Delivery, FailureKind, SourceFailure, ask, no_answer};
use crate::store::{Checked, ChunkState, Published};
use crate::sync::time::{self, Instant, timeout};
use crate::sync::{Mutex, MutexGuard, spawn_blocking};

/// One source may take this part of the deadline before the next one is asked, or the same again
/// on a new connection.
const ATTEMPTS_PER_DEADLINE: u32 = 3;

/// Chunks that fly together. Dropping it lands what is left as failed, so no waiter is forgotten.
pub(super) struct Run {
    fetcher: Arc<Fetcher>,
    priority: Priority,
    urgency: Arc<Urgency>,
    started: Instant,
    /// Rows not landed yet, ascending.
    rows: Mutex<Vec<usize>>,
    troubles: Mutex<Troubles>,
    spent: Mutex<Spent>,
}

/// What a round of asking all sources came to.
struct Round {
    /// When one of them wants to be asked again.
    retry_after: Option<Duration>,
    /// Whether one refused our credentials.
    refused: bool,
    /// Whether asking again soon may help.
    may_pass: bool,
    /// When one that says no is asked a second time.
    second_look: Option<Instant>,
}

impl Run {
    /// `urgency` is that of the request that the run belongs to, and of who joins it.
    pub(super) fn new(
        fetcher: Arc<Fetcher>,
        rows: Range<usize>,
        priority: Priority,
        urgency: Arc<Urgency>,
    ) -> Self {
        Self {
            fetcher,
            priority,
            urgency,
            started: Instant::now(),
            rows: Mutex::new(rows.collect()),
            troubles: Mutex::default(),
            spent: Mutex::default(),
        }
    }

    /// Lands every chunk of the run, and answers who waits at their deadlines at the latest.
    pub(super) async fn fly(self) {
        let _waits = self
            .urgency
            .is_awaited()
            .then(|| self.fetcher.context.pace.demand());
        let arrive = async {
            self.verify_claims().await;
            self.keep_held().await;
            self.fetch().await;
        };
        tokio::select! {
            biased;
            () = arrive => {}
            () = self.keep_time() => {}
        }
    }

    fn rows(&self) -> Vec<usize> {
        lock(&self.rows).clone()
    }

    /// Answers each waiter at its deadline; ends when nobody waits any more.
    async fn keep_time(&self) {
        loop {
            let next = self.fetcher.lock_flights().deadline(&self.rows());
            let Some(next) = next else { return };
            time::sleep_until(next).await;
            self.expire(next);
        }
    }

    /// Lands the chunks that are in the store, if they are intact.
    async fn verify_claims(&self) {
        for row in self.rows() {
            match self.fetcher.layer.presence().state(row) {
                ChunkState::Absent => continue,
                // A reader has just verified it again.
                ChunkState::Verified => {
                    self.land(row, Landed::Stored);
                    continue;
                }
                ChunkState::Claimed => {}
            }
            let layer = self.fetcher.layer.clone();
            let verify = move || Some(layer.verify(row, &layer.index().chunk(row)?));
            let begun = Instant::now();
            let verified = spawn_blocking(verify).await;
            self.spent_on(Delay::Verification, begun.elapsed());
            match verified {
                Ok(Some(Checked::Intact)) => self.land(row, Landed::Stored),
                Ok(Some(Checked::Damaged)) => {
                    debug!(
                        layer = %self.fetcher.blob(), chunk = row,
                        "a chunk is not what it seemed; fetching it"
                    );
                    self.fetcher.tell_damage();
                }
                Ok(Some(Checked::Evicted) | None) => {}
                Err(_) => return,
            }
        }
    }

    /// Lands the chunks that came while the store had no room and are in memory: now it may have.
    async fn keep_held(&self) {
        let recent = &self.fetcher.context.recent;
        for row in self.rows() {
            let Some(content) = recent.get(&self.fetcher.id, row) else {
                continue;
            };
            let layer = self.fetcher.layer.clone();
            let (bytes, is_awaited) = (content.clone(), self.urgency.is_awaited());
            let publish = move || {
                let chunk = layer.index().chunk(row)?;
                Some(layer.publish(row, &chunk, &bytes, is_awaited))
            };
            match spawn_blocking(publish).await {
                Ok(Some(Published::Stored)) => {
                    recent.forget(&self.fetcher.id, row);
                    self.land_stored(row);
                }
                Ok(Some(Published::NotStored)) => self.land(row, Landed::Held(content)),
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Asks the sources in order, round after round, until every chunk has landed or no source can
    /// be expected to change its mind.
    async fn fetch(&self) {
        let mut pause = PAUSE_MIN;
        let mut turn = None;
        while !self.rows().is_empty() {
            let changed = self.fetcher.sources.changed();
            let sources = self.fetcher.sources.in_order();
            let round = self.ask_all(&sources).await;
            if self.rows().is_empty() || self.fetcher.sources.look_elsewhere(sources.len()).await {
                continue;
            }
            if !round.may_pass {
                match round.second_look.filter(|_| !round.refused) {
                    Some(at) => time::sleep_until(at).await,
                    None => return self.refused(),
                }
                continue;
            }
            let outage = &self.fetcher.sources.outage;
            outage.failed(round.retry_after, turn.is_some());
            drop(turn.take());
            // Its own pauses, too: where others get what they ask for, there is no outage.
            let wish = round.retry_after.unwrap_or_default();
            let paused = Instant::now();
            let wait = async {
                time::sleep(wish.clamp(pause, PAUSE_MAX)).await;
                outage.turn().await
            };
            tokio::select! {
                mine = wait => turn = mine,
                () = changed => {}
            }
            pause = longer(pause);
            self.spent_on(Delay::Retry, paused.elapsed());
        }
    }

    async fn ask_all(&self, sources: &[Tracked]) -> Round {
        let mut round = Round {
            retry_after: None,
            refused: false,
            // Nobody is known yet, as in the first moments of a start.
            may_pass: sources.is_empty(),
            second_look: None,
        };
        for tracked in sources {
            // What another source delivered is not asked for again.
            for rows in neighbours(&self.rows()) {
                self.fetch_from(tracked, rows, &mut round).await;
            }
        }
        round
    }

    /// Asks one source for the neighbours `rows`, and notes in `round` what came of it.
    async fn fetch_from(&self, tracked: &Tracked, rows: Range<usize>, round: &mut Round) {
        let index = self.fetcher.layer.index();
        let ends = (index.chunk(rows.start), index.chunk(rows.end - 1));
        let (Some(first), Some(last)) = ends else {
            return;
        };
        let range = first.stored_range().start..last.stored_range().end;
        let lane = self.fetcher.context.lanes.to(tracked.source.link());
        let queued = Instant::now();
        let Some((asked, permit)) = self.admitted(&lane, range.end - range.start).await else {
            return;
        };
        self.spent_on(Delay::Queued, queued.elapsed());
        if let Door::Shut(failure, second_look) = tracked.door() {
            round.second_look = earlier(round.second_look, second_look);
            lock(&self.troubles).failed(tracked.source.name(), failure.kind, failure.reason);
            return;
        }
        tracing::debug!(
            index = %self.fetcher.id, chunk = rows.start, chunks = rows.len(), bytes = range.end - range.start,
            priority = ?self.priority, "asking for a part of a layer"
        );
        let (arriving, frames) = Arriving::new(&self.fetcher.layer, rows, range.start, asked);
        let asking = async {
            self.ask(tracked, range, arriving, round).await;
            drop(permit);
        };
        tokio::join!(asking, self.open_all(tracked, frames));
    }

    /// Waits for one's turn: readers for one of the layer's requests, everybody else for room on the link,
    /// unless a reader comes to wait meanwhile.
    async fn admitted(
        &self,
        lane: &Arc<Lane>,
        bytes: u64,
    ) -> Option<(Asked, Option<SemaphorePermit<'_>>)> {
        if !self.urgency.is_awaited() {
            let room = async {
                if self.priority == Priority::Background {
                    self.fetcher.context.bandwidth.take(bytes).await;
                }
                lane.admit(self.priority, bytes).await
            };
            tokio::select! {
                biased;
                () = self.urgency.awaited() => {}
                asked = room => return Some((asked, None)),
            }
        }
        let permit = self.fetcher.demand.acquire().await.ok()?;
        Some((lane.ask(), Some(permit)))
    }

    /// Asks `tracked` for `range`, hands on what comes, and notes in `round` what came of it.
    async fn ask(
        &self,
        tracked: &Tracked,
        range: Range<u64>,
        arriving: Arriving<'_>,
        round: &mut Round,
    ) {
        let attempt = self.fetcher.context.deadline / ATTEMPTS_PER_DEADLINE;
        lock(&self.spent).asked(tracked.source.name());
        lock(&self.troubles).asking(tracked);
        let answer = timeout(attempt, ask(tracked.source.as_ref(), range, &arriving)).await;
        lock(&self.troubles).answered();
        tracked.asked();
        let outcome = outcome(&answer);
        self.fetcher.context.counts.answered(outcome);
        let delay = match outcome {
            Outcome::Delivered | Outcome::Silent => Delay::Network,
            Outcome::Absent | Outcome::Refused | Outcome::Failed => Delay::Retry,
        };
        self.spent_on(delay, arriving.asked().elapsed());
        match answer {
            Ok(Ok(delivery)) => {
                arriving.finish(&delivery);
                round.may_pass = true;
            }
            Ok(Err(failure)) => {
                round.retry_after = round.retry_after.max(failure.retry_after);
                round.refused |= failure.kind == FailureKind::Refused;
                round.may_pass |= failure.kind == FailureKind::Passing;
                let second_look = tracked.failed_with(&failure, self.fetcher.context.deadline);
                round.second_look = earlier(round.second_look, second_look);
                self.tell(tracked, failure.kind, failure.reason);
            }
            Err(_) => {
                self.silent(tracked, attempt);
                round.may_pass = true;
            }
        }
    }

    /// Verifies, decompresses and publishes the chunks of one answer, in the order they come.
    async fn open_all(&self, tracked: &Tracked, mut frames: UnboundedReceiver<Frame>) {
        while let Some(frame) = frames.recv().await {
            if lock(&self.rows).contains(&frame.row) {
                self.open(tracked, frame).await;
            }
        }
    }

    async fn open(&self, tracked: &Tracked, frame: Frame) {
        let Frame {
            row,
            chunk,
            bytes,
            origin,
        } = frame;
        let layer = self.fetcher.layer.clone();
        let begun = Instant::now();
        let is_awaited = self.urgency.is_awaited();
        let opened = spawn_blocking(move || {
            let queued = begun.elapsed();
            let content = Arc::new(open_frame(&chunk, bytes)?);
            let verified = begun.elapsed().saturating_sub(queued);
            let published = layer.publish(row, &chunk, &content, is_awaited);
            if published == Published::Stored && is_awaited {
                // Or they would read and verify once more what is here.
                layer.keep(row, content.clone());
            }
            Ok::<_, String>((published, content, [queued, verified]))
        });
        let host = origin.as_ref().map(Origin::host);
        let counts = &self.fetcher.context.counts;
        match opened.await {
            Ok(Ok((published, content, [queued, verified]))) => {
                self.spent_on(Delay::Queued, queued);
                self.spent_on(Delay::Verification, verified);
                self.spent_on(
                    Delay::Disk,
                    begun.elapsed().saturating_sub(queued + verified),
                );
                tracked.delivered(host, chunk.stored_len.into());
                counts.fetched(tracked.source.name(), host, chunk.stored_len.into());
                self.fetcher.sources.outage.end();
                let landed = match published {
                    Published::Stored => Landed::Stored,
                    Published::NotStored => Landed::Held(content),
                };
                self.land(row, landed);
            }
            Ok(Err(lie)) => {
                lock(&self.troubles).lied();
                counts.rejected(tracked.source.name(), host);
                if let Some(origin) = origin {
                    origin.distrust();
                }
                let reason = format!("chunk {row} is wrong: {lie}");
                tracked.failed(reason.clone());
                self.tell(tracked, FailureKind::Passing, reason);
            }
            // The runtime ends.
            Err(_) => {}
        }
    }

    fn land(&self, row: usize, landed: Landed) {
        let recent = &self.fetcher.context.recent;
        match landed {
            Landed::Stored => {
                recent.clear();
                return self.land_stored(row);
            }
            Landed::Held(ref content) => recent.put(self.fetcher.id, row, content.clone()),
            Landed::Failed(_) => {}
        }
        self.answer(row, landed);
    }

    fn land_stored(&self, row: usize) {
        if self.fetcher.layer.presence().all_verified() {
            self.fetcher.completed.notify_one();
        }
        self.answer(row, Landed::Stored);
    }

    fn answer(&self, row: usize, landed: Landed) {
        self.note_if_slow(&[row]);
        lock(&self.rows).retain(|&other| other != row);
        self.fetcher.lock_flights().land(row, landed);
    }

    fn tell(&self, tracked: &Tracked, kind: FailureKind, reason: String) {
        let source = tracked.source.name();
        debug!(layer = %self.fetcher.blob(), source, reason, "trying the next source");
        lock(&self.troubles).failed(source, kind, reason);
    }

    /// Notes that a source did not answer in `waited`.
    fn silent(&self, tracked: &Tracked, waited: Duration) {
        let source = tracked.source.as_ref();
        // Whole milliseconds: a person reads it.
        let waited = Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        let reason = no_answer(source, waited);
        tracked.failed(reason.clone());
        lock(&self.troubles).silent(source.name(), reason);
    }

    /// Answers those whose deadline is `now` with the reason, and logs it once. The others of the
    /// same chunks go on waiting.
    fn expire(&self, now: Instant) {
        let rows = self.rows();
        let Some(&chunk) = rows.first() else { return };
        let waited = self.started.elapsed().min(self.fetcher.context.deadline);
        self.note_if_slow(&rows);
        let reasons = self.reasons();
        let error = Arc::new(FetchError::Deadline {
            layer: self.fetcher.blob(),
            chunk,
            waited,
            reasons: reasons.clone(),
            is_wrong: lock(&self.troubles).has_lied(),
        });
        let (mut awaited, mut failed) = (Vec::new(), 0);
        let mut flights = self.fetcher.lock_flights();
        for &row in &rows {
            let expired = flights.expire(row, now, &error);
            failed += usize::from(expired.fails_reader);
            awaited.extend(expired.goes_on.then_some(row));
        }
        drop(flights);
        *lock(&self.rows) = awaited;
        if failed > 0 {
            self.fetcher.tell_failed(Failed {
                what: "its bytes did not arrive in time",
                chunk: Some(chunk),
                chunks: Some(failed),
                cause: Some(reasons),
                waited: Some(waited),
            });
        } else {
            self.fails_nobody(&rows, &reasons);
        }
    }

    /// Notes that what nobody waits for did not come: a reader who wants it asks again.
    fn fails_nobody(&self, rows: &[usize], reasons: &str) {
        debug!(
            layer = %self.fetcher.blob(), chunks = rows.len(), priority = ?self.priority, cause = reasons,
            "what was fetched for nobody did not come"
        );
    }

    fn spent_on(&self, delay: Delay, time: Duration) {
        lock(&self.spent).on(delay, time);
    }

    /// Keeps where the time went for those who read `rows`, if it was long. Before they are told
    /// that the rows are there.
    fn note_if_slow(&self, rows: &[usize]) {
        if !self.fetcher.context.slow.is_slow(self.started.elapsed()) {
            return;
        }
        let mut spent = lock(&self.spent).clone();
        if let Some((tracked, waited)) = lock(&self.troubles).asked() {
            spent.asked(tracked.source.name());
            spent.on(Delay::Network, waited);
        }
        for &row in rows {
            self.fetcher.slow.note(row, spent.clone());
        }
    }

    /// Answers everybody: no source will deliver until somebody mends something.
    fn refused(&self) {
        let rows = self.rows();
        let Some(&chunk) = rows.first() else { return };
        let reasons = self.reasons();
        if self.urgency.is_awaited() {
            self.fetcher.tell_failed(Failed {
                what: "no source gives its bytes",
                chunk: Some(chunk),
                chunks: Some(rows.len()),
                cause: Some(reasons.clone()),
                waited: None,
            });
        } else {
            self.fails_nobody(&rows, &reasons);
        }
        let layer = self.fetcher.blob();
        let error = Arc::new(FetchError::Refused {
            layer,
            chunk,
            reasons,
        });
        for row in rows {
            self.land(row, Landed::Failed(error.clone()));
        }
    }

    /// Why nothing came, source by source.
    fn reasons(&self) -> String {
        let asked = {
            let troubles = lock(&self.troubles);
            // What the deadline cut off is told only if there is nothing else to tell.
            troubles.asked().filter(|_| troubles.is_empty())
        };
        if let Some((tracked, waited)) = asked {
            self.silent(&tracked, waited);
        }
        let troubles = lock(&self.troubles);
        if !troubles.is_empty() {
            return troubles.told();
        }
        if self.fetcher.sources.all().is_empty() {
            "no source is known for this layer".to_owned()
        } else {
            "the bytes came and were not verified in time; is this node overloaded?".to_owned()
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        for row in self.rows() {
            self.land(row, Landed::Failed(Arc::new(FetchError::ShutDown)));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How an answer counts.
fn outcome(answer: &Result<Result<Delivery, SourceFailure>, time::error::Elapsed>) -> Outcome {
    match answer {
        Ok(Ok(_)) => Outcome::Delivered,
        Ok(Err(failure)) => match failure.kind {
            FailureKind::Absent => Outcome::Absent,
            FailureKind::Refused | FailureKind::Forbidden => Outcome::Refused,
            FailureKind::Passing => Outcome::Failed,
        },
        Err(_) => Outcome::Silent,
    }
}

/// The earlier of two moments, of which either may be missing.
fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}

/// Groups ascending rows that follow each other.
fn neighbours(rows: &[usize]) -> Vec<Range<usize>> {
    let groups = rows.chunk_by(|a, b| a + 1 == *b);
    groups
        .filter_map(|group| Some(*group.first()?..*group.last()? + 1))
        .collect()
}
