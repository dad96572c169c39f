//! Reads that fail: the first one of each cause is told at once, those of the next while in one line.
//!
//! A crowd of readers of a registry that is gone would fill the log with one line for each of them, and
//! again with each round of the kernel's repetitions.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder_proto::digest::Digest;
use tracing::warn;

use super::Fetcher;
use crate::sync::later;
use crate::sync::time::Instant;

/// Least time between two lines about one cause in one layer. An outage of an hour makes 360 of them.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Causes told apart in one layer at a time: the sources of a layer fail in that many ways at most, unless
/// somebody makes them up. Further ones are counted to the last of these.
const CAUSES_MAX: usize = 8;

/// What became of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failed {
    /// In the same words each time.
    pub(crate) what: &'static str,
    /// The first chunk that is missing, if there is one to blame.
    pub(crate) chunk: Option<usize>,
    /// How many are.
    pub(crate) chunks: Option<usize>,
    /// Why, source by source.
    pub(crate) cause: Option<String>,
    /// How long it was waited for.
    pub(crate) waited: Option<Duration>,
}

impl Failed {
    /// A read that failed by no fault of a source.
    pub(crate) const fn here(what: &'static str) -> Self {
        Self {
            what,
            chunk: None,
            chunks: None,
            cause: None,
            waited: None,
        }
    }

    /// The same for what differs in nothing but its times and counts.
    fn kind(&self) -> (&'static str, String) {
        let words = self.cause.iter().flat_map(|cause| cause.chars());
        (self.what, words.filter(|c| !c.is_ascii_digit()).collect())
    }

    fn log(&self, layer: &Digest, suppressed: u64) {
        warn!(
            %layer,
            chunk = self.chunk,
            chunks = self.chunks,
            cause = self.cause,
            waited = self.waited.map(debug),
            suppressed = (suppressed > 0).then_some(suppressed),
            "a read fails: {}", self.what
        );
    }
}

/// What was told of a layer lately, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Failing(Vec<Cause>);

#[derive(Debug)]
struct Cause {
    kind: (&'static str, String),
    told: Instant,
    /// Failures since then, and the latest of them.
    untold: Option<(u64, Failed)>,
}

/// What is to be done about a failure.
#[derive(Debug, PartialEq, Eq)]
enum Telling {
    /// At once.
    Now(Failed),
    /// With what else fails until then.
    At(Instant),
    /// By whoever was told so before.
    Counted,
}

impl Failing {
    fn add(&mut self, failed: Failed, now: Instant) -> Telling {
        let is_over = |one: &Cause| one.untold.is_none() && now - one.told >= TOLD_EVERY;
        self.0.retain(|one| !is_over(one));
        let kind = failed.kind();
        let known = self.0.iter().position(|one| one.kind == kind);
        if known.is_none() && self.0.len() < CAUSES_MAX {
            self.0.push(Cause {
                kind,
                told: now,
                untold: None,
            });
            return Telling::Now(failed);
        }
        let Some(cause) = self.0.get_mut(known.unwrap_or(CAUSES_MAX - 1)) else {
            return Telling::Now(failed);
        };
        let before = cause.untold.take().map_or(0, |(count, _)| count);
        cause.untold = Some((before + 1, failed));
        match before {
            0 => Telling::At(cause.told + TOLD_EVERY),
            _ => Telling::Counted,
        }
    }

