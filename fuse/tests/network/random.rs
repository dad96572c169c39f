//! Faults in a random order, one after the other and over each other, under readers that never stop.
//!
//! `scripts/soak faults --seed N --count M` runs it for longer.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use larder_fuse::DriverChoice;
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::cell::noise;
use crate::crowd::seed;
use crate::log;
use crate::matrix::{Scratch, plane};
use crate::rows::{self, Row};
use crate::site::{DEADLINE, PASSWORD, Site, Way, certificates};

/// Readers of each layer.
const READERS: usize = 8;

/// Faults in a row, unless `LARDER_COUNT` says otherwise: as many as CI has time for.
const FAULTS: u64 = 16;

/// Bytes of the file that is read; it is far larger than what is read of it, so that there is always
/// something to fetch.
const FILE_BYTES: usize = 24 << 20;

/// What a busy machine adds to a deadline.
const BUSY: Duration = Duration::from_secs(5);

/// A sequence that a seed decides.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 20).unwrap() % end
    }
}

/// What readers saw.
#[derive(Debug, Default)]
struct Seen {
    reads: AtomicUsize,
    failed: AtomicUsize,
    stop: AtomicBool,
}

/// Reads at random places until told to stop; any wrong byte and any late answer ends the test.
fn read_on(path: &Path, data: &[u8], seed: u64, seen: &Seen) {
    let mut random = Random(seed | 1);
    let file = std::fs::File::open(path).unwrap();
    let mut bytes = vec![0; 4096];
    while !seen.stop.load(Ordering::Relaxed) {
        let at = random.below(data.len() - bytes.len());
        let begun = std::time::Instant::now();
        let read = file.read_exact_at(&mut bytes, at as u64);
        let waited = begun.elapsed();
        assert!(waited < DEADLINE + BUSY, "a read at {at} took {waited:?}");
        seen.reads.fetch_add(1, Ordering::Relaxed);
        match read {
            Ok(()) => assert!(bytes == data[at..at + bytes.len()], "WRONG BYTES at {at}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                seen.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Promise: no sequence of faults gives a reader a wrong byte or keeps it beyond its deadline, and after
/// each of them everybody reads on.
#[tokio::test(flavor = "multi_thread")]
async fn no_sequence_of_faults_hangs_or_lies() {
    log::collect();
    drop(certificates());
    let seed = seed();
    let count = std::env::var("LARDER_COUNT").ok();
    let count = count.and_then(|text| text.parse().ok()).unwrap_or(FAULTS);
    let mut random = Random(seed | 1);
    let mut left = count;
    let mut totals = (0, 0);
    // A layer is read for a while; then it is nearly complete, and the next one begins.
    while left > 0 {
        let way = [Way::Plain, Way::Plain, Way::Cdn, Way::Tls, Way::Mirror][random.below(5)];
        let turns = left.min(8);
        let (reads, failed) = episode(way, turns, &mut random).await;
        totals = (totals.0 + reads, totals.1 + failed);
        left -= turns;
    }
    println!(
        "{count} faults, {} reads, {} of them EIO",
        totals.0, totals.1
    );
    let shown = log::lines(|line| line.contains(PASSWORD));
    assert_eq!(shown, Vec::<String>::new(), "the log shows the password");
}

async fn episode(way: Way, turns: u64, random: &mut Random) -> (usize, usize) {
    let data = Arc::new(noise(random.0, FILE_BYTES));
    let tar = TarBuilder::new()
        .entry(Entry::file("data", &**data))
        .finish();
    let site = Site::new(way, LayerFixture::new(tar));
    let driver = [DriverChoice::Auto, DriverChoice::Fuse][random.below(2)];
    let scratch = Scratch(tempfile::tempdir().unwrap());
    let plane = plane(scratch.0.path(), driver).await;
    let layer = plane.add_layer(site.spec()).await.unwrap();
    let place: PathBuf = scratch.0.path().join("at");
    std::fs::create_dir(&place).unwrap();
    layer.mount(&place, &[]).await.unwrap();
    let seen = Arc::new(Seen::default());
    let readers: Vec<_> = (0..READERS)
        .map(|_| {
            let (path, data, seen) = (place.join("data"), data.clone(), seen.clone());
            let seed = random.0.wrapping_add(random.below(1 << 20) as u64);
            tokio::task::spawn_blocking(move || read_on(&path, &data, seed, &seen))
        })
        .collect();
    let rows: Vec<Row> = rows::all()
        .into_iter()
        .filter(|row| row.way == way)
        .collect();
    for _ in 0..turns {
        let row = &rows[random.below(rows.len())];
        let time = Duration::from_millis(random.below(2 * 3000) as u64);
        println!("{way:?} {driver:?}: {} for {time:?}", row.name);
        row.arm(&site);
        tokio::time::sleep(time).await;
        // Now and then the next one comes before this one has gone.
        if random.below(4) > 0 {
            site.registry.clear_faults();
            site.pass_time();
            heals(&seen).await;
        }
    }
    site.registry.clear_faults();
    site.pass_time();
    heals(&seen).await;
    seen.stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(!site.leaks(), "credentials were shown to another host");
    plane.shutdown().await;
    let count = |of: &AtomicUsize| of.load(Ordering::Relaxed);
    (count(&seen.reads), count(&seen.failed))
}

/// Waits until reads succeed again and none fails for a while.
async fn heals(seen: &Seen) {
    let failed = || seen.failed.load(Ordering::Relaxed);
    let reads = || seen.reads.load(Ordering::Relaxed);
    let begun = std::time::Instant::now();
    loop {
        let before = (failed(), reads());
        tokio::time::sleep(Duration::from_millis(500)).await;
        if failed() == before.0 && reads() > before.1 + READERS {
            return;
        }
        let waited = begun.elapsed();
        assert!(waited < Duration::from_secs(30), "not healed in {waited:?}");
    }
}
