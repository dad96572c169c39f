//! Deadlines, back-off and memory of failures, under a clock that only waiting moves.

use std::ops::Range;

use bytes::Bytes;
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};
use tempfile::TempDir;

use super::*;
use crate::config::DataPlaneConfig;
use crate::source::{Answer, Arrivals, BoxFuture, FailureKind, SourceFailure, ask, no_answer};
use crate::store::{Limits, NewLayer, StoreRoot};

const DEADLINE: Duration = Duration::from_secs(30);

/// From when on a read is slow.
const SLOW: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Mood {
    Honest,
    /// Honest, after so long.
    Late(Duration),
    Stalls,
    Misses,
    Fails(Option<Duration>),
    Refuses,
    /// Fails once, and stalls from then on.
    FailsOnce,
}

/// A source that notes when it was asked.
#[derive(Debug)]
pub(crate) struct Noting {
    name: &'static str,
    blob: Bytes,
    mood: Mutex<Mood>,
    begun: Instant,
    asked: Mutex<Vec<Duration>>,
}

impl Noting {
    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Milliseconds from the beginning to each request.
    fn asked(&self) -> Vec<u128> {
        let asked = self.asked.lock().unwrap();
        asked.iter().map(Duration::as_millis).collect()
    }
}

impl Source for Noting {
    fn name(&self) -> &str {
        self.name
    }

    fn get<'a>(&'a self, range: Range<u64>, _: &'a dyn Arrivals) -> BoxFuture<'a, Answer> {
        self.asked.lock().unwrap().push(self.begun.elapsed());
        let mood = *self.mood.lock().unwrap();
        let place = |at: u64| usize::try_from(at).unwrap();
        let bytes = self.blob.slice(place(range.start)..place(range.end));
        Box::pin(async move {
            match mood {
                Mood::Honest => bytes.into(),
                Mood::Late(time) => {
                    tokio::time::sleep(time).await;
                    bytes.into()
                }
                Mood::Misses => Answer::Miss,
                Mood::FailsOnce if self.asked().len() == 1 => Answer::Failed(SourceFailure {
                    reason: "connection refused".into(),
                    kind: FailureKind::Passing,
                    retry_after: None,
                }),
                Mood::Stalls | Mood::FailsOnce => std::future::pending().await,
                Mood::Refuses => Answer::Failed(SourceFailure {
                    reason: "wrong password".into(),
                    kind: FailureKind::Refused,
                    retry_after: None,
                }),
                Mood::Fails(retry_after) => Answer::Failed(SourceFailure {
                    reason: "it is on fire".into(),
                    kind: FailureKind::Passing,
                    retry_after,
                }),
            }
        })
    }
}

/// Has the sources it was given, and notes how often it was asked for them.
#[derive(Debug)]
struct Directory(Vec<Arc<dyn Source>>, Mutex<usize>);

impl Elsewhere for Directory {
    fn find(&self) -> BoxFuture<'_, Vec<Arc<dyn Source>>> {
        *self.1.lock().unwrap() += 1;
        Box::pin(async { self.0.clone() })
    }
}

