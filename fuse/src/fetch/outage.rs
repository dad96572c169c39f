//! A layer whose sources all fail: one reader at a time finds out whether they are back.
//!
//! A read asks once for itself, whatever others came to. After that, the repetitions of all reads of the
//! layer share one schedule, or a dead registry would be asked by each of them in turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedMutexGuard};

use crate::sync::time::{self, Instant};

/// First pause after all sources failed, as after a connection that broke.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(100);

/// How much longer each pause is than the one before: a blip costs a fraction of a second, and a restart
/// of the registry a few, in six rounds for the first read of an outage.
const GROWTH: u32 = 4;

/// Longest pause between two rounds: two of them outlast the default deadline, 30 s, so that each further read
/// asks once for itself and once more. So is a dead registry asked less than three times for what it would be
/// asked once, by one reader as by many, and its return is seen while those who wait still do.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(16);

/// The pause after one of `pause`.
pub(super) fn longer(pause: Duration) -> Duration {
    (pause * GROWTH).min(PAUSE_MAX)
}

/// Whether the sources of one layer fail, and when they are asked again.
#[derive(Debug, Default)]
pub(super) struct Outage {
    state: Mutex<Option<Schedule>>,
    /// Held by who asks next.
    turn: Arc<tokio::sync::Mutex<()>>,
    over: Notify,
}

/// When the sources are asked again.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    at: Instant,
    pause: Duration,
    /// Somebody's own try stood in for the one that was due.
    is_put_off: bool,
}

/// The right to ask in an outage, until it is dropped.
pub(super) type Turn = OwnedMutexGuard<()>;

impl Outage {
    /// Notes that all sources failed somebody, and when they wish to be asked again. Who asked in turn
    /// makes the pause longer; somebody's own first try says nothing that is not known, and stands in for
    /// the next in turn. For one: what is asked for may be what fails, and those who wait wait for others.
    pub(super) fn failed(&self, wish: Option<Duration>, in_turn: bool) {
        let now = Instant::now();
        let mut state = self.lock();
        let pause = match &mut *state {
            Some(schedule) if !in_turn => {
                if !schedule.is_put_off {
                    schedule.is_put_off = true;
                    schedule.at = schedule.at.max(now + schedule.pause);
                }
                return;
            }
            Some(schedule) => longer(schedule.pause),
            None => PAUSE_MIN,
        };
        let wait = wish.unwrap_or_default().clamp(pause, PAUSE_MAX);
        *state = Some(Schedule {
            at: now + wait,
            pause,
            is_put_off: false,
        });
    }

    /// Whether all sources failed whoever asked last.
    pub(super) fn is_on(&self) -> bool {
        self.lock().is_some()
    }

    /// Notes that a source delivered.
    pub(super) fn end(&self) {
        if self.lock().take().is_some() {
            self.over.notify_waiters();
        }
    }

    /// Waits until it is one's turn to ask again, or the outage is over.
    pub(super) async fn turn(&self) -> Option<Turn> {
        let mut over = std::pin::pin!(self.over.notified());
        over.as_mut().enable();
        let mine = async {
            let turn = Arc::clone(&self.turn).lock_owned().await;
            while let Some(at) = self.next() {
                if at <= Instant::now() {
                    break;
                }
                time::sleep_until(at).await;
            }
            turn
        };
        tokio::select! {
            biased;
            () = over => None,
            turn = mine => Some(turn),
        }
    }

    fn next(&self) -> Option<Instant> {
        self.lock().map(|schedule| schedule.at)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Schedule>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
