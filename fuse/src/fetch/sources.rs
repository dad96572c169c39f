//! The sources of one layer: their order, what came of asking them, and where to look for more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::source::{Elsewhere, Source};

/// How long a source that failed is asked after the others: one slow read in this time, not one
/// in each. As long as the registry client passes over a mirror.
const PASSED_OVER: Duration = Duration::from_secs(30);

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
    tally: Arc<Mutex<Tally>>,
}

/// Figures about one source of one layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Bytes that came and were right.
    pub(crate) bytes: u64,
    /// Of those, which host of a registry sent how many, in the order they first did.
    pub(crate) hosts: Vec<(String, u64)>,
    /// Range requests made.
    pub(crate) requests: u64,
    /// Requests that brought nothing usable.
    pub(crate) failures: u64,
    /// The latest of them.
    pub(crate) last_failure: Option<String>,
    passed_over_until: Option<Instant>,
}

impl Tally {
    fn count(&mut self, host: &str, bytes: u64) {
        if let Some((_, count)) = self.hosts.iter_mut().find(|(known, _)| known == host) {
            *count += bytes;
        } else if self.hosts.len() < HOSTS_MAX {
            self.hosts.push((host.to_owned(), bytes));
        }
    }
}

impl Tracked {
    fn new(source: Arc<dyn Source>) -> Self {
        let tally = Arc::default();
        Self { source, tally }
    }

    /// What came of asking it so far.
    pub(crate) fn tally(&self) -> Tally {
        self.lock().clone()
    }

    pub(super) fn asked(&self) {
        self.lock().requests += 1;
    }

    pub(super) fn delivered(&self, host: Option<&str>, bytes: u64) {
        let mut tally = self.lock();
        tally.bytes += bytes;
        if let Some(host) = host {
            tally.count(host, bytes);
        }
        tally.passed_over_until = None;
    }

    pub(super) fn failed(&self, reason: String) {
        let mut tally = self.lock();
        tally.failures += 1;
        tally.last_failure = Some(reason);
        tally.passed_over_until = Some(Instant::now() + PASSED_OVER);
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sources of one layer.
#[derive(Debug)]
pub(crate) struct Sources {
    known: RwLock<Arc<[Tracked]>>,
    elsewhere: RwLock<Option<Arc<dyn Elsewhere>>>,
    /// When further ones were last looked for; held while looking.
    looked: tokio::sync::Mutex<Option<Instant>>,
    changed: Notify,
}

impl Sources {
    pub(super) fn new(known: Vec<Arc<dyn Source>>, elsewhere: Option<Arc<dyn Elsewhere>>) -> Self {
        Self {
            known: RwLock::new(known.into_iter().map(Tracked::new).collect()),
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

    pub(super) fn set(&self, sources: Vec<Arc<dyn Source>>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = sources.into_iter().map(Tracked::new).collect();
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
        let elsewhere = self
            .elsewhere
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(elsewhere) = elsewhere else {
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
                all.push(Tracked::new(source));
            }
        }
        *known = all.into();
    }
}
