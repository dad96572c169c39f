//! Getting chunks that are not in the store.
//!
//! ```text
//! read ─▶ request(rows) ─▶ one flight per missing chunk ─▶ wait for all of them ─▶ reply
//!                             └ neighbours share a run: verify what a former run of the daemon
//!                               left, then one range from the best source, verify, publish, land
//! ```
//!
//! A miss and a damaged chunk take the same road. Whoever asks for a chunk in flight joins it.

mod ahead;
mod around;
mod arriving;
mod bandwidth;
mod complete;
mod damage;
mod decode;
mod error;
mod failing;
mod flight;
mod gauge;
mod lane;
mod outage;
mod pace;
mod recent;
mod replay;
mod run;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
mod sources;
mod spent;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
pub(crate) mod tests;
mod troubles;

use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use larder_proto::digest::Digest;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};

use crate::counts::Counts;
use crate::observer::{Observer, SlowReads};
use crate::recording::Listeners;
use crate::source::{Elsewhere, Source};
use crate::store::{ChunkState, StoredLayer};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::time::Instant;
use crate::sync::{Mutex, MutexGuard, spawn};

use ahead::Ahead;
pub(crate) use bandwidth::Bandwidth;
pub(crate) use decode::open_frame;
pub use error::FetchError;
pub(crate) use failing::Failed;
use flight::{Flights, Pending, Urgency};
pub(crate) use flight::{Landed, Landing};
use lane::Lane;
pub(crate) use lane::Lanes;
pub(crate) use pace::Pace;
pub(crate) use recent::Recent;
pub(crate) use replay::Replays;
use run::Run;
use sources::{Sources, Tracked};
use spent::SlowArrivals;
pub(crate) use spent::Spent;

/// Range requests of one layer in flight for waiting readers. Sixteen ranges of a few hundred KiB
/// keep 1 Gbit/s busy at 20 ms; more would only make them slower one by one.
const DEMAND_REQUESTS: usize = 16;

/// Parts of one layer that are asked for at a time in the background: one on its way, and one that goes
/// when the link has room.
const BACKGROUND_REQUESTS: usize = 2;

/// Most bytes of the blob in one range request: 30 ms at 1 Gbit/s, and with [`DEMAND_REQUESTS`]
/// at most 64 MiB of one layer's bodies in memory, and as much of frames that wait to be verified.
const RUN_BYTES_MAX: u64 = 4 << 20;

/// Most bytes of the tar in one range request. All of them are decompressed and verified within one
/// deadline, and what compresses well would otherwise make a request of gigabytes: 10 GB of zeros
/// are 1 MB of frames. 20 ms of one processor.
const RUN_CONTENT_MAX: u64 = 16 << 20;

/// How long a failed chunk fails at once. The kernel repeats a failed read 3 to 5 times within
/// milliseconds, and each repetition would wait for the whole deadline again.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(1);

/// After a failed read, the kernel goes on to read ahead for it before it tells the application: EROFS
/// up to three windows of 128 KiB, one after the other, and only then the failed page once more. Chunks
/// that begin so far behind one that nobody delivered fail with it, or that read would wait for one deadline
/// after the other.
const READ_ON_MAX: u64 = 512 << 10;

/// Who waits for a chunk, the most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Priority {
    /// A reader.
    Demand,
    /// Nobody yet; another start read it at this point.
    Profile,
    /// Nobody yet; somebody reads what lies before it.
    Readahead,
    /// Nobody; the layer is being completed.
    Background,
}

/// What the fetchers of a data plane share.
#[derive(Debug, Clone)]
pub(crate) struct FetchContext {
    /// How long a read waits.
    pub(crate) deadline: Duration,
    /// How long a source that said no is not asked again.
    pub(crate) refusals_last: Duration,
    pub(crate) recent: Arc<Recent>,
    pub(crate) pace: Arc<Pace>,
    pub(crate) lanes: Arc<Lanes>,
    /// For the background.
    pub(crate) bandwidth: Arc<Bandwidth>,
    pub(crate) runtime: Handle,
    pub(crate) counts: Arc<Counts>,
    pub(crate) slow: Arc<SlowReads>,
    pub(crate) observer: Arc<dyn Observer>,
}

/// What gets the chunks of one layer.
#[derive(Debug)]
pub(crate) struct Fetcher {
    id: Digest,
    layer: Arc<StoredLayer>,
    sources: Sources,
    flights: Mutex<Flights>,
    demand: Semaphore,
    context: FetchContext,
    ahead: Mutex<Ahead>,
    /// Whether somebody brings chunks from the disk into memory now.
    bringing: AtomicBool,
    slow: SlowArrivals,
    completed: Notify,
    removed: AtomicBool,
    barred: AtomicBool,
    listeners: Listeners,
    damage: Mutex<damage::Damage>,
    /// For the log alone: no schedule depends on it.
    failing: std::sync::Mutex<failing::Failing>,
}

impl Fetcher {
    pub(crate) fn new(
        id: Digest,
        layer: Arc<StoredLayer>,
        sources: Vec<Arc<dyn Source>>,
        elsewhere: Option<Arc<dyn Elsewhere>>,
        context: FetchContext,
    ) -> Self {
        Self {
            id,
            layer,
            sources: Sources::new(sources, elsewhere, context.refusals_last),
            flights: Mutex::new(Flights::new(context.deadline)),
            demand: Semaphore::new(DEMAND_REQUESTS),
            context,
            ahead: Mutex::default(),
            bringing: AtomicBool::new(false),
            slow: SlowArrivals::new(),
            completed: Notify::new(),
            removed: AtomicBool::new(false),
            barred: AtomicBool::new(false),
            listeners: Listeners::default(),
            damage: Mutex::default(),
            failing: std::sync::Mutex::default(),
        }
    }

