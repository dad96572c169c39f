//! Whether containerd and this root directory speak of the same snapshots.
//!
//! Either side may lose its directory while the other one keeps its own: containerd then names snapshots
//! that are not here, or does not know those that are. containerd does not tell its names for them, but
//! it asks (`Stat`) for each one that it has while it lists: what it asks for, it knows. Nothing is removed
//! on account of what is found; containers may be running on it.

mod look;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::containerd::Containerd;
use crate::store::Store;
use look::Look;

/// How often containerd is asked who it is: it may be exchanged while this process lives.
const TICK: Duration = Duration::from_secs(5);

/// While it is the same one and nothing is found, one look at all snapshots in so many ticks: ten minutes. A
/// look costs a call for each snapshot.
const TICKS: u32 = 120;

/// How long after a look another one must find the same. Longer than a snapshot is being made (`Prepare` is
/// bounded by ten seconds), so that what comes or goes at this moment is not told.
const CONFIRM: Duration = Duration::from_secs(12);

/// How long one look may take: thousands of snapshots at a millisecond each. Nothing waits for it.
const LOOK_TIME: Duration = Duration::from_secs(30);

/// Least time between two looks, however often somebody asks.
const APART: Duration = Duration::from_secs(1);

/// How long somebody who asks waits for the look that he caused.
const ASKED: Duration = Duration::from_secs(3);

/// Snapshots that are told apart in one look, ten times as many as a busy node has.
const NAMES_MAX: usize = 1 << 16;

/// What containerd and this root directory do not agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// Snapshots here that containerd does not know.
    pub unknown: usize,
    /// Snapshots that containerd names and that are not here.
    pub absent: usize,
    /// Since when that is known.
    pub since: SystemTime,
    /// What happened, and what to do.
    pub why: String,
}

/// What is found, and what containerd asks for meanwhile.
#[derive(Debug, Default)]
pub struct Survey {
    heard: Mutex<Option<Heard>>,
    found: Mutex<Option<Disagreement>>,
    /// Somebody asks whether what was found is still so.
    wanted: Notify,
    /// Rounds that began, and the latest one that ended.
    begun: AtomicU64,
    ended: watch::Sender<u64>,
}

/// What containerd asked for while it listed.
#[derive(Debug, Default)]
struct Heard {
    /// Ids of snapshots that are here.
    known: HashSet<u64>,
    /// Names of those that are not.
    absent: BTreeSet<String>,
}

impl Survey {
    /// Tells that somebody asked for a snapshot, which has this id if it is here.
    pub(crate) fn asked(&self, name: &str, id: Option<u64>) {
        if let Some(heard) = &mut *lock(&self.heard)
            && heard.known.len() + heard.absent.len() < NAMES_MAX
        {
            match id {
                Some(id) => _ = heard.known.insert(id),
                None => _ = heard.absent.insert(name.to_owned()),
            }
        }
    }

    /// What was found the last time.
    pub fn found(&self) -> Option<Disagreement> {
        lock(&self.found).clone()
    }

    /// The same, compared once more if something was found: who asks has perhaps put it right. Takes a moment
    /// at most; then it is what was found before.
    pub(crate) async fn found_now(&self) -> Option<Disagreement> {
        if self.found().is_some() {
            let mut ended = self.ended.subscribe();
            let next = self.begun.load(Ordering::Acquire) + 1;
            self.wanted.notify_one();
            drop(timeout(ASKED, ended.wait_for(|ended| *ended >= next)).await);
        }
        self.found()
    }

    /// Compares again and again, for as long as the process lives. `containerd` may be down, slow or another
    /// one than before; it has the snapshotter that listens at `socket`.
    pub(crate) async fn keep_comparing(
        self: Arc<Self>,
        store: Arc<Store>,
        containerd: Containerd,
        socket: PathBuf,
    ) {
        let (mut before, mut last, mut ticks) = (None::<Look>, None, 0);
        let mut is_early = false;
        loop {
            let begun = Instant::now();
            let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
            let identity = timeout(TICK, containerd.identity()).await;
            let identity = identity.ok().and_then(Result::ok);
            let is_due = before.is_some() || last != identity || ticks >= TICKS;
            ticks += 1;
            let mut pause = TICK;
            if let Some(identity) = identity.filter(|_| is_due) {
                let look = self.look(&store, &containerd, &socket, &identity);
                match timeout(LOOK_TIME, look).await {
                    Ok(Ok(look)) => {
                        (last, ticks) = (Some(identity), 0);
                        let confirmed = before.as_ref().map(|before| before.and(&look));
                        let confirmed = confirmed.filter(|both| !both.is_empty());
                        self.settle(confirmed.clone());
                        pause = if look.is_empty() { TICK } else { CONFIRM };
                        if is_early {
                            // Too soon after the one before to confirm anything new.
                            (before, ticks) = (confirmed, TICKS);
                        } else {
                            before = Some(look).filter(|look| !look.is_empty());
                        }
                    }
                    Ok(Err(error)) => debug!(%error, "containerd's snapshots are not compared"),
                    Err(_) => {
                        *lock(&self.heard) = None;
                        debug!("containerd takes too long to list its snapshots");
                    }
                }
            }
            self.ended.send_replace(number);
            is_early = tokio::select! {
                () = sleep(pause) => false,
                () = self.wanted.notified() => true,
            };
            if is_early {
                sleep_until(begun + APART).await;
            }
        }
    }

    /// Keeps what two looks found, and tells it when it is new.
    fn settle(&self, look: Option<Look>) {
        let mut found = lock(&self.found);
        let Some(look) = look else {
            if found.take().is_some() {
                info!("containerd and this root directory agree on the snapshots again");
            }
            return;
        };
        let (unknown, absent) = (look.unknown.len(), look.absent.len());
        let why = look.why();
        let before = found.as_ref();
        if before.is_none_or(|before| {
            (before.unknown == 0) != (unknown == 0) || (before.absent == 0) != (absent == 0)
        }) {
            warn!(unknown, absent, "{why}");
        }
        let since = before.map_or_else(SystemTime::now, |before| before.since);
        *found = Some(Disagreement {
            unknown,
            absent,
            since,
            why,
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
