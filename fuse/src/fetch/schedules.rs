//! Fetching under the orders of events that shuttle comes to; see `crate::sync`.

use std::ops::Range;
use std::sync::Mutex as StdMutex;

use bytes::Bytes;
use larder_schedules::shuttle::future::{JoinHandle, block_on, spawn as start, yield_now};
use larder_schedules::shuttle::rand::{Rng, thread_rng};
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};
use tempfile::TempDir;

use super::*;
use crate::source::{Answer, Arrivals, BoxFuture};
use crate::store::{Disk, Limits, NewLayer, StdDisk, StoreRoot};
use crate::sync::{all_tasks_ended, schedules, time};

const DEADLINE: Duration = Duration::from_secs(30);

/// How much earlier than its deadline a read that shares another's may be answered.
const SHARED: Duration = Duration::from_secs(1);

const LIMITS: Limits = Limits {
    bytes_max: 0,
    min_free_percent: 0,
};

/// A layer of four chunks in a store, made once and emptied for each schedule.
struct Prepared {
    fixture: LayerFixture,
    index: Vec<u8>,
    scratch: TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Prepared {
    fn new() -> Arc<Self> {
        let file = |name: &str| Entry::file(name, vec![name.as_bytes()[0]; 70_000]);
        let tar = ["a", "b", "c"]
            .iter()
            .fold(TarBuilder::new(), |tar, name| tar.entry(file(name)));
        let fixture = LayerFixture::new(tar.finish());
        Arc::new(Self {
            index: fixture.decoded_index(),
            fixture,
            scratch: tempfile::tempdir().unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .build()
                .unwrap(),
        })
    }

    fn rows(&self) -> usize {
        self.fixture.chunks.len()
    }

    /// A fetcher of the layer, of which nothing is there.
    fn fetcher(&self, disk: Arc<dyn Disk>, source: &Arc<Odd>) -> Arc<Fetcher> {
        let directory = self
            .scratch
            .path()
            .join("store")
            .join(self.fixture.index.digest.hex());
        for left in ["device", "present"] {
            drop(std::fs::remove_file(directory.join(left)));
        }
        let root = StoreRoot::open(self.scratch.path(), disk, LIMITS, None).unwrap();
        let layer = root.add(&NewLayer {
            blob: self.fixture.digest,
            location: self.fixture.index,
            index: &self.index,
            slot: 1,
        });
        Arc::new(Fetcher::new(
            self.fixture.index.digest,
            Arc::new(layer.unwrap()),
            vec![source.clone()],
            None,
            FetchContext {
                deadline: DEADLINE,
                refusals_last: Duration::from_secs(30),
                recent: Arc::new(Recent::new()),
                pace: Arc::new(Pace::new()),
                lanes: Arc::new(Lanes::new()),
                bandwidth: Arc::new(Bandwidth::new(None)),
                runtime: self.runtime.handle().clone(),
                counts: Arc::default(),
                slow: Arc::new(SlowReads::new(None)),
                observer: Arc::new(crate::observer::Logged),
            },
        ))
    }

    fn source(
        &self,
        mood: impl Fn(&Range<u64>, usize) -> Mood + Send + Sync + 'static,
    ) -> Arc<Odd> {
        Arc::new(Odd {
            blob: self.fixture.blob.clone(),
            mood: Box::new(mood),
            asked: StdMutex::default(),
        })
    }

    /// How often each chunk was asked for.
    fn asked(&self, source: &Odd) -> Vec<usize> {
        let asked = source.asked.lock().unwrap();
        let times = |chunk: &larder_proto::index::Chunk| {
            let of = chunk.stored_range();
            asked
                .iter()
                .filter(|range| range.start < of.end && of.start < range.end)
                .count()
        };
        self.fixture.chunks.iter().map(times).collect()
    }

    /// The bytes of a chunk as they must be.
    fn content(&self, row: usize) -> &[u8] {
        let chunk = &self.fixture.chunks[row];
        let place = |at: u64| usize::try_from(at).unwrap();
        &self.fixture.tar[place(chunk.offset)..place(chunk.end())]
    }

    /// Whether the store says that it has a chunk; panics if it has not its bytes then.
    fn is_stored(&self, fetcher: &Fetcher, row: usize) -> bool {
        let expected = self.content(row);
        let mut found = vec![0; expected.len()];
        let at = self.fixture.chunks[row].offset;
        let read = |there: &mut crate::store::There<'_>| {
            there.read(&mut found, at);
            Ok(())
        };
        let is_there = fetcher.layer().read_there(std::iter::once(row), read);
        let is_there = is_there.unwrap();
        assert!(
            !is_there || found == expected,
            "chunk {row} is seen before its bytes"
        );
        is_there
    }