    /// What was left out for long enough: the latest of each cause, and how many more there were.
    fn due(&mut self, now: Instant) -> Vec<(Failed, u64)> {
        let mut due = Vec::new();
        for cause in &mut self.0 {
            if now - cause.told >= TOLD_EVERY
                && let Some((count, failed)) = cause.untold.take()
            {
                cause.told = now;
                due.push((failed, count - 1));
            }
        }
        due
    }
}

impl Fetcher {
    /// Tells that a read failed, or has it told with others of the same cause.
    pub(crate) fn tell_failed(self: &Arc<Self>, failed: Failed) {
        let now = Instant::now();
        let telling = lock(&self.failing).add(failed, now);
        match telling {
            Telling::Now(failed) => failed.log(&self.blob(), 0),
            Telling::At(then) => {
                let fetcher = Arc::downgrade(self);
                later(self.runtime(), then - now, move || {
                    // What was removed meanwhile fails for nobody.
                    if let Some(fetcher) = fetcher.upgrade() {
                        fetcher.tell_failed_lately();
                    }
                });
            }
            Telling::Counted => {}
        }
    }

    fn tell_failed_lately(&self) {
        let due = lock(&self.failing).due(Instant::now());
        for (failed, more) in due {
            failed.log(&self.blob(), more);
        }
    }
}

fn lock(failing: &Mutex<Failing>) -> std::sync::MutexGuard<'_, Failing> {
    failing.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::io;

    use super::*;
    use crate::fetch::tests::Scene;

    fn late(cause: &str) -> Failed {
        Failed {
            chunk: Some(7),
            chunks: Some(2),
            cause: Some(cause.into()),
            waited: Some(Duration::from_secs(3)),
            ..Failed::here("its bytes did not arrive in time")
        }
    }

    /// What is logged, line by line.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Lines {
        fn take(&self) -> Vec<String> {
            let bytes = std::mem::take(&mut *self.0.lock().unwrap());
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Regression: a registry that was killed under 200 readers made 165 lines in a second.
    ///
    /// Promise: the first read that fails is told at once, and so is the first one of another cause; of the
    /// others one line is written in ten seconds, which says how many were left out, also when no more follow.
    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_failed_reads_makes_a_line_at_once_and_one_later() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let subscriber = subscriber.with_ansi(false).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let scene = Scene::new();
        let tell = |count: usize, cause: &str| {
            for number in 0..count {
                let cause = format!("{cause} after {number} ms");
                scene.fetcher.tell_failed(late(&cause));
            }
        };
        tell(200, "refused");
        let told = lines.take();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("WARN") && !told[0].contains("suppressed"));
        assert!(told[0].contains("a read fails: its bytes did not arrive in time"));
        assert!(told[0].contains("refused after 0 ms"), "{}", told[0]);
        tell(1, "stalled");
        assert_eq!(lines.take().len(), 1);
        tokio::time::sleep(TOLD_EVERY + Duration::from_millis(5)).await;
        let told = lines.take();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("refused after 199 ms"), "{}", told[0]);
        assert!(told[0].contains("suppressed=198"), "{}", told[0]);
        // It goes on, and then it is over.
        tell(1, "refused");
        assert_eq!(lines.take(), Vec::<String>::new());
        tokio::time::sleep(TOLD_EVERY).await;
        let told = lines.take();
        assert!(
            told.len() == 1 && !told[0].contains("suppressed"),
            "{told:?}"
        );
        tokio::time::sleep(TOLD_EVERY).await;
        assert_eq!(lines.take(), Vec::<String>::new());
        tell(1, "refused");
        assert_eq!(lines.take().len(), 1);
    }

    /// Promise: causes that somebody makes up are counted, and neither told one by one nor kept.
    #[test]
    fn causes_without_end_are_counted_together() {
        let mut failing = Failing::default();
        let now = Instant::now();
        let words = |number: usize| "x".repeat(number);
        let added = (0..1000).map(|number| failing.add(late(&words(number)), now));
        let told = added.filter(|telling| matches!(telling, Telling::Now(_)));
        assert_eq!(told.count(), CAUSES_MAX);
        assert_eq!(failing.0.len(), CAUSES_MAX);
        let due = failing.due(now + TOLD_EVERY);
        let left_out = 1000 - CAUSES_MAX;
        assert_eq!(due, [(late(&words(999)), left_out as u64 - 1)]);
    }
}
