//! Recordings of reads, under a clock that only waiting moves.

use super::*;
use crate::fetch::tests::Scene;

fn told() -> LayerReads {
    let digest = larder_proto::digest::Digest::of(b"layer");
    LayerReads {
        index: digest,
        blob: digest,
        diff_id: digest,
        reads: Vec::new(),
    }
}

fn record(scene: &Scene) -> Recording {
    let clock = Arc::new(Clock::new());
    let layers = vec![Listening::begin(&clock, told(), &scene.fetcher)];
    Recording { clock, layers }
}

fn read(scene: &Scene, rows: impl IntoIterator<Item = usize>) {
    scene.fetcher.listeners().read(rows.into_iter());
}

/// Chunks with the milliseconds of their first reads.
fn finished(recording: Recording) -> Vec<(u64, u32)> {
    let [one] = &recording.finish()[..] else {
        panic!("not one layer");
    };
    assert!(one.is_whole);
    let reads = one.layer.reads.iter();
    reads.map(|read| (read.micros / 1000, read.chunk)).collect()
}

async fn pass(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Promise: a recording has each chunk once, at the moment of its first read since the recording began;
/// what is not in the layer is not in it.
#[tokio::test(start_paused = true)]
async fn first_reads_are_kept_in_their_order() {
    let scene = Scene::new();
    read(&scene, [0]);
    pass(5).await;
    let recording = record(&scene);
    read(&scene, [1, 0]);
    pass(30).await;
    read(&scene, [0, 1]);
    read(&scene, [usize::MAX, 1 << 40]);
    assert_eq!(recording.reads(), 2);
    assert_eq!(finished(recording), [(0, 1), (0, 0)]);
}

/// Promise: two starts that share a layer are recorded by their own clocks, and the end of one does
/// not end the other; then nobody listens any more.
#[tokio::test(start_paused = true)]
async fn two_recordings_of_a_layer_do_not_disturb_each_other() {
    let scene = Scene::new();
    let first = record(&scene);
    pass(10).await;
    let second = record(&scene);
    read(&scene, [0]);
    assert_eq!(finished(first), [(10, 0)]);
    pass(7).await;
    read(&scene, [1]);
    assert_eq!(finished(second), [(0, 0), (7, 1)]);
    assert!(!scene.fetcher.listeners().any.load(Ordering::Relaxed));
    assert!(scene.fetcher.listeners().lock().is_empty());
}

/// Promise: a start is over once nothing was read for the first time for as long as the pause, however often
/// it reads what it read before; one that reads nothing, or reads for ever, ends as well.
#[tokio::test(start_paused = true)]
async fn a_start_is_over_after_a_pause_or_at_the_latest_moment() {
    let settling = Settling {
        first_read: Duration::from_secs(9),
        pause: Duration::from_secs(2),
        longest: Duration::from_secs(12),
    };
    let scene = Scene::new();
    let (silent, began) = (record(&scene), Instant::now());
    silent.settled(&settling).await;
    assert_eq!(began.elapsed().as_secs(), 9, "nothing was read");

    let (recording, began) = (record(&scene), Instant::now());
    let settled = async {
        recording.settled(&settling).await;
        began.elapsed().as_secs()
    };
    let reading = async {
        for row in [0, 1, 0, 1, 0] {
            pass(1500).await;
            read(&scene, [row]);
        }
    };
    let (settled, ()) = tokio::join!(settled, reading);
    assert_eq!(settled, 5, "what was read before does not count");

    let (endless, began) = (record(&scene), Instant::now());
    endless.clock.latest.store(60_000_000, Ordering::Relaxed);
    endless.settled(&settling).await;
    let lasted = began.elapsed().as_secs();
    assert_eq!(lasted, 12, "a start does not last for ever");
}

/// Promise: who reads everything of a huge layer costs bounded memory, and its recording ends.
#[tokio::test(start_paused = true)]
async fn a_start_that_reads_everything_is_cut_off() {
    let scene = Scene::new();
    let recording = record(&scene);
    let clock = recording.clock.clone();
    let huge = Track::new(&clock, 4 * ACCESSES_MAX);
    (0..4 * ACCESSES_MAX).for_each(|row| huge.note(row));
    assert_eq!(huge.lock().len(), ACCESSES_MAX);
    let other = Track::new(&clock, 2 * READS_MAX);
    (0..2 * READS_MAX).for_each(|row| other.note(row));
    assert!(recording.reads() <= READS_MAX);
    let third = Track::new(&clock, READS_MAX);
    (0..READS_MAX).for_each(|row| third.note(row));
    assert_eq!(recording.reads(), READS_MAX);
    let settling = Settling::default();
    let at_once = tokio::time::timeout(Duration::from_millis(1), recording.settled(&settling));
    at_once.await.unwrap();
}