/// A fetcher of a layer of four chunks on an empty store.
pub(crate) struct Scene {
    fixture: LayerFixture,
    pub(crate) fetcher: Arc<Fetcher>,
    begun: Instant,
    root: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::with(&["a", "b", "c"], 70_000)
    }

    /// The layer has files of these names and this size, in chunks that compress well.
    fn with(names: &[&str], size: usize) -> Self {
        Self::patient(names, size, DEADLINE)
    }

    /// The layer has forty of them.
    fn with_forty() -> Self {
        let names: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Self::with(&names, 70_000)
    }

    /// The same with another deadline.
    fn patient(names: &[&str], size: usize, deadline: Duration) -> Self {
        let file = |name: &str| Entry::file(name, vec![name.as_bytes()[0]; size]);
        let tar = names
            .iter()
            .fold(TarBuilder::new(), |tar, name| tar.entry(file(name)));
        Self::of(tar, deadline)
    }

    /// A layer of this tar.
    fn of(tar: TarBuilder, deadline: Duration) -> Self {
        let fixture = LayerFixture::new(tar.finish());
        let scratch = tempfile::tempdir().unwrap();
        let config = DataPlaneConfig::new(scratch.path());
        let limits = Limits {
            bytes_max: 0,
            min_free_percent: 0,
        };
        let root = StoreRoot::open(scratch.path(), config.disk, limits, None).unwrap();
        let tail = fixture
            .blob
            .slice(usize::try_from(fixture.index.offset).unwrap()..);
        let stored = &tail[..usize::try_from(fixture.index.stored_len).unwrap()];
        let index = larder_proto::index::open_stored(stored, &fixture.index).unwrap();
        let layer = root.add(&NewLayer {
            blob: fixture.digest,
            location: fixture.index,
            index: &index,
            slot: 1,
        });
        let fetcher = Fetcher::new(
            fixture.index.digest,
            Arc::new(layer.unwrap()),
            Vec::new(),
            None,
            FetchContext {
                deadline,
                refusals_last: Duration::from_secs(30),
                recent: Arc::new(Recent::new()),
                pace: Arc::new(Pace::new()),
                lanes: Arc::new(Lanes::new()),
                bandwidth: Arc::new(Bandwidth::new(None)),
                runtime: Handle::current(),
                counts: Arc::default(),
                slow: Arc::new(SlowReads::new(Some(SLOW))),
                observer: Arc::new(crate::observer::Logged),
            },
        );
        Self {
            fixture,
            fetcher: Arc::new(fetcher),
            begun: Instant::now(),
            root: scratch,
        }
    }

    pub(crate) fn source(&self, name: &'static str, mood: Mood) -> Arc<Noting> {
        Arc::new(Noting {
            name,
            blob: self.fixture.blob.clone(),
            mood: Mutex::new(mood),
            begun: self.begun,
            asked: Mutex::default(),
        })
    }

    pub(crate) fn set(&self, sources: &[&Arc<Noting>]) {
        let sources = sources
            .iter()
            .map(|&source| source.clone() as Arc<dyn Source>);
        self.fetcher.set_sources(sources.collect());
    }

    /// Reads one chunk; how it went, and how long it took.
    async fn read(&self, row: usize) -> (Result<(), Arc<FetchError>>, Duration) {
        self.read_all(row..row + 1).await
    }

    /// The same of several.
    async fn read_all(&self, rows: Range<usize>) -> (Result<(), Arc<FetchError>>, Duration) {
        let begun = Instant::now();
        let read = self.fetcher.request(rows, Priority::Demand).all().await;
        (read.map(drop), begun.elapsed())
    }
}

/// Promise: a read whose bytes do not come fails at its deadline, no sooner and no later, and says
/// who was asked and what came of it.
#[tokio::test(start_paused = true)]
async fn a_read_fails_at_its_deadline_with_the_reason() {
    let scene = Scene::new();
    let source = scene.source("only", Mood::Stalls);
    scene.set(&[&source]);
    let (read, waited) = scene.read(0).await;
    assert_eq!(waited, DEADLINE);
    let error = read.unwrap_err().to_string();
    assert!(error.contains("only: no answer within 10s"), "{error}");
    assert_eq!(source.asked(), [0, 10_100, 20_500]);
}

