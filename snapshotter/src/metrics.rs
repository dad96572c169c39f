//! Metrics in the form that Prometheus reads, and the small server they are read from.
//!
//! Everything is counted where it happens, by atomics; here the counts get their names, when
//! somebody asks.

mod listen;
mod names;
mod page;

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use larder_fuse::{Count, Counts, Delay, Outcome, ReadFailure};
use larder_registry::RequestCounts;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use crate::control::{self, LAYER_STATES};
use crate::filter::Filter;
use crate::log;
use crate::plane::Plane;
use crate::profiles::StartCounts;
use crate::reporter::Published;
use crate::snapshots::Snapshots;
use crate::store::{Kind, StoreError};
pub use listen::{MetricsAddress, serve};
use page::Page;

/// What is asked for the figures of one daemon.
#[derive(Debug, Clone)]
pub struct Metrics {
    snapshots: Snapshots,
    requests: Arc<RequestCounts>,
    published: Arc<Published>,
    started: SystemTime,
    old_configuration: bool,
}

/// How a page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As Prometheus asks for it.
    OpenMetrics,
    /// As everybody understands it.
    Text,
}

impl Metrics {
    /// The figures of `snapshots`, its data plane, the clients that count in `requests`, and the
    /// events of `published`.
    pub fn new(
        snapshots: Snapshots,
        requests: Arc<RequestCounts>,
        published: Arc<Published>,
    ) -> Self {
        Self {
            snapshots,
            requests,
            published,
            started: SystemTime::now(),
            old_configuration: false,
        }
    }

    /// The same of a daemon whose configuration file cannot be used, if `is_old`.
    #[must_use]
    pub fn with_old_configuration(mut self, is_old: bool) -> Self {
        self.old_configuration = is_old;
        self
    }

    /// The page. Reads the database of snapshots: not for threads that must not wait.
    fn page(&self, form: Form) -> Result<String, StoreError> {
        let stored = Stored::read(&self.snapshots)?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Figures {
            metrics: self.clone(),
            stored,
        }));
        let mut page = String::new();
        let written = match form {
            Form::OpenMetrics => prometheus_client::encoding::text::encode(&mut page, &registry),
            Form::Text => {
                prometheus_client::encoding::prometheus_text::encode(&mut page, &registry)
            }
        };
        // A string takes everything.
        debug_assert!(written.is_ok(), "a metric cannot be written");
        Ok(page)
    }
}

/// What the database says.
#[derive(Debug)]
struct Stored {
    kinds: [u64; 3],
    states: [u64; LAYER_STATES.len()],
    length: u64,
    present: u64,
}

const KINDS: [Kind; 3] = [Kind::Committed, Kind::Active, Kind::View];

impl Stored {
    fn read(snapshots: &Snapshots) -> Result<Self, StoreError> {
        let all = snapshots
            .store()
            .list(&Filter::default(), None, usize::MAX)?;
        let of_kind = |kind: Kind| {
            all.entries
                .iter()
                .filter(move |(_, record)| record.kind == kind)
        };
        let layers = control::layers(snapshots)?;
        let in_state = |state| layers.iter().filter(|layer| layer.state == state).count() as u64;
        // Two snapshots may show one layer.
        let mut seen = std::collections::HashSet::new();
        let lazy = layers.iter().filter(|layer| layer.bytes_total > 0);
        let distinct: Vec<_> = lazy.filter(|layer| seen.insert(&layer.blob)).collect();
        Ok(Self {
            kinds: KINDS.map(|kind| of_kind(kind).count() as u64),
            states: LAYER_STATES.map(in_state),
            length: distinct.iter().map(|layer| layer.bytes_total).sum(),
            present: distinct.iter().map(|layer| layer.bytes_present).sum(),
        })
    }
}

