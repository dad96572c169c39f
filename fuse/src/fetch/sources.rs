//! The sources of one layer: their order, what came of asking them, and where to look for more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::outage::Outage;
use crate::source::{Elsewhere, Source, SourceFailure};
use crate::sync::time::Instant;

/// How long a source that failed is asked after the others: one slow read in this time, not one
/// in each. As long as the registry client passes over a mirror.
const PASSED_OVER: Duration = Duration::from_secs(30);

/// How soon it is asked a second time, as a part of the deadline: after 2 s of 30. Registries that restart
/// say no for a moment, too.
const SECOND_LOOKS_PER_DEADLINE: u32 = 15;

/// How often further sources are looked for. An image pulled meanwhile may bring one; looking
/// costs a listing of containerd's content, and a dead registry fails reads all the time.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Most sources of one layer. A base image has a repository for every team; when this many do not
/// deliver, the others are no better.
const SOURCES_MAX: usize = 16;

/// Hosts of one registry whose bytes are counted apart: the registry and more mirrors than anybody
/// configures. What others send counts for the source alone.
const HOSTS_MAX: usize = 8;

/// A source, and what came of asking it.
#[derive(Debug, Clone)]
pub(crate) struct Tracked {
    pub(crate) source: Arc<dyn Source>,
    /// How long it is not asked again after it has said no, but for a second look.
    refusals_last: Duration,
    delivered: Arc<Mutex<Delivered>>,
    tally: Arc<Mutex<Tally>>,
}

/// What a source of one layer delivered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Delivered {
    /// Bytes that came and were right.
    pub(crate) bytes: u64,
    /// Of those, which host of a registry sent how many, in the order they first did.
    pub(crate) hosts: Vec<(String, u64)>,
}

/// Figures about asking one source of one layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Range requests made.
    pub(crate) requests: u64,
    /// Requests that brought nothing usable.
    pub(crate) failures: u64,
    /// The latest of them.
    pub(crate) last_failure: Option<String>,
    passed_over_until: Option<Instant>,
    refusal: Option<Refusal>,
}

/// That a source said no.
#[derive(Debug, Clone)]
struct Refusal {
    failure: SourceFailure,
    since: Instant,
    second_look: SecondLook,
}

/// Whether a source that said no was asked once more.
#[derive(Debug, Clone, Copy)]
enum SecondLook {
    At(Instant),
    UnderWay,
    Over,
}

/// How often those who wait for somebody else's second look see whether it is over.
const SECOND_LOOK_POLL: Duration = Duration::from_millis(100);

impl SecondLook {
    /// When to come again.
    fn due(self, now: Instant) -> Option<Instant> {
        match self {
            Self::At(at) => Some(at),
            Self::UnderWay => Some(now + SECOND_LOOK_POLL),
            Self::Over => None,
        }
    }
}

/// Whether a source is asked now.
#[derive(Debug)]
pub(super) enum Door {
    Open,
    /// It said no a while ago. At that moment, if there is one, more is known.
    Shut(SourceFailure, Option<Instant>),
}

impl Tally {
    fn fail(&mut self, reason: String) {
        self.failures += 1;
        self.last_failure = Some(reason);
        self.passed_over_until = Some(Instant::now() + PASSED_OVER);
    }
}

impl Delivered {
    fn count(&mut self, host: &str, bytes: u64) {
        if let Some((_, count)) = self.hosts.iter_mut().find(|(known, _)| known == host) {
            *count += bytes;
        } else if self.hosts.len() < HOSTS_MAX {
            self.hosts.push((host.to_owned(), bytes));
        }
    }
}

impl Tracked {
    fn new(source: Arc<dyn Source>, refusals_last: Duration) -> Self {
        Self {
            source,
            refusals_last,
            delivered: Arc::default(),
            tally: Arc::default(),
        }
    }

    /// What it delivered so far.
    pub(crate) fn deliveries(&self) -> Delivered {
        self.lock_delivered().clone()
    }

    /// What came of asking it so far.
    pub(crate) fn tally(&self) -> Tally {
        self.lock().clone()
    }

    pub(super) fn asked(&self) {
        self.lock().requests += 1;
    }

    pub(crate) fn delivered(&self, host: Option<&str>, bytes: u64) {
        let mut delivered = self.lock_delivered();
        delivered.bytes += bytes;
        if let Some(host) = host {
            delivered.count(host, bytes);
        }
        drop(delivered);
        let mut tally = self.lock();
        tally.passed_over_until = None;
        tally.refusal = None;
    }

    /// Notes that it did not deliver: in silence, or what came was wrong.
    pub(super) fn failed(&self, reason: String) {
        let mut tally = self.lock();
        tally.fail(reason);
        tally.refusal = None;
    }