/// Promise: a read has one deadline for all its chunks, which are asked for together, by however many
/// requests: here twenty, of which sixteen fly at once.
#[tokio::test(start_paused = true)]
async fn a_read_of_many_chunks_has_one_deadline() {
    // Every second one is there, so that no two of the others are neighbours.
    let scene = async || {
        let scene = Scene::with_forty();
        scene.set(&[&scene.source("whole", Mood::Honest)]);
        for row in (0..40).step_by(2) {
            assert!(scene.read(row).await.0.is_ok());
        }
        scene
    };
    // Just in time for one attempt: the last four are asked for when the first have come.
    let (late, attempt) = (scene().await, Duration::from_secs(9));
    let source = late.source("only", Mood::Late(attempt));
    late.set(&[&source]);
    let (read, waited) = late.read_all(0..40).await;
    assert!(read.is_ok(), "{read:?}");
    assert_eq!((source.asked().len(), waited), (20, 2 * attempt));
    // Nine tenths of the deadline are too late for every attempt.
    let (scene, too_late) = (scene().await, DEADLINE.mul_f64(0.9));
    scene.set(&[&scene.source("only", Mood::Late(too_late))]);
    let (read, waited) = scene.read_all(0..40).await;
    let error = read.unwrap_err().to_string();
    assert!(error.contains("no answer within 10s"), "{error}");
    assert_eq!(waited, DEADLINE);
    // What the kernel asks for again, chunk by chunk, has its answer already.
    tokio::time::sleep(Duration::from_millis(1)).await;
    for row in 0..40 {
        let (read, waited) = scene.read(row).await;
        assert_eq!((read.is_ok(), waited), (row % 2 == 0, Duration::ZERO));
    }
}

/// Promise: a read of chunks that a former run left, and that wait to be verified, fails at its deadline,
/// too, however busy this node is.
#[test]
fn waiting_to_be_verified_ends_at_the_deadline() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    runtime.block_on(async {
        let deadline = Duration::from_millis(300);
        let scene = Scene::patient(&["a", "b"], 70_000, deadline);
        scene.set(&[&scene.source("only", Mood::Honest)]);
        assert!(scene.read(0).await.0.is_ok());
        scene.fetcher.layer().presence().set_claimed(0);
        let (release, held) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || held.recv());
        let read = tokio::time::timeout(Duration::from_secs(10), scene.read(0)).await;
        let (read, waited) = read.expect("it hangs");
        let error = read.unwrap_err().to_string();
        assert!(error.contains("is this node overloaded?"), "{error}");
        assert!(waited >= deadline, "{waited:?}");
        drop(release);
        let _ = busy.await;
    });
}

/// Promise: a failure that says something is not hidden by the silence after it, and what the
/// deadline itself cut off is not called silence.
#[tokio::test(start_paused = true)]
async fn silence_does_not_hide_the_failure_before_it() {
    let scene = Scene::new();
    scene.set(&[&scene.source("only", Mood::FailsOnce)]);
    let error = scene.read(0).await.0.unwrap_err().to_string();
    assert!(error.contains("only: connection refused;"), "{error}");
    assert!(error.contains("no answer within 10s"), "{error}");
    assert_eq!(error.matches("no answer").count(), 1, "{error}");
}

/// Promise: a read that joins an older fetch waits as long as any other: the deadline is its own. Who
/// asked first is answered at the first one, and the bytes are asked for once for both.
#[tokio::test(start_paused = true)]
async fn a_read_that_joins_a_fetch_has_a_deadline_of_its_own() {
    let scene = Scene::new();
    let source = scene.source("only", Mood::Fails(None));
    scene.set(&[&source]);
    let later = async |seconds| {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        scene.read(0).await
    };
    let heal = async {
        tokio::time::sleep(Duration::from_secs(35)).await;
        source.set(Mood::Honest);
    };
    let (first, soon, joined, ()) = tokio::join!(scene.read(0), later(0), later(20), heal);
    assert!(first.0.is_err() && soon.0.is_err());
    assert_eq!(first.1, DEADLINE);
    assert!(soon.1 + Duration::from_secs(1) > DEADLINE, "{:?}", soon.1);
    assert!(joined.0.is_ok(), "{:?}", joined.0);
    assert!(joined.1 < DEADLINE, "{:?}", joined.1);
    let after = source.asked().into_iter().filter(|at| *at > 35_000);
    assert_eq!(after.count(), 1, "{:?}", source.asked());
}

