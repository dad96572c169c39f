//! What goes first, and what is there before the rest has come.

use larder_proto::access::Access;

use super::*;
use crate::fetch::replay::Replays;
use crate::source::Arrivals;

/// Shows what it has, a part at a time.
#[derive(Debug)]
struct Trickling {
    blob: Bytes,
    /// Bytes it shows at a time, a second apart.
    step: usize,
    /// After so many bytes it fails.
    fails_after: Mutex<Option<usize>>,
    asked: Mutex<Vec<Range<u64>>>,
}

impl Trickling {
    fn new(scene: &Scene, step: usize) -> Arc<Self> {
        let source = Arc::new(Self {
            blob: scene.fixture.blob.clone(),
            step,
            fails_after: Mutex::default(),
            asked: Mutex::default(),
        });
        scene.fetcher.set_sources(vec![source.clone()]);
        source
    }

    fn asked(&self) -> Vec<Range<u64>> {
        self.asked.lock().unwrap().clone()
    }

    /// The first rows of what was asked for.
    fn asked_rows(&self, scene: &Scene) -> Vec<usize> {
        let index = scene.fetcher.layer().index();
        let begins = |at: u64| {
            let mut rows = 0..index.chunk_count();
            rows.find(|row| index.chunk(*row).unwrap().stored_range().start == at)
        };
        let asked = self.asked().into_iter();
        asked.map(|range| begins(range.start).unwrap()).collect()
    }
}

impl Source for Trickling {
    fn name(&self) -> &'static str {
        "trickling"
    }

    fn get<'a>(&'a self, range: Range<u64>, arrivals: &'a dyn Arrivals) -> BoxFuture<'a, Answer> {
        self.asked.lock().unwrap().push(range.clone());
        let place = |at: u64| usize::try_from(at).unwrap();
        let bytes = self.blob.slice(place(range.start)..place(range.end));
        let fails_after = *self.fails_after.lock().unwrap();
        Box::pin(async move {
            for end in (self.step..bytes.len()).step_by(self.step) {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if fails_after.is_some_and(|most| end > most) {
                    return Answer::Failed(SourceFailure {
                        reason: "connection reset".into(),
                        kind: FailureKind::Passing,
                        retry_after: None,
                    });
                }
                arrivals.arrived(&bytes[..end], None);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            bytes.into()
        })
    }
}

/// A layer of files that do not compress, of 200 kB each.
fn scene() -> Scene {
    let mut state = 1_u32;
    let tar = ["a", "b", "c", "d", "e", "f"]
        .iter()
        .fold(TarBuilder::new(), |tar, name| {
            let mut noise = Vec::new();
            for _ in 0..50_000 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                noise.extend((state ^ state >> 15).to_le_bytes());
            }
            tar.entry(Entry::file(name, noise))
        });
    Scene::of(tar, DEADLINE)
}

/// The rows of the files' content, 64 KiB each but for the last of a file; between them stand headers.
fn large(scene: &Scene) -> Vec<usize> {
    let mut rows: Vec<_> = (0..scene.fetcher.layer().index().chunk_count()).collect();
    rows.retain(|row| stored_range(scene, *row).count() > 1 << 16);
    assert!(rows.len() >= 12, "{rows:?}");
    rows
}

fn stored_range(scene: &Scene, row: usize) -> Range<u64> {
    scene
        .fetcher
        .layer()
        .index()
        .chunk(row)
        .unwrap()
        .stored_range()
}

/// Promise: a chunk is there as soon as it has come, though the range it comes in goes on.
#[tokio::test(start_paused = true)]
async fn a_chunk_does_not_wait_for_the_rest_of_its_range() {
    let scene = scene();
    let source = Trickling::new(&scene, 10_000);
    let whole = scene.fetcher.request(0..2, Priority::Demand);
    let (read, waited) = scene.read(0).await;
    assert!(read.is_ok(), "{read:?}");
    assert_eq!(waited, Duration::from_secs(1));
    let begun = Instant::now();
    assert!(whole.all().await.is_ok());
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert_eq!(source.asked().len(), 1);
}

/// Promise: what came before an answer broke off is kept; the rest alone is asked for again.
#[tokio::test(start_paused = true)]
async fn what_came_before_an_answer_broke_off_is_kept() {
    let scene = scene();
    let source = Trickling::new(&scene, 70_000);
    *source.fails_after.lock().unwrap() = Some(100_000);
    let landing = scene.fetcher.request(0..4, Priority::Demand);
    tokio::time::sleep(Duration::from_millis(2_001)).await;
    *source.fails_after.lock().unwrap() = None;
    assert!(landing.all().await.is_ok());
    let asked = source.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[0].end, asked[1].end);
    let last = (0..4)
        .rev()
        .find(|row| stored_range(&scene, *row).end <= 70_000);
    assert_eq!(asked[1].start, stored_range(&scene, last.unwrap()).end);
}

/// Promise: a reader who wants what waits for its turn takes it out of the queue.
#[tokio::test(start_paused = true)]
async fn a_reader_does_not_queue_behind_what_nobody_waits_for() {
    let scene = scene();
    let source = Trickling::new(&scene, 100_000);
    let rows = large(&scene);
    let ask = |row: usize, priority| drop(scene.fetcher.request(row..row + 1, priority));
    let settle = || tokio::time::sleep(Duration::from_millis(1));
    // Four of them are as much as the link is thought to take.
    for row in &rows[..5] {
        ask(*row, Priority::Background);
    }
    settle().await;
    ask(rows[6], Priority::Readahead);
    ask(rows[8], Priority::Readahead);
    settle().await;
    assert_eq!(source.asked_rows(&scene), rows[..4]);
    ask(rows[8], Priority::Demand);
    settle().await;
    assert_eq!(source.asked_rows(&scene)[4..], [rows[8]]);
    // Of the others, what lies before a reader goes before what nobody reads.
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(source.asked_rows(&scene)[5..], [rows[6], rows[4]]);
}

