//! A clock that moves only when a test moves it, to the next moment somebody waits for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::{Add, Sub};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Long before the moment a test begins, so that what happened before it can be told.
const BEGINNING: Duration = Duration::from_secs(1 << 20);

thread_local! {
    /// All tasks of one schedule run on one thread.
    static CLOCK: RefCell<Clock> = RefCell::new(Clock::default());
}

#[derive(Default)]
struct Clock {
    now: Duration,
    waiting: BTreeMap<(Duration, u64), Waker>,
    sleeps: u64,
}

/// Sets the clock back to its beginning.
pub(super) fn begin() {
    let clock = Clock {
        now: BEGINNING,
        ..Clock::default()
    };
    CLOCK.with_borrow_mut(|current| *current = clock);
}

/// Moves the clock to the next moment that somebody waits for; whether there was one.
pub(crate) fn pass() -> bool {
    let woken = CLOCK.with_borrow_mut(|clock| {
        let ((at, _), waker) = clock.waiting.pop_first()?;
        clock.now = clock.now.max(at);
        Some(waker)
    });
    woken.map(Waker::wake).is_some()
}

/// A moment of that clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(CLOCK.with_borrow(|clock| clock.now))
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Self::now() - *self
    }

    pub(crate) fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self(self.0 + later)
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

/// Resolves when the clock has come to a moment.
pub(crate) struct Sleep {
    until: Instant,
    place: u64,
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        CLOCK.with_borrow_mut(|clock| {
            if clock.now >= self.until.0 {
                return Poll::Ready(());
            }
            let key = (self.until.0, self.place);
            clock.waiting.insert(key, context.waker().clone());
            Poll::Pending
        })
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        CLOCK.with_borrow_mut(|clock| clock.waiting.remove(&(self.until.0, self.place)));
    }
}

pub(crate) fn sleep_until(until: Instant) -> Sleep {
    let place = CLOCK.with_borrow_mut(|clock| {
        clock.sleeps += 1;
        clock.sleeps
    });
    Sleep { until, place }
}

pub(crate) fn sleep(duration: Duration) -> Sleep {
    sleep_until(Instant::now() + duration)
}

pub(crate) mod error {
    /// The time was over first.
    #[derive(Debug)]
    pub(crate) struct Elapsed;
}

/// Waits for `future`, but no longer than `duration`.
pub(crate) async fn timeout<F: Future>(
    duration: Duration,
    future: F,
) -> Result<F::Output, error::Elapsed> {
    let mut future = pin!(future);
    let mut over = pin!(sleep(duration));
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Ok(output)),
        Poll::Pending => over.as_mut().poll(context).map(|()| Err(error::Elapsed)),
    })
    .await
}