/// The figures of one moment.
#[derive(Debug)]
struct Figures {
    metrics: Metrics,
    stored: Stored,
}

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        self.process(&mut page)?;
        self.snapshots(&mut page)?;
        self.reads(&mut page)?;
        self.starts(&mut page)?;
        self.sources(&mut page)?;
        self.registries(&mut page)
    }
}

impl Figures {
    fn plane(&self) -> Option<&dyn Plane> {
        let lazy = self.metrics.snapshots.lazy()?;
        Some(lazy.plane().as_ref())
    }

    fn counts(&self) -> Arc<Counts> {
        let counts = self.plane().and_then(Plane::counts);
        counts.cloned().unwrap_or_default()
    }

    fn process(&self, page: &mut Page<'_>) -> fmt::Result {
        let driver = self.plane().map(|plane| plane.driver().0);
        let driver = driver.unwrap_or_default();
        let labels = vec![env!("CARGO_PKG_VERSION"), &driver];
        page.gauges(&names::BUILD, [(labels, 1.0)])?;
        let started = self.metrics.started.duration_since(UNIX_EPOCH);
        page.gauge(&names::STARTED, started.unwrap_or_default().as_secs_f64())?;
        let old = f64::from(u8::from(self.metrics.old_configuration));
        page.gauge(&names::OLD_CONFIGURATION, old)?;
        let takeovers = self.plane().map(Plane::takeovers).unwrap_or_default();
        let takeovers = takeovers.all().map(|(cause, count)| (vec![cause], count));
        page.counters(&names::TAKEOVERS, takeovers)?;
        let logged = log::counts().map(|(level, count)| (vec![level], count));
        page.counters(&names::LOGGED, logged)
    }

    fn snapshots(&self, page: &mut Page<'_>) -> fmt::Result {
        let Self { metrics, stored } = self;
        let kinds = KINDS.iter().zip(stored.kinds);
        let kinds = kinds.map(|(kind, count)| (vec![kind.as_str()], count as f64));
        page.gauges(&names::SNAPSHOTS, kinds)?;
        let store = metrics.snapshots.store();
        page.gauge(&names::DATABASE, store.database_on_disk() as f64)?;
        let states = LAYER_STATES.iter().zip(stored.states);
        let states = states.map(|(state, count)| (vec![*state], count as f64));
        page.gauges(&names::LAYERS, states)?;
        page.gauge(&names::LAYER_LENGTH, stored.length as f64)?;
        page.gauge(&names::LAYER_PRESENT, stored.present as f64)?;
        let stopped = self.plane().and_then(Plane::caching_stopped);
        page.gauge(
            &names::CACHING_STOPPED,
            f64::from(u8::from(stopped.is_some())),
        )?;
        if let Some(free) = store.disk_free_bytes() {
            page.gauge(&names::DISK_FREE, free as f64)?;
        }
        self.room(page)?;
        let prepares = metrics.snapshots.prepares();
        let counted = prepares.counted();
        let counted = counted
            .iter()
            .map(|(outcome, reason, count)| (vec![*outcome, *reason], *count));
        page.counters(&names::PREPARES, counted)?;
        let measured = prepares
            .measured()
            .map(|(outcome, took)| (vec![outcome], took));
        page.durations(&names::PREPARE_DURATION, measured)
    }

    /// What the store takes, against what it may take.
    fn room(&self, page: &mut Page<'_>) -> fmt::Result {
        let usage = self.plane().map(Plane::usage).unwrap_or_default();
        page.gauge(&names::DISK_FLOOR, usage.floor as f64)?;
        let parts = [("data", usage.data), ("overhead", usage.overhead)];
        let parts = parts.map(|(part, bytes)| (vec![part], bytes as f64));
        page.gauges(&names::STORE, parts)?;
        let limit = usage.limit.unwrap_or_default();
        page.gauge(&names::STORE_LIMIT, limit as f64)?;
        page.gauge(&names::STORE_EVICTABLE, usage.evictable as f64)
    }

