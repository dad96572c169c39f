//! Chunks on their way, and who waits for them.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use larder_proto::verified::Verified;
use tokio::sync::{Notify, watch};

use super::{FAILURE_REMEMBERED, FetchError, Priority};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::time::Instant;

/// Deadlines that one flight keeps apart. Who joins within the same part of a deadline shares one, and
/// is answered that much early at most: a second of thirty.
const DEADLINES_MAX: u32 = 32;

/// How a flight ended.
#[derive(Debug, Clone)]
pub(crate) enum Landed {
    /// The chunk is in the store.
    Stored,
    /// The chunk is here; the store has no room.
    Held(Arc<Verified<Vec<u8>>>),
    /// It did not arrive.
    Failed(Arc<FetchError>),
}

/// A chunk somebody asked for.
#[derive(Debug)]
pub(super) enum Pending {
    Landed(Landed),
    InFlight(Waiting),
}

/// A place in a flight.
#[derive(Debug)]
pub(super) struct Waiting {
    course: watch::Receiver<Course>,
    deadline: Instant,
}

/// How far a flight is.
#[derive(Debug, Default)]
struct Course {
    landed: Option<Landed>,
    /// Up to when waiters were answered without the chunk, and with what.
    overdue: Option<(Instant, Arc<FetchError>)>,
}

/// Whether a reader waits for any of the chunks that were asked for together.
#[derive(Debug)]
pub(super) struct Urgency {
    is_awaited: AtomicBool,
    changed: Notify,
}

impl Urgency {
    pub(super) fn new(priority: Priority) -> Arc<Self> {
        Arc::new(Self {
            is_awaited: AtomicBool::new(priority == Priority::Demand),
            changed: Notify::new(),
        })
    }

    /// A reader waits for a chunk that was asked for without one.
    fn urge(&self) {
        if !self.is_awaited.swap(true, Ordering::AcqRel) {
            self.changed.notify_waiters();
        }
    }

    pub(super) fn is_awaited(&self) -> bool {
        self.is_awaited.load(Ordering::Acquire)
    }

    /// Resolves when a reader waits.
    pub(super) async fn awaited(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_awaited() {
                return;
            }
            changed.await;
        }
    }
}

/// A chunk on its way.
#[derive(Debug)]
struct Flight {
    urgency: Arc<Urgency>,
    course: watch::Sender<Course>,
    /// When those who wait are to be answered, ascending.
    deadlines: VecDeque<Instant>,
    /// Which of them is nobody's: that of a request that no reader made.
    nobodys: Option<Instant>,
    /// Whether a reader waits for this chunk, or did.
    has_reader: bool,
}

impl Flight {
    fn wait(&self, deadline: Instant) -> Waiting {
        let course = self.course.subscribe();
        Waiting { course, deadline }
    }
}

/// What a deadline came to.
#[derive(Debug, Default)]
pub(super) struct Expired {
    /// Others still wait.
    pub(super) goes_on: bool,
    /// It was that of a reader.
    pub(super) fails_reader: bool,
}

/// The flights of one layer. At most one per chunk, so the index bounds the table.
#[derive(Debug)]
pub(super) struct Flights {
    /// How long who asks waits.
    patience: Duration,
    flying: HashMap<usize, Flight>,
    failed: HashMap<usize, (Instant, Arc<FetchError>)>,
}