    pub(crate) fn layer(&self) -> &Arc<StoredLayer> {
        &self.layer
    }

    /// Digest of the layer's blob, the name people know it by.
    pub(crate) fn blob(&self) -> Digest {
        self.layer.record().blob
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.context.runtime
    }

    pub(crate) fn context(&self) -> &FetchContext {
        &self.context
    }

    pub(crate) fn id(&self) -> Digest {
        self.id
    }

    /// Where the time went of the slowest chunk that arrived slowly among `rows`, if any did lately.
    pub(crate) fn spent(&self, rows: impl Iterator<Item = usize>) -> Option<Spent> {
        self.slow.of(rows)
    }

    /// Who wants to know what is read of the layer.
    pub(crate) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    pub(crate) fn sources(&self) -> &Sources {
        &self.sources
    }

    pub(crate) fn set_sources(&self, sources: Vec<Arc<dyn Source>>) {
        self.sources.set(sources);
        self.lock_flights().forget_failures();
    }

    pub(crate) fn set_elsewhere(&self, elsewhere: Option<Arc<dyn Elsewhere>>) {
        self.sources.set_elsewhere(elsewhere);
    }

    /// From now on no read is answered with bytes: they are not what whoever reads them believes.
    pub(crate) fn bar(&self) {
        self.barred.store(true, Ordering::Release);
    }

    pub(crate) fn is_barred(&self) -> bool {
        self.barred.load(Ordering::Acquire)
    }

    /// Resolves when the last chunk has arrived since the call before.
    pub(crate) async fn completed(&self) {
        self.completed.notified().await;
    }

    /// Starts or joins the flights of `rows` that are not in the store. Never waits.
    pub(crate) fn request(self: &Arc<Self>, rows: Range<usize>, priority: Priority) -> Landing {
        let mut landing = Landing::default();
        let mut missing = Vec::new();
        let mut flights = self.lock_flights();
        for row in rows {
            // Under the lock: a flight sets the bit first and leaves the table afterwards.
            let pending = if self.layer.presence().state(row) == ChunkState::Verified {
                continue;
            } else if priority == Priority::Demand
                && let Some(held) = self.context.recent.get(&self.id, row)
                && !self.layer.may_have_room()
            {
                Pending::Landed(Landed::Held(held))
            } else if let Some(error) =
                flights.failure(self.failing_with(row, priority), Instant::now())
            {
                Pending::Landed(Landed::Failed(error))
            } else if let Some(waiting) = flights.join(row, priority) {
                if priority == Priority::Demand {
                    self.context.pace.touch();
                }
                Pending::InFlight(waiting)
            } else {
                missing.push(row);
                continue;
            };
            landing.add(row, pending);
        }
        let mut runs = Vec::new();
        for rows in self.neighbours(&missing) {
            let urgency = Urgency::new(priority);
            for row in rows.clone() {
                landing.add(row, Pending::InFlight(flights.begin(row, &urgency)));
            }
            runs.push(Run::new(self.clone(), rows, priority, urgency));
        }
        drop(flights);
        for run in runs {
            spawn(&self.context.runtime, run.fly());
        }
        if priority == Priority::Demand
            && let Some(first) = missing.first()
        {
            self.bring_around(*first);
        }
        landing
    }

    /// Bytes of the blob to ask for at a time, for nobody who waits: what keeps the link busy while the next
    /// request goes there.
    pub(crate) fn part_bytes(&self) -> u64 {
        self.lane()
            .map_or(0, |lane| lane.product())
            .min(RUN_BYTES_MAX)
    }

    /// The same of what a start is known to read.
    pub(crate) fn start_part_bytes(&self) -> u64 {
        self.lane()
            .map_or(0, |lane| lane.start_part())
            .min(RUN_BYTES_MAX)
    }

    /// The link to the source that is asked first.
    fn lane(&self) -> Option<Arc<Lane>> {
        let sources = self.sources.in_order();
        let first = sources.first()?;
        Some(self.context.lanes.to(first.source.link()))
    }

    /// The chunk `row`, and before it those whose failure may be its own, too: for a reader as far as
    /// [`READ_ON_MAX`].
    fn failing_with(&self, row: usize, priority: Priority) -> Range<usize> {
        if priority != Priority::Demand {
            return row..row + 1;
        }
        let index = self.layer.index();
        let begin = index.chunk(row).map_or(0, |chunk| chunk.offset);
        let before = index.rows(begin.saturating_sub(READ_ON_MAX)..begin);
        before.start.min(row)..row + 1
    }

    /// The row after `first` and its neighbours of one range request of at most `bytes_max`.
    pub(crate) fn batch_end(&self, first: usize, bytes_max: u64) -> usize {
        let index = self.layer.index();
        let (mut bytes, mut content) = (0, 0);
        let mut row = first;
        while let Some(chunk) = index.chunk(row) {
            bytes += u64::from(chunk.stored_len);
            content += u64::from(chunk.len);
            if row > first && (bytes > bytes_max || content > RUN_CONTENT_MAX) {
                break;
            }
            row += 1;
        }
        row
    }

    /// Groups ascending rows into runs of neighbours, each within [`RUN_BYTES_MAX`] and
    /// [`RUN_CONTENT_MAX`].
    fn neighbours(&self, rows: &[usize]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for &row in rows {
            match runs.last_mut() {
                Some(run) if run.end == row && self.batch_end(run.start, RUN_BYTES_MAX) > row => {
                    run.end += 1;
                }
                _ => runs.push(row..row + 1),
            }
        }
        runs
    }

    fn lock_flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