    fn reads(&self, page: &mut Page<'_>) -> fmt::Result {
        let counts = self.counts();
        let found = [("store", counts.hits()), ("source", counts.misses())];
        let found = found.map(|(found, measured)| (vec![found], measured));
        page.durations(&names::READ_DURATION, found)?;
        page.counter(&names::READ_BYTES, counts.bytes_read())?;
        page.gauge(&names::READS_WAITING, counts.waiting() as f64)?;
        let failed = ReadFailure::ALL.map(|why| (vec![why.name()], counts.failed(why)));
        page.counters(&names::READS_FAILED, failed)?;
        let slow = Delay::ALL.map(|why| (vec![why.name()], counts.slow(why)));
        page.counters(&names::READS_SLOW, slow)
    }

    /// How starts went by what was known of them.
    fn starts(&self, page: &mut Page<'_>) -> fmt::Result {
        let lazy = self.metrics.snapshots.lazy();
        let profiles = lazy.map(|lazy| lazy.profiles());
        let kept = profiles.map_or(0, |profiles| profiles.list().len());
        page.gauge(&names::PROFILES, kept as f64)?;
        let none = StartCounts::default();
        let counts = profiles.map_or(&none, |profiles| profiles.counts());
        let starts = [
            ("recorded", &counts.recorded),
            ("matched", &counts.matched),
            ("replaced", &counts.replaced),
        ];
        let told = |(name, count): (&'static str, &Count)| (vec![name], count.get());
        page.counters(&names::PROFILE_STARTS, starts.map(told))?;
        let chunks = [
            ("hit", &counts.hit),
            ("idle", &counts.idle),
            ("missed", &counts.missed),
        ];
        page.counters(&names::PROFILE_CHUNKS, chunks.map(told))?;
        let look_ups = [
            ("used", &counts.look_ups.used),
            ("absent", &counts.look_ups.absent),
            ("unfit", &counts.look_ups.unfit),
            ("failed", &counts.look_ups.failed),
        ];
        page.counters(&names::PROFILE_LOOK_UPS, look_ups.map(told))
    }

    fn sources(&self, page: &mut Page<'_>) -> fmt::Result {
        let counts = self.counts();
        let asked = Outcome::ALL.map(|outcome| (vec![outcome.name()], counts.asked(outcome)));
        page.counters(&names::SOURCE_REQUESTS, asked)?;
        let senders = counts.senders();
        let fetched = senders.iter();
        let fetched = fetched.map(|one| (vec![one.kind.name(), &*one.host], one.bytes));
        page.counters(&names::FETCHED, fetched)?;
        let rejected = senders.iter();
        let rejected = rejected.map(|one| (vec![one.kind.name(), &*one.host], one.rejected));
        page.counters(&names::CHUNKS_REJECTED, rejected)?;
        page.counter(&names::CHUNKS_DAMAGED, counts.damaged())?;
        page.counter(&names::LAYERS_QUARANTINED, counts.quarantined())?;
        let published = self.metrics.published.counts();
        let published = published.map(|(outcome, count)| (vec![outcome], count));
        page.counters(&names::EVENTS, published)
    }

    fn registries(&self, page: &mut Page<'_>) -> fmt::Result {
        let requests = &self.metrics.requests;
        let statuses = requests.statuses();
        let statuses = statuses.iter().filter(|(_, count)| *count > 0);
        let statuses = statuses.map(|(status, count)| (vec![&**status], *count));
        page.counters(&names::REGISTRY_REQUESTS, statuses)?;
        page.counter(&names::REGISTRY_RETRIES, requests.retries())?;
        let tokens = [
            ("granted", requests.tokens()),
            ("failed", requests.tokens_failed()),
        ];
        let tokens = tokens.map(|(outcome, count)| (vec![outcome], count));
        page.counters(&names::TOKEN_REQUESTS, tokens)
    }
}

#[cfg(test)]
mod tests;