    /// A reader of `rows`, which checks what it gets.
    fn reader(self: &Arc<Self>, fetcher: &Arc<Fetcher>, rows: Range<usize>) -> Reading {
        let (scene, fetcher) = (self.clone(), fetcher.clone());
        start(async move {
            let held = fetcher
                .request(rows.clone(), Priority::Demand)
                .all()
                .await?;
            for row in rows {
                match held.iter().find(|(other, _)| *other == row) {
                    Some((_, content)) => assert!(content.as_slice() == scene.content(row)),
                    None => assert!(scene.is_stored(&fetcher, row), "chunk {row} is not there"),
                }
            }
            Ok(())
        })
    }

    /// Somebody who reads whatever the store says it has, all the time.
    fn watcher(self: &Arc<Self>, fetcher: &Arc<Fetcher>) -> JoinHandle<()> {
        let (scene, fetcher) = (self.clone(), fetcher.clone());
        start(async move {
            for row in (0..scene.rows()).chain(0..scene.rows()) {
                scene.is_stored(&fetcher, row);
                yield_now().await;
            }
        })
    }
}

type Reading = JoinHandle<Result<(), Arc<FetchError>>>;

fn ended(reading: Reading) -> Result<(), Arc<FetchError>> {
    block_on(reading).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Honest,
    Lies,
    Stalls,
}

/// A source with a mood for each range and each time it is asked.
struct Odd {
    blob: Bytes,
    mood: Box<dyn Fn(&Range<u64>, usize) -> Mood + Send + Sync>,
    asked: StdMutex<Vec<Range<u64>>>,
}

impl std::fmt::Debug for Odd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Odd")
    }
}

impl Source for Odd {
    fn name(&self) -> &'static str {
        "odd"
    }

    fn get<'a>(&'a self, range: Range<u64>, _: &'a dyn Arrivals) -> BoxFuture<'a, Answer> {
        let times = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(range.clone());
            asked.len()
        };
        let mood = (self.mood)(&range, times);
        let place = |at: u64| usize::try_from(at).unwrap();
        let bytes = self.blob.slice(place(range.start)..place(range.end));
        Box::pin(async move {
            yield_now().await;
            match mood {
                Mood::Honest => bytes.into(),
                Mood::Lies => bytes.iter().map(|byte| !byte).collect::<Bytes>().into(),
                Mood::Stalls => std::future::pending().await,
            }
        })
    }
}

/// Lets the time pass until the flag is raised.
fn let_time_pass() -> (Arc<AtomicBool>, JoinHandle<()>) {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let passing = start(async move {
        while !seen.load(Ordering::Acquire) {
            time::pass();
            yield_now().await;
        }
    });
    (stop, passing)
}

/// Promise: however readers and the completion of a layer meet, each chunk is fetched once, each
/// reader is answered, with the right bytes, and nobody sees a chunk before its bytes are there.
#[test]
fn each_chunk_is_fetched_once_and_seen_only_whole() {
    let scene = Prepared::new();
    schedules(move || {
        let source = scene.source(|_, _| Mood::Honest);
        let fetcher = scene.fetcher(Arc::new(StdDisk), &source);
        let watcher = scene.watcher(&fetcher);
        let completing = fetcher.clone();
        let completing = start(async move { completing.fetch_all().await });
        let readers = [0..2, 1..4].map(|rows| scene.reader(&fetcher, rows));
        for reader in readers {
            ended(reader).unwrap();
        }
        block_on(completing).unwrap().unwrap();
        block_on(watcher).unwrap();
        block_on(fetcher.completed());
        // Zeros are there from the beginning.
        let once = (0..scene.rows())
            .map(|row| usize::from(scene.content(row).iter().any(|&byte| byte != 0)));
        assert_eq!(scene.asked(&source), once.collect::<Vec<_>>());
        assert!(fetcher.layer().presence().all_verified());
    });
}

/// Promise: when nothing comes, every reader is answered, once and not before its own time, however
/// readers and the clock meet; then nothing of the fetch is left.
#[test]
fn every_reader_is_answered_and_not_before_its_time() {
    let scene = Prepared::new();
    schedules(move || {
        let source = scene.source(|_, _| Mood::Stalls);
        let fetcher = scene.fetcher(Arc::new(StdDisk), &source);
        // When a read failed, by the clock of its end.
        let failed: Arc<StdMutex<Vec<Instant>>> = Arc::default();
        let readers = [0..2, 1..2, 1..3].map(|rows| {
            let (scene, fetcher, failed) = (scene.clone(), fetcher.clone(), failed.clone());
            start(async move {
                let asked = Instant::now();
                let read = scene.reader(&fetcher, rows).await.unwrap();
                let waited = asked.elapsed();
                let before = std::mem::take(&mut *failed.lock().unwrap());
                // What failed within the last second fails at once.
                let remembered = before.iter().any(|at| *at + FAILURE_REMEMBERED > asked);
                assert!(read.is_err());
                assert!(
                    waited + SHARED >= DEADLINE || remembered,
                    "answered after {waited:?}"
                );
                let mut failed = failed.lock().unwrap();
                failed.extend(before);
                failed.push(Instant::now());
            })
        });
        let (stop, passing) = let_time_pass();
        for reader in readers {
            block_on(reader).unwrap();
        }
        all_tasks_ended();
        stop.store(true, Ordering::Release);
        block_on(passing).unwrap();
        assert_eq!(failed.lock().unwrap().len(), 3);
    });
}

