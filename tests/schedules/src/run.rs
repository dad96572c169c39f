//! Running a test under one order of events after the other.

use std::time::{SystemTime, UNIX_EPOCH};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};

/// Schedules per test and scheduler: two of them make 10,000.
const SCHEDULES: usize = 5_000;

/// Points of one schedule where the order is changed on purpose; few orders need more to go wrong.
const PCT_DEPTH: usize = 3;

/// Stack of each task, bytes: the code under test calls the file system and decompresses, unoptimised, and
/// shuttle's own 60 KiB are tight for that.
const STACK: usize = 256 << 10;

/// Runs `test` under schedules by chance, and under as many that change the order at a few places.
///
/// A failure prints its schedule: `LARDER_SCHEDULE=<that text>` runs it alone. `LARDER_SEED` repeats a
/// whole run, `LARDER_SCHEDULES` says how many schedules per scheduler.
pub fn schedules(test: impl Fn() + Clone + Send + Sync + 'static) {
    if let Ok(schedule) = std::env::var("LARDER_SCHEDULE") {
        return shuttle::replay(test, &schedule);
    }
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let count = number("LARDER_SCHEDULES").and_then(|count| usize::try_from(count).ok());
    let count = count.unwrap_or(SCHEDULES);
    let seed = number("LARDER_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(0, |now| u64::from(now.subsec_nanos()))
    });
    let name = std::thread::current().name().unwrap_or("?").to_owned();
    println!("{name}: LARDER_SEED={seed} repeats this run");
    let tried = run(RandomScheduler::new_from_seed(seed, count), test.clone());
    let more = run(PctScheduler::new_from_seed(seed, PCT_DEPTH, count), test);
    println!("{name}: {} schedules", tried + more);
}

fn run(scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = shuttle::Config::new();
    config.stack_size = STACK;
    shuttle::Runner::new(scheduler, config).run(test)
}