impl Flights {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            flying: HashMap::new(),
            failed: HashMap::new(),
        }
    }

    /// Waits for a flight that is under way, by a deadline of one's own.
    pub(super) fn join(&mut self, row: usize, priority: Priority) -> Option<Waiting> {
        let flight = self.flying.get_mut(&row)?;
        let deadline = Instant::now() + self.patience;
        let apart = self.patience / DEADLINES_MAX;
        let last = flight.deadlines.back().copied();
        let shared = last.filter(|last| deadline.saturating_duration_since(*last) < apart);
        if shared.is_none() {
            flight.deadlines.push_back(deadline);
        }
        if priority == Priority::Demand {
            flight.has_reader = true;
            flight.urgency.urge();
            if shared == flight.nobodys {
                flight.nobodys = None;
            }
        }
        Some(flight.wait(shared.unwrap_or(deadline)))
    }

    pub(super) fn begin(&mut self, row: usize, urgency: &Arc<Urgency>) -> Waiting {
        let deadline = Instant::now() + self.patience;
        let flight = Flight {
            urgency: urgency.clone(),
            course: watch::Sender::default(),
            deadlines: VecDeque::from([deadline]),
            nobodys: (!urgency.is_awaited()).then_some(deadline),
            has_reader: urgency.is_awaited(),
        };
        let waiting = flight.wait(deadline);
        self.flying.insert(row, flight);
        waiting
    }

    /// When the first of those who wait for any of `rows` is to be answered.
    pub(super) fn deadline(&self, rows: &[usize]) -> Option<Instant> {
        let flights = rows.iter().filter_map(|row| self.flying.get(row));
        flights
            .filter_map(|flight| flight.deadlines.front())
            .min()
            .copied()
    }

    /// Answers those whose deadline has come by `now` with `error`.
    pub(super) fn expire(&mut self, row: usize, now: Instant, error: &Arc<FetchError>) -> Expired {
        let Some(flight) = self.flying.get_mut(&row) else {
            return Expired::default();
        };
        let waiting = flight.deadlines.len();
        flight.deadlines.retain(|deadline| *deadline > now);
        let nobodys = flight.nobodys.take_if(|deadline| *deadline <= now);
        // A reader's own was among them, beside that of nobody.
        let fails_reader = waiting - flight.deadlines.len() > usize::from(nobodys.is_some());
        if flight.deadlines.is_empty() {
            self.land(row, Landed::Failed(error.clone()));
            return Expired {
                goes_on: false,
                fails_reader,
            };
        }
        if flight.deadlines.len() < waiting {
            let overdue = Some((now, error.clone()));
            flight.course.send_modify(|course| course.overdue = overdue);
            if fails_reader {
                self.remember(row, error.clone());
            }
        }
        Expired {
            goes_on: true,
            fails_reader,
        }
    }

    pub(super) fn land(&mut self, row: usize, landed: Landed) {
        if let Some(flight) = self.flying.remove(&row) {
            // What nobody waited for says nothing to a reader who comes later: the deadline was not his.
            if let Landed::Failed(error) = &landed
                && flight.has_reader
            {
                self.remember(row, error.clone());
            }
            let landed = Some(landed);
            flight.course.send_modify(|course| course.landed = landed);
        }
    }

    fn remember(&mut self, row: usize, error: Arc<FetchError>) {
        let now = Instant::now();
        self.failed
            .retain(|_, (at, _)| now - *at < FAILURE_REMEMBERED);
        self.failed.insert(row, (now, error));
    }

    /// Why the last of these chunks failed a moment ago, if it did; or one of the others, if that was for a
    /// reason that is its own, too.
    pub(super) fn failure(&self, mut rows: Range<usize>, now: Instant) -> Option<Arc<FetchError>> {
        let of = |row: usize| {
            let (at, error) = self.failed.get(&row)?;
            (now.saturating_duration_since(*at) < FAILURE_REMEMBERED).then_some(error)
        };
        if self.failed.is_empty() {
            return None;
        }
        let own = rows.next_back().and_then(of);
        let shared = || rows.filter_map(of).find(|error| error.is_of_the_sources());
        own.or_else(shared).cloned()
    }

    pub(super) fn forget_failures(&mut self) {
        self.failed.clear();
    }
}

/// What a reader waits for: the chunks that were not in the store when it asked.
#[derive(Debug, Default)]
pub(crate) struct Landing(Vec<(usize, Pending)>);

impl Landing {
    pub(super) fn add(&mut self, row: usize, pending: Pending) {
        self.0.push((row, pending));
    }

    /// Waits for all of them. Chunks the store holds are left out of the answer.
    pub(crate) async fn all(self) -> Result<Vec<(usize, Arc<Verified<Vec<u8>>>)>, Arc<FetchError>> {
        let mut held = Vec::new();
        for (row, pending) in self.0 {
            match pending.landed().await {
                Landed::Stored => {}
                Landed::Held(content) => held.push((row, content)),
                Landed::Failed(error) => return Err(error),
            }
        }
        Ok(held)
    }

    /// Waits for all of them, and forgets those that are not stored.
    pub(crate) async fn stored(self) -> Result<(), Arc<FetchError>> {
        self.all().await.map(drop)
    }
}

impl Pending {
    async fn landed(self) -> Landed {
        match self {
            Self::Landed(landed) => landed,
            Self::InFlight(waiting) => waiting.landed().await,
        }
    }
}

impl Waiting {
    async fn landed(mut self) -> Landed {
        let deadline = self.deadline;
        let settled = self.course.wait_for(|course| course.of(deadline).is_some());
        let landed = settled.await.ok().and_then(|course| course.of(deadline));
        landed.unwrap_or_else(|| Landed::Failed(Arc::new(FetchError::ShutDown)))
    }
}

impl Course {
    /// How it ended for somebody with this deadline, if it did.
    fn of(&self, deadline: Instant) -> Option<Landed> {
        let overdue = self
            .overdue
            .as_ref()
            .filter(|(up_to, _)| deadline <= *up_to);
        let overdue = overdue.map(|(_, error)| Landed::Failed(error.clone()));
        self.landed.clone().or(overdue)
    }
}
