//! Recording what a start reads: which chunks of which layers, in which order, and when.
//!
//! ```text
//! FUSE read ─▶ Listeners of the layer ─▶ Track of each recording ─▶ first reads, by one clock
//!                 (nobody listens: one look at a flag)
//! ```
//!
//! What comes here are the kernel's requests. It reads ahead, so neighbours of what a process reads look
//! read as well; and what it has cached already, it does not ask for.

mod settling;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;

use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use larder_proto::access::{ACCESSES_MAX, Access};
use larder_proto::profile::{LayerReads, READS_MAX};

use crate::fetch::Fetcher;
use crate::layer::Layer;
use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::time::Instant;
use crate::sync::{Mutex, MutexGuard};

pub use settling::Settling;

/// Chunks of which one word says whether they were read.
const PER_WORD: usize = 64;

/// How often it is looked for the end of a start within a pause: that is how exact the end is.
const LOOKS: u32 = 8;

/// Who wants to know what is read of a layer. Costs a read one look at a flag while nobody does.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    any: AtomicBool,
    tracks: Mutex<Vec<Arc<Track>>>,
}

impl Listeners {
    /// The kernel asked for these chunks. For FUSE threads: never waits.
    pub(crate) fn read(&self, rows: impl Iterator<Item = usize>) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let tracks = self.lock();
        for row in rows {
            for track in &*tracks {
                track.note(row);
            }
        }
    }

    fn add(&self, track: Arc<Track>) {
        let mut tracks = self.lock();
        tracks.push(track);
        self.any.store(true, Ordering::Relaxed);
    }

    fn remove(&self, track: &Arc<Track>) {
        let mut tracks = self.lock();
        tracks.retain(|one| !Arc::ptr_eq(one, track));
        self.any.store(!tracks.is_empty(), Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Track>>> {
        self.tracks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clock of a recording, one for all of its layers.
#[derive(Debug)]
struct Clock {
    began: Instant,
    /// Microseconds until the latest first read, one more so that 0 is none yet.
    latest: AtomicU64,
    reads: AtomicUsize,
}

impl Clock {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            latest: AtomicU64::new(0),
            reads: AtomicUsize::new(0),
        }
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }

    /// When the latest first read was; `None` before there is one.
    fn latest(&self) -> Option<Duration> {
        let latest = self.latest.load(Ordering::Relaxed).checked_sub(1)?;
        Some(Duration::from_micros(latest))
    }

    /// Whether a profile has no room for more.
    fn is_full(&self) -> bool {
        self.reads.load(Ordering::Relaxed) >= READS_MAX
    }
}

/// What one recording has heard of one layer.
#[derive(Debug)]
struct Track {
    clock: Arc<Clock>,
    chunks: usize,
    /// A bit for each chunk that was read.
    seen: Box<[AtomicU64]>,
    reads: Mutex<Vec<Access>>,
}

impl Track {
    fn new(clock: &Arc<Clock>, chunks: usize) -> Arc<Self> {
        let words = chunks.div_ceil(PER_WORD);
        Arc::new(Self {
            clock: clock.clone(),
            chunks,
            seen: (0..words).map(|_| AtomicU64::new(0)).collect(),
            reads: Mutex::default(),
        })
    }

    fn note(&self, row: usize) {
        let (Some(word), bit) = (self.seen.get(row / PER_WORD), 1 << (row % PER_WORD)) else {
            return;
        };
        if word.load(Ordering::Relaxed) & bit != 0
            || word.fetch_or(bit, Ordering::Relaxed) & bit != 0
        {
            return;
        }
        let Ok(chunk) = u32::try_from(row) else {
            return;
        };
        let micros = self.clock.micros();
        self.clock.latest.fetch_max(micros + 1, Ordering::Relaxed);
        let mut reads = self.lock();
        if reads.len() < ACCESSES_MAX && !self.clock.is_full() {
            self.clock.reads.fetch_add(1, Ordering::Relaxed);
            reads.push(Access { micros, chunk });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Access>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One layer of a recording. Does not keep it: what is removed while it is recorded goes.
#[derive(Debug)]
struct Listening {
    told: LayerReads,
    fetcher: Weak<Fetcher>,
    track: Arc<Track>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(fetcher) = self.fetcher.upgrade() {
            fetcher.listeners().remove(&self.track);
        }
    }
}

/// What was recorded of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// The layer and its first reads, in the order of their time.
    pub layer: LayerReads,
    /// How many chunks it has.
    pub chunks: usize,
    /// Whether all reads came here: the kernel may read the file of a complete layer itself.
    pub is_whole: bool,
}

/// A start that is being recorded; dropping it ends that. Any number may listen to a layer.
#[derive(Debug)]
pub struct Recording {
    clock: Arc<Clock>,
    layers: Vec<Listening>,
}

impl Recording {
    /// Notes from now on what is read of `layers`, each of which is there once.
    pub fn begin(layers: &[Layer]) -> Self {
        let clock = Arc::new(Clock::new());
        let listening = layers.iter().map(|layer| {
            let told = LayerReads {
                index: layer.id().0,
                blob: layer.blob(),
                diff_id: layer.diff_id(),
                reads: Vec::new(),
            };
            Listening::begin(&clock, told, &layer.0.fetcher)
        });
        Self {
            layers: listening.collect(),
            clock,
        }
    }

    /// How many chunks were read so far.
    pub fn reads(&self) -> usize {
        self.clock.reads.load(Ordering::Relaxed)
    }

    /// Waits until the start is over, as far as reads tell.
    pub async fn settled(&self, settling: &Settling) {
        loop {
            let passed = self.clock.began.elapsed();
            let over = settling.over(self.clock.latest());
            let left = over.saturating_sub(passed);
            if left.is_zero() || self.clock.is_full() {
                return;
            }
            // What is read meanwhile moves the end, to an earlier moment if it is the first read.
            let look = settling.pause / LOOKS;
            crate::sync::time::sleep(look.min(left)).await;
        }
    }

    /// Ends it; what was read.
    pub fn finish(mut self) -> Vec<Recorded> {
        let finished = self.layers.iter_mut().map(|listening| {
            let mut layer = listening.told.clone();
            layer.reads = std::mem::take(&mut *listening.track.lock());
            layer.reads.sort_by_key(|read| read.micros);
            let fetcher = listening.fetcher.upgrade();
            let is_direct = fetcher.is_none_or(|fetcher| fetcher.layer().is_direct());
            Recorded {
                layer,
                chunks: listening.track.chunks,
                is_whole: !is_direct,
            }
        });
        finished.collect()
    }
}

impl Listening {
    fn begin(clock: &Arc<Clock>, told: LayerReads, fetcher: &Arc<Fetcher>) -> Self {
        let track = Track::new(clock, fetcher.layer().index().chunk_count());
        fetcher.listeners().add(track.clone());
        Self {
            told,
            fetcher: Arc::downgrade(fetcher),
            track,
        }
    }
}