/// Promise: however many join one after the other, each is answered at its own deadline or at most a
/// thirty-second part of it before, never after.
#[tokio::test(start_paused = true)]
async fn everybody_who_joins_is_answered_in_time() {
    let scene = Scene::new();
    scene.set(&[&scene.source("only", Mood::Stalls)]);
    let reads = (0..400_u64).map(async |number| {
        tokio::time::sleep(Duration::from_millis(number * 70)).await;
        scene.read(0).await
    });
    for (read, waited) in futures_util::future::join_all(reads).await {
        let error = read.unwrap_err().to_string();
        assert!(error.contains("only: no answer"), "{error}");
        assert!(waited <= DEADLINE, "{waited:?}");
        assert!(waited + DEADLINE / 31 >= DEADLINE, "{waited:?}");
    }
}

/// Promise: where all sources refuse the credentials or lack the blob, reads fail at once and say so:
/// nothing comes before somebody logs in. One that may come back is waited for.
#[tokio::test(start_paused = true)]
async fn refused_credentials_fail_reads_at_once() {
    let scene = Scene::new();
    let (own, other) = (
        scene.source("own", Mood::Refuses),
        scene.source("other", Mood::Misses),
    );
    scene.set(&[&own, &other]);
    let (read, waited) = scene.read(0).await;
    let error = read.unwrap_err().to_string();
    assert_eq!(waited, Duration::ZERO);
    assert!(
        error.contains("own: wrong password; other: it does not"),
        "{error}"
    );
    assert_eq!((own.asked().len(), other.asked().len()), (1, 1));
    other.set(Mood::Fails(None));
    tokio::time::advance(Duration::from_secs(31)).await;
    assert_eq!(scene.read(1).await.1, DEADLINE);
    own.set(Mood::Honest);
    tokio::time::advance(FAILURE_REMEMBERED).await;
    assert!(scene.read(2).await.0.is_ok());
}

/// Promise: a call given up while its client waits for the next try tells what the last try got.
#[tokio::test]
async fn a_call_that_is_given_up_tells_what_its_last_try_got() {
    let registry = larder_test_support::registry::FakeRegistry::start().await;
    let scene = Scene::new();
    registry.push_blob(scene.fixture.blob.clone());
    registry.set_fault(larder_test_support::registry::Fault::Status(
        500,
        Some("30".into()),
    ));
    let client = larder_registry::Client::new(larder_registry::ClientOptions::default()).unwrap();
    let reference = registry.reference("team/app", "v1").parse().unwrap();
    let repository = client.repository(&reference);
    let source = crate::source::RegistrySource::new(repository, scene.fixture.digest);
    let asked = ask(&source, 0..10, &());
    assert!(
        tokio::time::timeout(Duration::from_secs(1), asked)
            .await
            .is_err()
    );
    let reason = no_answer(&source, Duration::from_secs(1));
    assert!(reason.contains("status 500"), "{reason}");
    assert!(reason.contains("no other answer within 1s"), "{reason}");
    registry.clear_faults();
    assert!(ask(&source, 0..10, &()).await.is_ok());
    assert_eq!(source.trouble(), None);
}

/// Promise: a stalled source costs a third of the deadline, and later reads nothing.
#[tokio::test(start_paused = true)]
async fn a_stalled_source_delays_one_read_in_thirty_seconds() {
    let scene = Scene::new();
    let (stalls, honest) = (
        scene.source("a", Mood::Stalls),
        scene.source("b", Mood::Honest),
    );
    scene.set(&[&stalls, &honest]);
    let (read, waited) = scene.read(0).await;
    assert!(read.is_ok());
    assert_eq!(waited, DEADLINE / 3);
    let (read, waited) = scene.read(1).await;
    assert!(read.is_ok());
    assert_eq!(waited, Duration::ZERO);
    assert_eq!(stalls.asked(), [0]);
    tokio::time::advance(Duration::from_secs(31)).await;
    stalls.set(Mood::Honest);
    assert!(scene.read(2).await.0.is_ok());
    assert_eq!(stalls.asked(), [0, 41_000], "asked first again");
}

/// Promise: a source that fails is asked again after growing pauses, six times in thirty seconds.
#[tokio::test(start_paused = true)]
async fn pauses_between_rounds_grow_up_to_sixteen_seconds() {
    let scene = Scene::new();
    let source = scene.source("only", Mood::Fails(None));
    scene.set(&[&source]);
    let (read, waited) = scene.read(0).await;
    assert!(read.is_err());
    assert_eq!(waited, DEADLINE);
    assert_eq!(source.asked(), [0, 100, 500, 2100, 8500, 24_500]);
}

