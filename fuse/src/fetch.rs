//! Getting chunks that are not in the store.
//!
//! ```text
//! read ─▶ request(rows) ─▶ one flight per missing chunk ─▶ wait for all of them ─▶ reply
//!                             └ neighbours share a run: verify what a former run of the daemon
//!                               left, then one range from the best source, verify, publish, land
//! ```
//!
//! A miss and a damaged chunk take the same road. Whoever asks for a chunk in flight joins it.

mod blob;
mod decode;
mod error;
mod flight;
mod recent;
mod run;

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use larder_proto::digest::Digest;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::source::Source;
use crate::store::{ChunkState, StoredLayer};

pub use blob::BlobReader;
pub use error::FetchError;
use flight::{Flights, Pending};
pub(crate) use flight::{Landed, Landing};
pub(crate) use recent::Recent;
use run::Run;

/// Range requests of one layer in flight for waiting readers. Sixteen ranges of a few hundred KiB
/// keep 1 Gbit/s busy at 20 ms; more would only make them slower one by one.
const DEMAND_REQUESTS: usize = 16;

/// Range requests of one layer in flight for nobody in particular.
const BACKGROUND_REQUESTS: usize = 2;

/// Most bytes of the blob in one range request: 30 ms at 1 Gbit/s, and with [`DEMAND_REQUESTS`]
/// at most 64 MiB of one layer's bodies in memory.
const RUN_BYTES_MAX: u64 = 4 << 20;

/// How long a failed chunk fails at once. The kernel repeats a failed read 3 to 5 times within
/// milliseconds, and each repetition would wait for the whole deadline again.
const FAILURE_REMEMBERED: Duration = Duration::from_secs(1);

/// Who waits for a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// A reader.
    Demand,
    /// Nobody; the layer is being completed.
    Background,
}

/// What gets the chunks of one layer.
#[derive(Debug)]
pub(crate) struct Fetcher {
    id: Digest,
    layer: Arc<StoredLayer>,
    sources: RwLock<Arc<[Tracked]>>,
    flights: Mutex<Flights>,
    demand: Semaphore,
    background: Semaphore,
    deadline: Duration,
    recent: Arc<Recent>,
    runtime: Handle,
    completed: Notify,
}

/// A source, and what came of asking it.
#[derive(Debug, Clone)]
pub(crate) struct Tracked {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) tally: Arc<Mutex<Tally>>,
}

/// Figures about one source of one layer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    /// Bytes that came and were right.
    pub(crate) bytes: u64,
    /// Range requests made.
    pub(crate) requests: u64,
    /// Requests that brought nothing usable.
    pub(crate) failures: u64,
    /// The latest of them.
    pub(crate) last_failure: Option<String>,
}

impl Fetcher {
    pub(crate) fn new(
        id: Digest,
        layer: Arc<StoredLayer>,
        sources: Vec<Arc<dyn Source>>,
        deadline: Duration,
        recent: Arc<Recent>,
        runtime: Handle,
    ) -> Self {
        Self {
            id,
            layer,
            sources: RwLock::new(track(sources)),
            flights: Mutex::default(),
            demand: Semaphore::new(DEMAND_REQUESTS),
            background: Semaphore::new(BACKGROUND_REQUESTS),
            deadline,
            recent,
            runtime,
            completed: Notify::new(),
        }
    }

    pub(crate) fn layer(&self) -> &Arc<StoredLayer> {
        &self.layer
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn sources(&self) -> Arc<[Tracked]> {
        let sources = self.sources.read();
        sources.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_sources(&self, sources: Vec<Arc<dyn Source>>) {
        let mut current = self.sources.write().unwrap_or_else(PoisonError::into_inner);
        *current = track(sources);
        drop(current);
        self.lock_flights().forget_failures();
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
                && let Some(held) = self.recent.get(&self.id, row)
            {
                Pending::Landed(Landed::Held(held))
            } else if let Some(error) = flights.failure(row, Instant::now()) {
                Pending::Landed(Landed::Failed(error))
            } else if let Some(waiting) = flights.join(row) {
                Pending::InFlight(waiting)
            } else {
                missing.push(row);
                Pending::InFlight(flights.begin(row))
            };
            landing.add(row, pending);
        }
        drop(flights);
        for rows in self.neighbours(&missing) {
            let run = Run::new(self.clone(), rows, priority);
            self.runtime.spawn(run.fly());
        }
        landing
    }

    /// Fetches every chunk that is not there yet.
    pub(crate) async fn fetch_all(self: &Arc<Self>) -> Result<(), Arc<FetchError>> {
        let count = self.layer.index().chunk_count();
        let mut waiting = std::collections::VecDeque::new();
        let mut next = 0;
        while next < count {
            let end = self.batch_end(next);
            waiting.push_back(self.request(next..end, Priority::Background));
            next = end;
            // One more than can be in flight keeps the link busy, and memory bounded.
            if waiting.len() > BACKGROUND_REQUESTS
                && let Some(first) = waiting.pop_front()
            {
                first.stored().await?;
            }
        }
        for landing in waiting {
            landing.stored().await?;
        }
        if self.layer.presence().all_verified() {
            Ok(())
        } else {
            Err(Arc::new(FetchError::NoRoom { layer: self.id }))
        }
    }

    /// The row after `first` and its neighbours of one range request.
    fn batch_end(&self, first: usize) -> usize {
        let index = self.layer.index();
        let mut bytes = 0;
        let mut row = first;
        while let Some(chunk) = index.chunk(row) {
            bytes += u64::from(chunk.stored_len);
            if row > first && bytes > RUN_BYTES_MAX {
                break;
            }
            row += 1;
        }
        row
    }

    /// Groups ascending rows into runs of neighbours, each within [`RUN_BYTES_MAX`].
    fn neighbours(&self, rows: &[usize]) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for &row in rows {
            match runs.last_mut() {
                Some(run) if run.end == row && self.batch_end(run.start) > row => run.end += 1,
                _ => runs.push(row..row + 1),
            }
        }
        runs
    }

    fn lock_flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn track(sources: Vec<Arc<dyn Source>>) -> Arc<[Tracked]> {
    let tracked = |source| Tracked {
        source,
        tally: Arc::default(),
    };
    sources.into_iter().map(tracked).collect()
}
