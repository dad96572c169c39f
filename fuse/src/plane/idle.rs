//! What is given back when nobody waits for anything any more.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::sleep;

use super::Plane;
use crate::sys::give_back_freed;

/// For how long nobody may have waited for the network: a start pauses, and would take the same memory again.
const QUIET: Duration = Duration::from_secs(5);

/// After it was done, for so long it is not done again: completion brings chunks all the time.
const REST: Duration = Duration::from_secs(10);

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

/// Gives memory back after each time in which chunks came for readers, or to be kept. The allocator keeps what it was
/// once given, and a node's memory would stay at its peak.
pub(super) async fn give_back_now_and_then(plane: Weak<Plane>) {
    let mut given_at = 0;
    loop {
        sleep(LOOK).await;
        let Some(plane) = plane.upgrade() else {
            return;
        };
        let senders = plane.context.counts.senders();
        let fetched = senders.iter().map(|sender| sender.bytes).sum::<u64>();
        if fetched != given_at && plane.context.pace.quiet() >= QUIET {
            given_at = fetched;
            drop(plane);
            drop(tokio::task::spawn_blocking(give_back_freed).await);
            sleep(REST).await;
        }
    }
}