/// Reads one after the other.
const READS: usize = 10;

/// Regression: each of them asked eleven times.
///
/// Promise: one reader who reads on while everything fails asks at most three times for what it would ask
/// once; when the source is back, who waits learns it within sixteen seconds.
#[tokio::test(start_paused = true)]
async fn a_reader_who_reads_on_in_an_outage_asks_at_most_three_times_as_often() {
    let scene = Scene::with_forty();
    let source = scene.source("only", Mood::Fails(None));
    scene.set(&[&source]);
    for number in 0..READS {
        // Far enough from each other that none fails because the one before it did.
        let (read, waited) = scene.read(number * 4).await;
        assert!(read.is_err());
        assert_eq!(waited, DEADLINE, "{number}");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let asked = source.asked().len();
    assert!(asked <= 6 + 2 * (READS - 1), "{asked}");
    let (read, ()) = tokio::join!(scene.read(1), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        source.set(Mood::Honest);
    });
    let (read, waited) = read;
    assert!(read.is_ok());
    assert!(waited <= Duration::from_secs(16), "{waited:?}");
}

/// Promise: a registry that asks for time gets it, within reason.
#[tokio::test(start_paused = true)]
async fn retry_after_is_kept_up_to_sixteen_seconds() {
    for (asked_for, second) in [(3, 3000), (60, 16_000)] {
        let scene = Scene::new();
        let source = scene.source("only", Mood::Fails(Some(Duration::from_secs(asked_for))));
        scene.set(&[&source]);
        assert!(scene.read(0).await.0.is_err());
        assert_eq!(source.asked()[..2], [0, second]);
    }
}

/// Promise: what failed fails at once for a second, so that the kernel's repetitions do not wait for the
/// deadline again, and so do the chunks behind it that the kernel reads ahead for the same read; then it is
/// tried anew, and other chunks were never affected.
#[tokio::test(start_paused = true)]
async fn a_failure_is_remembered_for_a_second_for_its_chunk_and_those_read_with_it() {
    let scene = Scene::with_forty();
    let source = scene.source("only", Mood::Fails(None));
    scene.set(&[&source]);
    assert!(scene.read(10).await.0.is_err());
    source.set(Mood::Honest);
    tokio::time::advance(Duration::from_millis(900)).await;
    let index = scene.fetcher.layer().index();
    let read_on = index.chunk(10).unwrap().end() + READ_ON_MAX;
    let far = (10..index.chunk_count()).find(|&row| index.chunk(row).unwrap().offset >= read_on);
    let far = far.unwrap();
    for row in [10, 11, far - 1] {
        let (again, waited) = scene.read(row).await;
        assert!(again.is_err(), "{row}");
        assert_eq!(waited, Duration::ZERO);
    }
    assert!(scene.read(9).await.0.is_ok());
    assert!(scene.read(far).await.0.is_ok());
    tokio::time::advance(Duration::from_millis(101)).await;
    assert!(scene.read(10).await.0.is_ok());
    assert!(scene.read(11).await.0.is_ok());
}

/// Promise: new sources are used at once, whatever failed before.
#[tokio::test(start_paused = true)]
async fn new_sources_end_the_memory_of_failures() {
    let scene = Scene::new();
    scene.set(&[&scene.source("bad", Mood::Misses)]);
    assert!(scene.read(0).await.0.is_err());
    scene.set(&[&scene.source("good", Mood::Honest)]);
    let (read, waited) = scene.read(0).await;
    assert!(read.is_ok());
    assert_eq!(waited, Duration::ZERO);
}