/// Promise: what failed for nobody does not fail a reader who comes later: the deadline was not his.
#[tokio::test(start_paused = true)]
async fn what_failed_for_nobody_is_tried_for_a_reader() {
    let scene = scene();
    let source = scene.source("only", Mood::Stalls);
    scene.set(&[&source]);
    let landing = scene.fetcher.request(0..1, Priority::Profile);
    assert!(landing.stored().await.is_err());
    source.set(Mood::Honest);
    let (read, waited) = scene.read(0).await;
    assert!(read.is_ok(), "{read:?}");
    assert_eq!(waited, Duration::ZERO);
}

/// Promise: what a start reads is asked for in its order, with neighbours in one request, and no chunk that
/// is there, twice, or not in the layer.
#[tokio::test(start_paused = true)]
async fn a_profile_is_replayed_in_its_order() {
    let scene = scene();
    let source = Trickling::new(&scene, usize::MAX);
    assert!(scene.read(5).await.0.is_ok());
    let replays = Arc::new(Replays::new());
    tokio::spawn(replays.clone().run());
    let order = [6, 2, 3, 0, 5, 2, 4_000_000_000, 7];
    let accesses = order.iter().zip(0..);
    let accesses: Vec<_> = accesses
        .map(|(&chunk, micros)| Access { micros, chunk })
        .collect();
    replays.add(&scene.fetcher, &accesses);
    tokio::time::sleep(Duration::from_mins(1)).await;
    let mut asked = source.asked_rows(&scene);
    asked.retain(|row| *row != 5);
    assert_eq!(asked, [6, 2, 0]);
    // The fourth is slight, and comes along.
    for (row, is_there) in [true, false, true, true, true, true, true, true]
        .iter()
        .enumerate()
    {
        let state = scene.fetcher.layer().presence().state(row);
        assert_eq!(state == ChunkState::Verified, *is_there, "{row}");
    }
}

/// Promise: what a start reads around a chunk soon after it comes in one request with it, whichever is read first: requests
/// cost registries more than their bytes.
#[tokio::test(start_paused = true)]
async fn neighbours_before_and_behind_come_in_one_request() {
    let scene = scene();
    let source = Trickling::new(&scene, usize::MAX);
    let replays = Arc::new(Replays::new());
    tokio::spawn(replays.clone().run());
    let accesses = [3, 8, 2, 4, 1].iter().zip(0..);
    let accesses: Vec<_> = accesses
        .map(|(&chunk, micros)| Access { micros, chunk })
        .collect();
    replays.add(&scene.fetcher, &accesses);
    tokio::time::sleep(Duration::from_mins(1)).await;
    // The header before the first file comes along.
    assert_eq!(source.asked_rows(&scene), [0, 8]);
}

/// Regression: the chunks of two files that lie one behind the other came in two requests, for the header between them, and whoever then
/// read the page in which the second file begins waited a round trip for that header.
///
/// Promise: a chunk of a few hundred bytes beside what a start reads comes along in the same request; no larger one does, and of
/// several one.
#[tokio::test(start_paused = true)]
async fn what_is_slight_comes_along_with_its_neighbours() {
    let scene = scene();
    let source = Trickling::new(&scene, usize::MAX);
    let large = large(&scene);
    let [.., last, first] = large[..4] else {
        panic!("{large:?}");
    };
    // Between two files lies a slight chunk, and only one.
    assert_eq!(first, last + 2, "{large:?}");
    let replays = Arc::new(Replays::new());
    tokio::spawn(replays.clone().run());
    let accesses = [last, first];
    let accesses = accesses.map(|chunk| Access {
        micros: 0,
        chunk: u32::try_from(chunk).unwrap(),
    });
    replays.add(&scene.fetcher, &accesses);
    tokio::time::sleep(Duration::from_mins(1)).await;
    let whole = stored_range(&scene, last).start..stored_range(&scene, first).end;
    assert_eq!(source.asked(), [whole]);
}

/// Regression: what was asked for together with a chunk that a reader waited for failed readers who came to it
/// after the deadline of nobody, at once, though the sources delivered again.
///
/// Promise: a chunk whose deadline was nobody's fails no reader, whoever waits for its neighbours; a
/// reader who joined before goes on waiting.
#[tokio::test(start_paused = true)]
async fn a_deadline_of_nobody_fails_no_reader() {
    let scene = scene();
    let source = scene.source("only", Mood::Stalls);
    scene.set(&[&source]);
    let ahead = scene.fetcher.request(0..3, Priority::Readahead);
    tokio::time::sleep(DEADLINE / 2).await;
    let joined = scene.fetcher.request(0..1, Priority::Demand);
    assert!(ahead.stored().await.is_err());
    source.set(Mood::Honest);
    let (read, waited) = scene.read(1).await;
    assert!(read.is_ok(), "{read:?}");
    assert!(waited < DEADLINE / 2, "{waited:?}");
    assert!(
        scene.read(0).await.0.is_ok(),
        "another reader of what is joined"
    );
    assert!(joined.all().await.is_ok());
}
