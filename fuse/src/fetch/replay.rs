//! What starts are known to read, in the order they read it, and nobody has asked for yet.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use larder_proto::access::{ACCESSES_MAX, Access};
use tokio::sync::{Notify, Semaphore};

use super::{Fetcher, Priority};
use crate::store::ChunkState;
use crate::sync::time::{Instant, timeout};
use crate::sync::{Mutex, MutexGuard};

/// Chunks that wait, of all layers: four layers of the most accesses, 20 MB. What comes beyond is left to
/// readers.
const WAITING_MAX: usize = 4 * ACCESSES_MAX;

/// Requests at a time. The link lets through what keeps it busy: with 32 of two chunks it is at 200 Mbit/s and 100 ms, and
/// what was taken out waits no longer for earlier reads of a layer that comes to be known than those take.
const REQUESTS_MAX: usize = 32;

/// How long one of them keeps its place: a registry that is slow does not hold up the others for longer.
const PLACE_HELD_MAX: Duration = Duration::from_secs(5);

/// How many of the following accesses are looked through for neighbours that go into the same request. A start of 400
/// chunks takes 200 requests instead of 370 with 32: each costs a registry some milliseconds, and what comes so much
/// earlier holds up the others by no more than a request's length.
const LOOKED_THROUGH: usize = 256;

/// Stored bytes up to which a chunk comes along with its neighbour, though nobody is known to read it: three packets cost less than the
/// round trip of whoever does. Between files stand headers of some hundred bytes, and EROFS reads whole pages: the first or last one of
/// a file mostly reaches into such a chunk.
pub(super) const SLIGHT_BYTES_MAX: u32 = 4 << 10;

/// The chunks that wait, by the time they are expected to be read at.
#[derive(Debug)]
pub(crate) struct Replays {
    began: Instant,
    waiting: Mutex<Waiting>,
    wake: Notify,
    requests: Arc<Semaphore>,
}

/// Microseconds since the beginning, then the order in which they were given.
type Due = (u64, u64);

#[derive(Debug, Default)]
struct Waiting {
    by_time: BTreeMap<Due, (Weak<Fetcher>, usize)>,
    given: u64,
}

impl Replays {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            waiting: Mutex::default(),
            wake: Notify::new(),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
        }
    }

    /// Lets the chunks of a layer wait, as many as there is room for; how many.
    pub(crate) fn add(&self, fetcher: &Arc<Fetcher>, accesses: &[Access]) -> usize {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let layer = fetcher.layer();
        let is_missing = |row: &usize| {
            *row < layer.index().chunk_count()
                && layer.presence().state(*row) != ChunkState::Verified
        };
        let rows = accesses.iter().map(|access| access.chunk);
        fetcher.list(rows.filter(|row| (*row as usize) < layer.index().chunk_count()));
        let mut waiting = self.lock();
        let before = waiting.by_time.len();
        for access in accesses {
            let row = access.chunk as usize;
            if waiting.by_time.len() >= WAITING_MAX || !is_missing(&row) {
                continue;
            }
            waiting.given += 1;
            let due = (now.saturating_add(access.micros), waiting.given);
            if let Entry::Vacant(place) = waiting.by_time.entry(due) {
                place.insert((Arc::downgrade(fetcher), row));
            }
        }
        let added = waiting.by_time.len() - before;
        drop(waiting);
        self.wake.notify_one();
        added
    }

    /// Asks for what waits, in order; ends with the caller.
    pub(crate) async fn run(self: Arc<Self>) {
        loop {
            let Ok(place) = Arc::clone(&self.requests).acquire_owned().await else {
                return;
            };
            let Some((fetcher, rows)) = self.next() else {
                drop(place);
                self.wake.notified().await;
                continue;
            };
            let replays = Arc::downgrade(&self);
            let landing = fetcher.request(rows, Priority::Profile);
            fetcher.runtime().clone().spawn(async move {
                let landed = timeout(PLACE_HELD_MAX, landing.stored()).await;
                if let (Ok(Err(_)), Some(replays)) = (landed, replays.upgrade()) {
                    // Readers find out whether it comes back.
                    replays.forget(&fetcher);
                }
                drop(place);
            });
        }
    }

    /// The chunk that is due first, and its neighbours that are due soon.
    fn next(&self) -> Option<(Arc<Fetcher>, Range<usize>)> {
        let mut waiting = self.lock();
        while let Some((_, (fetcher, row))) = waiting.by_time.pop_first() {
            let Some(fetcher) = fetcher.upgrade().filter(|fetcher| !fetcher.is_removed()) else {
                continue;
            };
            // Without room it would come again for the reader.
            let layer = fetcher.layer();
            if layer.presence().state(row) == ChunkState::Verified || !layer.may_have_room() {
                continue;
            }
            let rows = waiting.with_neighbours(&fetcher, row);
            return Some((fetcher, rows));
        }
        None
    }

    fn forget(&self, fetcher: &Arc<Fetcher>) {
        let is_other = |of: &Weak<Fetcher>| !std::ptr::eq(of.as_ptr(), Arc::as_ptr(fetcher));
        self.lock().by_time.retain(|_, (of, _)| is_other(of));
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// Takes out what lies around `row` and goes into one request with it.
    fn with_neighbours(&mut self, fetcher: &Arc<Fetcher>, row: usize) -> Range<usize> {
        let bytes_max = fetcher.start_part_bytes();
        let near: HashMap<usize, Due> = self
            .by_time
            .iter()
            .take(LOOKED_THROUGH)
            .filter(|(_, (of, _))| std::ptr::eq(of.as_ptr(), Arc::as_ptr(fetcher)))
            .map(|(due, (_, row))| (*row, *due))
            .collect();
        let fits = |rows: &Range<usize>| fetcher.batch_end(rows.start, bytes_max) >= rows.end;
        let mut rows = row..row + 1;
        let is_due = |row: usize| near.contains_key(&row);
        // One between two that are due, or at the end: of many in a row nothing is known.
        let comes_along = |row: usize| is_slight(fetcher, row) && !is_due(row);
        let mut was_due = true;
        // What follows first: it is read soon more often than what lies before.
        while (is_due(rows.end) || was_due && comes_along(rows.end))
            && fits(&(rows.start..rows.end + 1))
        {
            was_due = is_due(rows.end);
            rows.end += 1;
        }
        was_due = true;
        while let Some(before) = rows.start.checked_sub(1)
            && (is_due(before) || was_due && comes_along(before))
            && fits(&(before..rows.end))
        {
            was_due = is_due(before);
            rows.start = before;
        }
        for due in rows.clone().filter_map(|row| near.get(&row)) {
            self.by_time.remove(due);
        }
        rows
    }
}

/// Whether a chunk is missing and costs next to nothing.
fn is_slight(fetcher: &Fetcher, row: usize) -> bool {
    let layer = fetcher.layer();
    let chunk = layer.index().chunk(row);
    chunk.is_some_and(|chunk| chunk.stored_len <= SLIGHT_BYTES_MAX)
        && layer.presence().state(row) == ChunkState::Absent
}