    /// Notes what it failed with; the moment at which one that says no is asked a second time, if that is
    /// still to be done. `deadline` is that of reads.
    pub(super) fn failed_with(
        &self,
        failure: &SourceFailure,
        deadline: Duration,
    ) -> Option<Instant> {
        if !failure.kind.is_lasting() {
            self.failed(failure.reason.clone());
            return None;
        }
        let mut tally = self.lock();
        tally.fail(failure.reason.clone());
        let now = Instant::now();
        match &mut tally.refusal {
            Some(refusal) if now - refusal.since < self.refusals_last => {
                refusal.failure = failure.clone();
                if matches!(refusal.second_look, SecondLook::UnderWay) {
                    refusal.second_look = SecondLook::Over;
                }
                refusal.second_look.due(now)
            }
            fresh => {
                let second_look = SecondLook::At(now + deadline / SECOND_LOOKS_PER_DEADLINE);
                *fresh = Some(Refusal {
                    failure: failure.clone(),
                    since: now,
                    second_look,
                });
                second_look.due(now)
            }
        }
    }

    /// Whether to ask it now. Who is let in for the second look must ask.
    pub(super) fn door(&self) -> Door {
        let mut tally = self.lock();
        let now = Instant::now();
        let Some(refusal) = &mut tally.refusal else {
            return Door::Open;
        };
        if now - refusal.since >= self.refusals_last {
            return Door::Open;
        }
        if matches!(refusal.second_look, SecondLook::At(at) if at <= now) {
            refusal.second_look = SecondLook::UnderWay;
            return Door::Open;
        }
        Door::Shut(refusal.failure.clone(), refusal.second_look.due(now))
    }

    fn lock_delivered(&self) -> MutexGuard<'_, Delivered> {
        self.delivered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sources of one layer.
#[derive(Debug)]
pub(crate) struct Sources {
    known: RwLock<Arc<[Tracked]>>,
    refusals_last: Duration,
    pub(super) outage: Outage,
    elsewhere: RwLock<Option<Arc<dyn Elsewhere>>>,
    /// When further ones were last looked for; held while looking.
    looked: tokio::sync::Mutex<Option<Instant>>,
    changed: Notify,
}

impl Sources {
    /// One that says no is not asked again for `refusals_last`.
    pub(super) fn new(
        known: Vec<Arc<dyn Source>>,
        elsewhere: Option<Arc<dyn Elsewhere>>,
        refusals_last: Duration,
    ) -> Self {
        let track = |source| Tracked::new(source, refusals_last);
        Self {
            known: RwLock::new(known.into_iter().map(track).collect()),
            refusals_last,
            outage: Outage::default(),
            elsewhere: RwLock::new(elsewhere),
            looked: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// All of them, as they were set, and those found elsewhere after them.
    pub(crate) fn all(&self) -> Arc<[Tracked]> {
        let known = self.known.read();
        known.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of them in the order to be asked: those that failed a while ago after the others.
    pub(super) fn in_order(&self) -> Vec<Tracked> {
        let now = Instant::now();
        let mut sources = self.all().to_vec();
        sources.sort_by_cached_key(|tracked| {
            let until = tracked.lock().passed_over_until;
            until.filter(|until| *until > now)
        });
        sources
    }

    /// What a source of the same name delivered, and still delivers, is remembered, and no failure of it.
    pub(super) fn set(&self, sources: Vec<Arc<dyn Source>>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let before = known.clone();
        let track = |source: Arc<dyn Source>| {
            let new = Tracked::new(source, self.refusals_last);
            let same = |old: &&Tracked| old.source.name() == new.source.name();
            match before.iter().find(same) {
                Some(old) => Tracked {
                    delivered: Arc::clone(&old.delivered),
                    ..new
                },
                None => new,
            }
        };
        *known = sources.into_iter().map(track).collect();
        drop(known);
        self.changed.notify_waiters();
    }

    /// Resolves when they are set after this call. After a takeover, reads wait for it.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub(super) fn set_elsewhere(&self, elsewhere: Option<Arc<dyn Elsewhere>>) {
        let mut current = self
            .elsewhere
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = elsewhere;
    }

    /// Who finds more of them.
    pub(crate) fn elsewhere(&self) -> Option<Arc<dyn Elsewhere>> {
        let elsewhere = self.elsewhere.read();
        elsewhere.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks for more than `known` sources; whether there are any now.
    pub(super) async fn look_elsewhere(&self, known: usize) -> bool {
        let mut looked = self.looked.lock().await;
        if self.all().len() > known {
            // Another run found them while this one waited for its turn.
            return true;
        }
        let now = Instant::now();
        if looked.is_some_and(|at| now - at < LOOK_EVERY) {
            return false;
        }
        let Some(elsewhere) = self.elsewhere() else {
            return false;
        };
        *looked = Some(now);
        let found = elsewhere.find().await;
        self.append(found);
        self.all().len() > known
    }

    fn append(&self, found: Vec<Arc<dyn Source>>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let mut all = known.to_vec();
        for source in found {
            let is_new = all.iter().all(|one| one.source.name() != source.name());
            if is_new && all.len() < SOURCES_MAX {
                all.push(Tracked::new(source, self.refusals_last));
            }
        }
        *known = all.into();
    }
}
