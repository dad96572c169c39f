//! The free-space floor: below it, the store stops caching and keeps serving.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use super::disk::{Disk, Space};
use crate::sync::Mutex;

/// How old an answer about free space may be. Caching resumes within 5 s of space coming back, so
/// well below that; and a chunk write must not cost a system call each time.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How long the store caches before that is told. Where readers want more than can be evicted, it stops and goes
/// on every second; that is one time without a cache, and two lines in the log.
const CALM: Duration = Duration::from_secs(2);

/// Freed beyond what is lacking, so that not every chunk calls for eviction, bytes; of a small disk 1 %.
const MARGIN: u64 = 64 << 20;

/// That nothing is cached: reads are served, each from the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachingStopped {
    /// Why, and what to do.
    pub why: String,
    /// Since when.
    pub since: SystemTime,
}

/// Decides whether there is room to cache.
#[derive(Debug)]
pub(crate) struct Floor {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    min_free_percent: u8,
    state: Mutex<State>,
    /// Bytes that were promised and are being written.
    promised: Mutex<u64>,
}

/// Room on the disk for something that is being written.
#[derive(Debug)]
pub(crate) struct Promised<'a> {
    floor: &'a Floor,
    bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    checked: Option<Instant>,
    closed: bool,
    /// What is told: that nothing is cached, also for a while after that is over.
    told: Option<CachingStopped>,
    /// Since when it is open again.
    open_since: Option<Instant>,
    /// Whether a write failed for no reason that can be seen otherwise: only one that succeeds says
    /// that it is over.
    write_failed: bool,
    /// Whether it failed for want of room, by the disk or by a quota.
    is_full: bool,
}

impl Floor {
    pub(crate) fn new(disk: Arc<dyn Disk>, directory: PathBuf, min_free_percent: u8) -> Self {
        Self {
            disk,
            directory,
            min_free_percent,
            state: Mutex::default(),
            promised: Mutex::default(),
        }
    }

    /// What is to be left free, bytes; 0 where the disk cannot be looked at.
    pub(crate) fn bytes(&self) -> u64 {
        let space = self.disk.space(&self.directory);
        space.map_or(0, |space| self.floor(space))
    }

    fn floor(&self, space: Space) -> u64 {
        space.total / 100 * u64::from(self.min_free_percent)
    }

    /// Takes room for `bytes` of what is no chunk: down to half of what is to be left free. Else tells how
    /// many bytes are lacking.
    pub(crate) fn promise(&self, bytes: u64) -> Result<Promised<'_>, u64> {
        let mut promised = self.promised.lock().unwrap_or_else(PoisonError::into_inner);
        // A disk that cannot be looked at is one that the write fails on, with a better reason.
        if let Ok(space) = self.disk.space(&self.directory) {
            let kept = self.floor(space) / 2;
            let wanted = kept.saturating_add(*promised).saturating_add(bytes);
            let lacking = wanted.saturating_sub(space.available);
            if lacking > 0 {
                return Err(lacking);
            }
        }
        *promised += bytes;
        Ok(Promised { floor: self, bytes })
    }

    /// Whether a chunk may be written now.
    pub(crate) fn has_room(&self) -> bool {
        self.has_room_at(Instant::now())
    }

    /// Whether trying to write a chunk may help, without looking at the disk.
    pub(crate) fn may_have_room(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |at: Instant| at.elapsed() < CHECK_EVERY;
        !state.closed || !state.checked.is_some_and(fresh)
    }

    /// Why nothing is cached now, if so.
    pub(crate) fn stopped(&self) -> Option<CachingStopped> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Where a write failed, the next one that is tried tells more.
        if !state.write_failed {
            self.settle(&mut state, self.obstacle(), Instant::now());
        }
        state.told.clone()
    }

    fn has_room_at(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |at: Instant| now.saturating_duration_since(at) < CHECK_EVERY;
        if !state.checked.is_some_and(fresh) {
            state.checked = Some(now);
            let obstacle = self.obstacle();
            if obstacle.is_none() && state.write_failed {
                // One write is tried.
                return true;
            }
            state.write_failed = false;
            self.settle(&mut state, obstacle, now);
        }
        !state.closed
    }

    /// Bytes to be freed so that caching can go on, as far as room on the disk is what it lacks.
    pub(crate) fn shortage(&self) -> u64 {
        let Ok(space) = self.disk.space(&self.directory) else {
            return 0;
        };
        let margin = MARGIN.min(space.total / 100);
        if below(space, self.min_free_percent) {
            let floor = self.floor(space);
            return floor.saturating_sub(space.available) + margin;
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_full { margin } else { 0 }
    }

    /// Tells that a write succeeded.
    pub(crate) fn wrote(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_full = false;
        if state.write_failed {
            state.write_failed = false;
            self.settle(&mut state, None, Instant::now());
        }
    }

    /// What stands in the way of caching as far as can be told without writing, and what to do.
    fn obstacle(&self) -> Option<String> {
        let percent = self.min_free_percent;
        match self.disk.space(&self.directory) {
            Ok(space) if !below(space, percent) => None,
            Ok(_) => Some(format!(
                "less than {percent} % of the disk is free (min_free): free some disk space"
            )),
            Err(error) if error.kind() == ErrorKind::NotFound => Some(format!(
                "{} is gone, somebody removed it: restart this process, then remove the images \
                 and pull them again",
                self.directory.display()
            )),
            Err(error) => Some(format!(
                "{} cannot be looked at ({error}): see to its disk",
                self.directory.display()
            )),
        }
    }

    /// Tells that a write failed: stop until the next check.
    pub(crate) fn write_failed(&self, error: &std::io::Error) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.checked = Some(Instant::now());
        let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded];
        state.is_full = full.contains(&error.kind());
        let why = self.obstacle();
        state.write_failed = why.is_none();
        let why = why.unwrap_or_else(|| format!("{error}: see to the disk, free some space"));
        self.settle(&mut state, Some(why), Instant::now());
    }

    fn settle(&self, state: &mut State, obstacle: Option<String>, now: Instant) {
        let directory = self.directory.display();
        state.closed = obstacle.is_some();
        match (obstacle, &mut state.told) {
            (Some(why), None) => {
                warn!(%directory, why, "the store stops caching; reads are served without it");
                let since = SystemTime::now();
                state.told = Some(CachingStopped { why, since });
            }
            (Some(why), Some(told)) => told.why = why,
            (None, Some(_)) => {
                let since = *state.open_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= CALM {
                    info!(%directory, "the store caches again");
                    state.told = None;
                }
            }
            (None, None) => {}
        }
        if state.closed {
            state.open_since = None;
        }
    }
}