/// Promise: other repositories are looked for only when no known source delivers, by one read for
/// all, at most every thirty seconds; one that delivers is then asked first.
#[tokio::test(start_paused = true)]
async fn further_sources_are_looked_for_when_none_delivers() {
    let scene = Scene::new();
    let (own, other) = (
        scene.source("own", Mood::Honest),
        scene.source("other", Mood::Misses),
    );
    let directory = Arc::new(Directory(
        vec![own.clone(), other.clone()],
        Mutex::default(),
    ));
    let looked = || *directory.1.lock().unwrap();
    scene.set(&[&own]);
    scene.fetcher.set_elsewhere(Some(directory.clone()));
    assert!(scene.read(0).await.0.is_ok());
    assert_eq!(looked(), 0);

    own.set(Mood::Misses);
    assert!(scene.read(1).await.0.is_err());
    // At its beginning; who has no such blob is not asked again for a while.
    assert_eq!(looked(), 1);
    tokio::time::advance(Duration::from_secs(31)).await;

    other.set(Mood::Honest);
    own.asked.lock().unwrap().clear();
    let (b, c) = tokio::join!(scene.read(2), scene.read(3));
    assert!(b.0.is_ok() && c.0.is_ok());
    assert_eq!(b.1, Duration::ZERO);
    assert_eq!(looked(), 1);
    let names = scene.fetcher.sources().all();
    let names: Vec<_> = names.iter().map(|tracked| tracked.source.name()).collect();
    assert_eq!(names, ["own", "other"], "each once");
}

/// Promise: one request never brings more than can be verified in a moment, however well it is
/// compressed. Of 64 MB of zeros, all came in one, and missed its deadline on a busy node.
#[tokio::test(start_paused = true)]
async fn a_run_is_bounded_by_its_content_too() {
    let scene = Scene::with(&["a"], 40 << 20);
    let index = scene.fetcher.layer().index();
    let rows: Vec<_> = (0..index.chunk_count()).collect();
    let runs = scene.fetcher.neighbours(&rows);
    assert_eq!(runs.len(), 3);
    for run in &runs {
        let content: u64 = run
            .clone()
            .map(|row| u64::from(index.chunk(row).unwrap().len))
            .sum();
        assert!(content <= RUN_CONTENT_MAX, "{content}");
    }
    assert!(runs.iter().flat_map(Clone::clone).eq(rows));
    let source = scene.source("only", Mood::Honest);
    scene.set(&[&source]);
    scene.fetcher.fetch_all().await.unwrap();
    assert_eq!(source.asked().len(), 3);
}

/// Promise: nobody but root reads what images hold, whatever the process's umask is.
#[tokio::test]
async fn every_file_of_a_layer_is_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    scene.set(&[&scene.source("only", Mood::Honest)]);
    scene.fetcher.fetch_all().await.unwrap();
    scene.fetcher.layer().sync().unwrap();
    let mut left = vec![scene.root.path().to_owned()];
    let mut files = 0;
    while let Some(path) = left.pop() {
        let found = std::fs::symlink_metadata(&path).unwrap();
        let mode = found.permissions().mode() & 0o777;
        if found.is_dir() {
            assert_eq!(mode, 0o700, "{}", path.display());
            let entries = std::fs::read_dir(&path).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        } else {
            assert_eq!(mode, 0o600, "{}", path.display());
            files += 1;
        }
    }
    assert!(files >= 4, "only {files} files");
}

/// Promise: a source that has no such blob is asked twice in thirty seconds, whoever reads; a read fails when
/// that is certain, and afterwards at once. One that said no for a moment is believed when it says yes.
#[tokio::test(start_paused = true)]
async fn a_source_that_says_no_is_asked_twice() {
    let scene = Scene::new();
    let source = scene.source("only", Mood::Misses);
    scene.set(&[&source]);
    let (a, b, c) = tokio::join!(scene.read(0), scene.read(1), scene.read(2));
    for (read, waited) in [a, b, c] {
        let error = read.unwrap_err().to_string();
        assert!(error.contains("only: it does not have the blob"), "{error}");
        assert!(waited <= Duration::from_millis(2100), "{waited:?}");
    }
    let looks = source.asked();
    assert_eq!(looks.iter().filter(|at| **at > 0).count(), 1, "{looks:?}");
    tokio::time::advance(Duration::from_secs(20)).await;
    let (read, waited) = scene.read(0).await;
    assert!(read.is_err());
    assert_eq!(waited, Duration::ZERO);
    assert_eq!(source.asked().len(), looks.len());
    tokio::time::advance(Duration::from_secs(10)).await;
    source.set(Mood::Honest);
    assert!(scene.read(1).await.0.is_ok());

    let scene = Scene::new();
    let source = scene.source("only", Mood::Misses);
    scene.set(&[&source]);
    let heal = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        source.set(Mood::Honest);
    };
    let (a, b, ()) = tokio::join!(scene.read(0), scene.read(1), heal);
    assert!(a.0.is_ok() && b.0.is_ok());
    assert!(b.1 <= Duration::from_millis(2200), "{:?}", b.1);
}

