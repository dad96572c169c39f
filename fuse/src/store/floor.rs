//! The free-space floor: below it, the store stops caching and keeps serving.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::disk::{Disk, Space};

/// How old an answer about free space may be. Caching resumes within 5 s of space coming back, so
/// well below that; and a chunk write must not cost a system call each time.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Decides whether there is room to cache.
#[derive(Debug)]
pub(crate) struct Floor {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    min_free_percent: u8,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    checked: Option<Instant>,
    closed: bool,
}

impl Floor {
    pub(crate) fn new(disk: Arc<dyn Disk>, directory: PathBuf, min_free_percent: u8) -> Self {
        Self {
            disk,
            directory,
            min_free_percent,
            state: Mutex::default(),
        }
    }

    /// Whether a chunk may be written now.
    pub(crate) fn has_room(&self) -> bool {
        self.has_room_at(Instant::now())
    }

    fn has_room_at(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |at: Instant| now.saturating_duration_since(at) < CHECK_EVERY;
        if !state.checked.is_some_and(fresh) {
            state.checked = Some(now);
            let short = match self.disk.space(&self.directory) {
                Ok(space) => below(space, self.min_free_percent),
                Err(_) => true,
            };
            self.close(&mut state, short, "free space is below min_free");
        }
        !state.closed
    }

    /// Tells that a write failed: stop until the next check.
    pub(crate) fn write_failed(&self, error: &std::io::Error) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.checked = Some(Instant::now());
        self.close(&mut state, true, &error.to_string());
    }

    fn close(&self, state: &mut State, closed: bool, why: &str) {
        if closed && !state.closed {
            warn!(
                directory = %self.directory.display(), why,
                "the store stops caching; reads are served without it. Free some disk space"
            );
        } else if !closed && state.closed {
            info!(directory = %self.directory.display(), "the store caches again");
        }
        state.closed = closed;
    }
}

fn below(space: Space, percent: u8) -> bool {
    u128::from(space.available) * 100 < u128::from(space.total) * u128::from(percent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug, Default)]
    struct Gauge(AtomicU64);

    impl Disk for Gauge {
        fn space(&self, _: &Path) -> std::io::Result<Space> {
            let available = self.0.load(Ordering::Relaxed);
            Ok(Space {
                total: 1000,
                available,
            })
        }
    }

    #[test]
    fn caching_stops_below_the_floor_and_resumes_within_five_seconds() {
        let gauge = Arc::new(Gauge::default());
        let floor = Floor::new(gauge.clone(), "/".into(), 5);
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        gauge.0.store(49, Ordering::Relaxed);
        assert!(!floor.has_room_at(start));
        gauge.0.store(50, Ordering::Relaxed);
        assert!(floor.has_room_at(later(5)));
        floor.write_failed(&std::io::ErrorKind::StorageFull.into());
        assert!(!floor.has_room_at(start));
        assert!(floor.has_room_at(later(10)));
    }
}
