//! Faults in a random order, one after the other and over each other, under readers that never stop.
//!
//! `scripts/soak faults --seed N --count M` runs it for longer.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larder_fuse::DriverChoice;
use larder_test_support::layer::LayerFixture;
use larder_test_support::noise::{Random, noise};
use larder_test_support::tar::{Entry, TarBuilder};

use crate::cell::{BUSY, HEALED_MAX};
use crate::crowd::seed;
use crate::log;
use crate::matrix::{Scratch, plane};
use crate::rows::{self, Row};
use crate::site::{DEADLINE, PASSWORD, Site, Way, certificates};

/// Readers of each layer.
const READERS: usize = 8;

/// Between two reads of a reader: as many readers without it would ask more than a busy machine answers,
/// and each read that waited behind the others would count as late.
const READ_EVERY: Duration = Duration::from_millis(250);

/// Faults in a row, unless `LARDER_COUNT` says otherwise: as many as CI has time for.
const FAULTS: u64 = 6;

/// Faults that meet the readers of one layer. Then so much of it is there that another one begins.
const FAULTS_PER_LAYER: u64 = 2;

/// Longest time that a fault lasts.
const FAULT_MILLIS_MAX: usize = 6000;

/// Bytes of the file that is read; far more than is read of it, so that there is always something to fetch.
const FILE_BYTES: usize = 24 << 20;

/// What readers saw.
#[derive(Debug, Default)]
struct Seen {
    reads: AtomicUsize,
    failed: AtomicUsize,
    longest_millis: AtomicUsize,
    stop: AtomicBool,
}

impl Seen {
    fn count(of: &AtomicUsize) -> usize {
        of.load(Ordering::Relaxed)
    }
}

/// Reads at random places until told to stop; any wrong byte and any late answer ends the test.
fn read_on(path: &Path, data: &[u8], seed: u64, seen: &Seen) {
    let mut random = Random::new(seed);
    let file = File::open(path).unwrap();
    let mut bytes = vec![0; 4096];
    while !seen.stop.load(Ordering::Relaxed) {
        let at = random.below(data.len() - bytes.len());
        let begun = Instant::now();
        let read = file.read_exact_at(&mut bytes, at as u64);
        let waited = begun.elapsed();
        // Over the border of two chunks it may be two requests of the kernel.
        assert!(
            waited < 2 * DEADLINE + BUSY,
            "a read at {at} took {waited:?}"
        );
        let millis = usize::try_from(waited.as_millis()).unwrap();
        seen.longest_millis.fetch_max(millis, Ordering::Relaxed);
        seen.reads.fetch_add(1, Ordering::Relaxed);
        match read {
            Ok(()) => assert!(bytes == data[at..at + bytes.len()], "WRONG BYTES at {at}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                seen.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        std::thread::sleep(READ_EVERY);
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
    let mut random = Random::new(seed);
    let (mut left, mut reads, mut failed, mut longest) = (count, 0, 0, 0);
    let ways = [
        Way::Plain,
        Way::Cdn,
        Way::Tls,
        Way::Mirror,
        Way::Proxy,
        Way::TlsProxy,
    ];
    while left > 0 {
        // Most rows are of the first.
        let way = ways[random.below(2 * ways.len()).saturating_sub(ways.len())];
        let faults = left.min(FAULTS_PER_LAYER);
        let seen = episode(way, faults, &mut random).await;
        reads += Seen::count(&seen.reads);
        failed += Seen::count(&seen.failed);
        longest = longest.max(Seen::count(&seen.longest_millis));
        left -= faults;
    }
    println!("{count} faults, {reads} reads, {failed} of them EIO, the longest {longest} ms");
    let shown = log::lines(|line| line.contains(PASSWORD));
    assert_eq!(shown, Vec::<String>::new(), "the log shows the password");
}

/// A layer with readers, and faults that come while they read.
async fn episode(way: Way, faults: u64, random: &mut Random) -> Arc<Seen> {
    let data = Arc::new(noise(random.draw(), FILE_BYTES));
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
            let seed = random.draw();
            tokio::task::spawn_blocking(move || read_on(&path, &data, seed, &seen))
        })
        .collect();
    let of_this_way = |row: &Row| row.way == way;
    let rows: Vec<Row> = rows::all().into_iter().filter(of_this_way).collect();
    for _ in 0..faults {
        let row = &rows[random.below(rows.len())];
        let time = Duration::from_millis(random.below(FAULT_MILLIS_MAX) as u64);
        println!("{way:?} {driver:?}: {} for {time:?}", row.name);
        row.arm(&site);
        tokio::time::sleep(time).await;
        // Now and then the next one comes before this one has gone.
        if random.below(4) > 0 {
            heal(&site, &seen).await;
        }
    }
    heal(&site, &seen).await;
    seen.stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(!site.leaks(), "credentials were shown to another host");
    plane.shutdown().await;
    seen
}

/// Ends all faults, and waits until reads succeed again and none fails for a while.
async fn heal(site: &Site, seen: &Seen) {
    site.registry.clear_faults();
    site.pass_time();
    let begun = Instant::now();
    loop {
        let before = (Seen::count(&seen.failed), Seen::count(&seen.reads));
        tokio::time::sleep(4 * READ_EVERY).await;
        let after = (Seen::count(&seen.failed), Seen::count(&seen.reads));
        if after.0 == before.0 && after.1 > before.1 + READERS {
            return;
        }
        let waited = begun.elapsed();
        assert!(waited < HEALED_MAX, "not healed in {waited:?}");
    }
}