/// Promise: however many reads wait for a dead source, it is asked once for each, and then by one of them at a
/// time, by the schedule of one read; when it is back, all have their bytes at once.
#[tokio::test(start_paused = true)]
async fn reads_that_wait_share_one_schedule() {
    let scene = Scene::with_forty();
    let source = scene.source("only", Mood::Fails(None));
    scene.set(&[&source]);
    let reads = (1..40).map(|row| scene.read(row));
    let heal = async {
        tokio::time::sleep(Duration::from_secs(17)).await;
        let asked = source.asked().len();
        // 39 first tries; 100 ms, 500 ms, … 8.5 s.
        assert!(asked <= 39 + 4, "{asked}");
        source.set(Mood::Honest);
    };
    let (read, ()) = tokio::join!(futures_util::future::join_all(reads), heal);
    assert!(read.iter().all(|(read, _)| read.is_ok()));
    let last = read.iter().map(|(_, waited)| *waited).max().unwrap();
    assert!(last < Duration::from_secs(25), "{last:?}");
}

/// Promise: what lies around a third wait that is close to two others comes with it over a long way; not before, and not
/// over a link of which nothing is known.
#[tokio::test(start_paused = true)]
async fn what_lies_around_close_waits_comes_along() {
    let scene = Scene::with_forty();
    let source = scene.source("far", Mood::Late(Duration::from_millis(50)));
    scene.set(&[&source]);
    let present = |rows: std::ops::Range<usize>| {
        let presence = scene.fetcher.layer().presence();
        rows.filter(|&row| presence.state(row) == crate::store::ChunkState::Verified)
            .collect::<Vec<_>>()
    };
    let read = async |row: usize| {
        assert!(scene.read(row).await.0.is_ok());
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    // Of a link that nobody has measured nothing is guessed.
    for row in [3, 1, 5] {
        read(row).await;
    }
    assert_eq!(present(0..12), [1, 3, 5]);
    let asked = scene.fetcher.lane().unwrap().ask();
    tokio::time::sleep(Duration::from_millis(50)).await;
    asked.arrived(1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    asked.arrived(5_000_000);
    drop(asked);
    for row in [30, 34] {
        read(row).await;
    }
    assert_eq!(present(22..40), [30, 34]);
    read(32).await;
    assert_eq!(present(22..40), [28, 29, 30, 31, 32, 33, 34, 35, 36]);
}

/// Regression: what a source delivered to requests that were under way while the sources were set again was not counted.
///
/// Promise: what a source delivers counts, also where the sources were set again since it was asked.
#[tokio::test(start_paused = true)]
async fn deliveries_count_across_a_change_of_sources() {
    let scene = Scene::new();
    let source = scene.source("only", Mood::Honest);
    scene.set(&[&source]);
    let asked = scene.fetcher.sources().all()[0].clone();
    scene.set(&[&source]);
    asked.delivered(Some("host"), 7);
    assert!(scene.read(0).await.0.is_ok());
    let told = scene.fetcher.sources().all()[0].deliveries();
    let read = u64::from(scene.fetcher.layer().index().chunk(0).unwrap().stored_len);
    assert_eq!(told.bytes, 7 + read);
    assert_eq!(told.hosts[0], ("host".to_owned(), 7));
}

mod order;