/// Promise: a failure is remembered for its own chunk and those behind it, and until there are other
/// sources.
#[test]
fn a_failure_is_remembered_for_its_chunk_and_those_behind() {
    let scene = Prepared::new();
    let stalled = scene.fixture.chunks[1].stored_range();
    let asked_again = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = asked_again.clone();
    schedules(move || {
        let stalled = stalled.clone();
        let within = move |range: &Range<u64>, _| {
            let hit = range.start < stalled.end && stalled.start < range.end;
            if hit { Mood::Stalls } else { Mood::Honest }
        };
        let source = scene.source(within);
        let fetcher = scene.fetcher(Arc::new(StdDisk), &source);
        let readers = [1..2, 1..2].map(|rows| scene.reader(&fetcher, rows));
        let (stop, passing) = let_time_pass();
        for reader in readers {
            ended(reader).unwrap_err();
        }
        all_tasks_ended();
        stop.store(true, Ordering::Release);
        block_on(passing).unwrap();
        let asked = scene.asked(&source)[1];
        // The clock stands: whoever is answered now did not wait.
        let before = scene.reader(&fetcher, 0..1);
        // It may have gone on for more than that second before it stood.
        if fetcher
            .lock_flights()
            .failure(1..2, Instant::now())
            .is_some()
        {
            counted.fetch_add(1, Ordering::Relaxed);
            for rows in [1..2, 2..4] {
                ended(scene.reader(&fetcher, rows)).unwrap_err();
            }
        }
        ended(before).unwrap();
        assert_eq!(
            scene.asked(&source)[1],
            asked,
            "what just failed is not asked for again"
        );
        let honest = scene.source(|_, _| Mood::Honest);
        fetcher.set_sources(vec![honest.clone()]);
        ended(scene.reader(&fetcher, 0..4)).unwrap();
        assert_eq!(scene.asked(&honest)[..4], [0, 1, 1, 1]);
    });
    assert!(asked_again.load(Ordering::Relaxed) > 0);
}

/// Promise: bytes that are not the chunk's are seen by nobody, whoever asks meanwhile; who is given
/// up is given up for the deadline alone.
#[test]
fn a_lie_is_seen_by_nobody() {
    let scene = Prepared::new();
    schedules(move || {
        let lies = |_: &Range<u64>, times| if times < 3 { Mood::Lies } else { Mood::Honest };
        let source = scene.source(lies);
        let fetcher = scene.fetcher(Arc::new(StdDisk), &source);
        let watcher = scene.watcher(&fetcher);
        let readers = [0..3, 2..4].map(|rows| scene.reader(&fetcher, rows));
        let (stop, passing) = let_time_pass();
        for reader in readers {
            if let Err(error) = ended(reader) {
                assert!(matches!(*error, FetchError::Deadline { .. }), "{error}");
            }
        }
        all_tasks_ended();
        stop.store(true, Ordering::Release);
        block_on(passing).unwrap();
        block_on(watcher).unwrap();
    });
}

/// A disk on which any write may fail.
#[derive(Debug)]
struct Failing;

impl Disk for Failing {
    fn write_at(&self, file: &std::fs::File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
        if thread_rng().gen_bool(0.3) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        StdDisk.write_at(file, bytes, offset)
    }
}

/// Promise: where the store takes some chunks and others not, every reader has its bytes all the
/// same, from the store or from memory.
#[test]
fn a_disk_that_fills_up_costs_no_read() {
    let scene = Prepared::new();
    schedules(move || {
        let source = scene.source(|_, _| Mood::Honest);
        if !scene.scratch.path().join("store").exists() {
            // The files of the layer are written on a good disk.
            drop(scene.fetcher(Arc::new(StdDisk), &source));
        }
        let fetcher = scene.fetcher(Arc::new(Failing), &source);
        let watcher = scene.watcher(&fetcher);
        let readers = [0..2, 1..4, 0..1].map(|rows| scene.reader(&fetcher, rows));
        for reader in readers {
            ended(reader).unwrap();
        }
        block_on(watcher).unwrap();
    });
}
