//! Who may ask, and when.

use super::super::gauge::START_FIRST;
use super::*;

const CHUNK: u64 = 1 << 20;

/// Whether `future` is done when it is polled once more.
async fn is_done<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = tokio::task::yield_now() => None,
    }
}

/// Promise: for nobody who waits, one request is on its way beyond the product, and the next when the rest of
/// it has nearly come.
#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_keeps_the_link_just_busy() {
    let lane = Arc::new(Lane::default());
    let first = lane.admit(Priority::Background, CHUNK).await;
    let mut second = Box::pin(lane.admit(Priority::Background, CHUNK));
    assert!(is_done(&mut second).await.is_none());
    first.arrived(CHUNK / 2);
    assert!(is_done(&mut second).await.is_none(), "512 KiB are to come");
    first.arrived(CHUNK - lane.product() + 1);
    let second = is_done(&mut second).await.expect("room");
    drop((first, second));
    assert_eq!(lane.lock().unawaited, 0);
}

/// Promise: of what a start is known to read so much more is on its way that a registry's pauses let no link rest.
#[tokio::test(start_paused = true)]
async fn more_is_on_its_way_of_what_a_start_reads() {
    let lane = Arc::new(Lane::default());
    let product = lane.product();
    let first = lane.admit(Priority::Profile, product).await;
    let mut background = Box::pin(lane.admit(Priority::Background, 1));
    assert!(is_done(&mut background).await.is_none());
    let mut second = Box::pin(lane.admit(Priority::Profile, START_FIRST - product));
    let second = is_done(&mut second).await.expect("room");
    let mut third = Box::pin(lane.admit(Priority::Profile, 1));
    assert!(is_done(&mut third).await.is_none());
    drop((first, second));
    drop(is_done(&mut third).await.expect("its turn"));
    assert!(is_done(&mut background).await.is_some());
}

/// Promise: a reader never waits for the link.
#[tokio::test(start_paused = true)]
async fn readers_ask_at_once() {
    let lane = Arc::new(Lane::default());
    let _background = lane.admit(Priority::Background, CHUNK).await;
    drop(lane.ask());
    assert_eq!(lane.lock().unawaited, CHUNK);
}

/// Promise: the more urgent goes first, whoever came first; among equals the order stays.
#[tokio::test(start_paused = true)]
async fn the_more_urgent_goes_first() {
    let lane = Arc::new(Lane::default());
    let first = lane.admit(Priority::Background, CHUNK).await;
    let mut background = Box::pin(lane.admit(Priority::Background, CHUNK));
    assert!(is_done(&mut background).await.is_none());
    let mut profile = Box::pin(lane.admit(Priority::Profile, CHUNK));
    assert!(is_done(&mut profile).await.is_none());
    let mut later = Box::pin(lane.admit(Priority::Profile, CHUNK));
    assert!(is_done(&mut later).await.is_none());
    drop(first);
    assert!(is_done(&mut background).await.is_none());
    assert!(is_done(&mut later).await.is_none());
    let profile = is_done(&mut profile).await.expect("its turn");
    drop(profile);
    assert!(is_done(&mut background).await.is_none());
    drop(is_done(&mut later).await.expect("its turn"));
    assert!(is_done(&mut background).await.is_some());
}

/// Promise: who gives up waiting keeps nobody from going.
#[tokio::test(start_paused = true)]
async fn who_gives_up_lets_the_next_one_go() {
    let lane = Arc::new(Lane::default());
    let first = lane.admit(Priority::Profile, CHUNK).await;
    let mut second = Box::pin(lane.admit(Priority::Profile, CHUNK));
    let mut third = Box::pin(lane.admit(Priority::Profile, CHUNK));
    assert!(is_done(&mut second).await.is_none());
    assert!(is_done(&mut third).await.is_none());
    drop(first);
    drop(second);
    assert!(is_done(&mut third).await.is_some());
}