impl Drop for Promised<'_> {
    fn drop(&mut self) {
        let promised = &self.floor.promised;
        let mut promised = promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(self.bytes);
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
        assert!(floor.has_room_at(later(10)), "one write is tried");
        assert!(!floor.has_room_at(later(10)), "not two");
        floor.wrote();
        assert!(floor.has_room_at(later(10)));
    }

    /// Promise: a store that fills up as soon as something was evicted tells of one time without a cache, not of
    /// one each second; that it is over is told two seconds after it is.
    #[test]
    fn a_store_that_fills_up_again_and_again_tells_once() {
        let gauge = Arc::new(Gauge::default());
        let floor = Floor::new(gauge.clone(), "/".into(), 5);
        let start = Instant::now();
        let told_at = |second: u64, available: u64| {
            gauge.0.store(available, Ordering::Relaxed);
            let has_room = floor.has_room_at(start + Duration::from_secs(second));
            assert_eq!(has_room, available >= 50);
            let state = floor.state.lock().unwrap();
            state.told.as_ref().map(|told| told.since)
        };
        let first = told_at(0, 49);
        assert!(first.is_some());
        for second in 1..10 {
            assert_eq!(told_at(second, 49 + second % 2), first);
        }
        assert_eq!(told_at(10, 50), first);
        assert_eq!(told_at(11, 50), None);
    }

    /// Promise: what is no chunk may take half of what is to be left free, together and not each.
    #[test]
    fn half_of_what_is_left_free_is_never_given_away() {
        let gauge = Arc::new(Gauge::default());
        let floor = Floor::new(gauge.clone(), "/".into(), 10);
        gauge.0.store(60, Ordering::Relaxed);
        let first = floor.promise(6).unwrap();
        assert_eq!(floor.promise(6).unwrap_err(), 2);
        let second = floor.promise(4).unwrap();
        drop((first, second));
        assert_eq!(floor.promise(11).unwrap_err(), 1);
        assert!(floor.promise(10).is_ok());
        let full = Floor::new(gauge, "/".into(), 0);
        assert_eq!(full.promise(61).unwrap_err(), 1);
    }

    /// Promise: who asks learns why nothing is cached and since when; a directory that is gone is not
    /// called a full disk.
    #[test]
    fn what_stands_in_the_way_is_told_with_its_beginning() {
        let gauge = Arc::new(Gauge::default());
        gauge.0.store(500, Ordering::Relaxed);
        let floor = Floor::new(gauge.clone(), "/".into(), 5);
        assert_eq!(floor.stopped(), None);
        let before = SystemTime::now();
        floor.write_failed(&std::io::ErrorKind::StorageFull.into());
        let first = floor.stopped().unwrap();
        assert!(first.since >= before && first.since <= SystemTime::now());
        assert!(first.why.contains("no storage space"), "{}", first.why);
        gauge.0.store(49, Ordering::Relaxed);
        floor.write_failed(&std::io::ErrorKind::StorageFull.into());
        let second = floor.stopped().unwrap();
        assert!(second.why.contains("less than 5 %"), "{}", second.why);
        assert_eq!(second.since, first.since);

        let wiped = std::env::temp_dir().join("larder-was-here-once");
        let floor = Floor::new(Arc::new(super::super::disk::StdDisk), wiped.clone(), 5);
        let why = floor.stopped().unwrap().why;
        assert!(why.contains(&wiped.display().to_string()), "{why}");
        assert!(
            why.contains("is gone") && !why.contains("min_free"),
            "{why}"
        );
    }
}
