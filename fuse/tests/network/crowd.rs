//! Sixty-four readers at once: what a registry is asked for them when it fails.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use larder_fuse::{DataPlane, DriverChoice, Layer};
use larder_test_support::layer::LayerFixture;
use larder_test_support::noise::noise;
use larder_test_support::registry::{Cdn, Fault, On};
use larder_test_support::tar::{Entry, TarBuilder};

use crate::log;
use crate::matrix::{Scratch, plane};
use crate::site::{DEADLINE, Site, Way};

const READERS: usize = 64;

/// Chunks of the layer: each reader has four of its own.
const CHUNKS: usize = 4 * READERS;

/// Bytes of a chunk's file; smaller than a chunk may be, so that each file is one.
const FILE_BYTES: usize = 66_000;

/// A seed that is printed, so that a run can be had again: `LARDER_SEED`.
pub(crate) fn seed() -> u64 {
    let told = std::env::var("LARDER_SEED").ok();
    let told = told.and_then(|text| text.parse().ok());
    let seed = told.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        u64::from(now.unwrap().subsec_nanos())
    });
    println!("LARDER_SEED={seed}");
    seed
}

/// A mounted layer of [`CHUNKS`] files.
struct Crowd {
    site: Arc<Site>,
    place: PathBuf,
    seed: u64,
    layer: Layer,
    _plane: DataPlane,
    _scratch: Scratch,
}

impl Crowd {
    async fn new(way: Way, cdn: Option<Cdn>, tokens: Duration) -> Self {
        log::collect();
        let seed = seed();
        let file = |tar: TarBuilder, number| {
            tar.entry(Entry::file(format!("{number}"), content(seed, number)))
        };
        let tar = (0..CHUNKS).fold(TarBuilder::new(), file).finish();
        let site = Site::with(way, cdn, tokens, LayerFixture::new(tar));
        let scratch = Scratch(tempfile::tempdir().unwrap());
        // Small files are read ahead by the FUSE driver alone, which would make the count another's.
        let plane = plane(scratch.0.path(), DriverChoice::Auto).await;
        let layer = plane.add_layer(site.spec()).await.unwrap();
        let place = scratch.0.path().join("at");
        std::fs::create_dir(&place).unwrap();
        layer.mount(&place, &[]).await.unwrap();
        site.registry.clear_requests();
        Self {
            site: Arc::new(site),
            place,
            seed,
            layer,
            _plane: plane,
            _scratch: scratch,
        }
    }

    /// Every reader reads its four files, one after the other, each begun `pause` after the last; how
    /// many reads failed.
    async fn read_all(&self, pause: Duration) -> usize {
        let begun = Instant::now();
        let readers = (0..READERS).map(|reader| {
            let (place, seed) = (self.place.clone(), self.seed);
            tokio::task::spawn_blocking(move || {
                let mut failed = 0;
                for turn in 0..CHUNKS / READERS {
                    let number = turn * READERS + reader;
                    let at = pause * u32::try_from(turn).unwrap();
                    std::thread::sleep(at.saturating_sub(begun.elapsed()));
                    match read(&place.join(number.to_string())) {
                        Ok(bytes) => assert!(bytes == content(seed, number), "WRONG BYTES"),
                        Err(_) => failed += 1,
                    }
                }
                failed
            })
        });
        let failed = futures_util::future::join_all(readers).await;
        failed.into_iter().map(Result::unwrap).sum()
    }

    /// How many requests the registry and its CDN got, and how many of them were for a token.
    fn asked(&self) -> (usize, usize) {
        let seen = self.site.registry.requests();
        let tokens = seen.iter().filter(|one| one.path == "/token").count();
        (seen.len() - tokens, tokens)
    }
}

fn content(seed: u64, number: usize) -> Vec<u8> {
    noise(seed.wrapping_add(number as u64), FILE_BYTES)
}

fn read(path: &PathBuf) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let mut bytes = vec![0; FILE_BYTES];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

const LONG: Duration = Duration::from_mins(5);

/// Requests for one of so many of which the registry has an error: one for ten good answers.
const ONE_IN: usize = 11;

/// What the requests at a registry were, all of them.
struct Account {
    all: usize,
    tokens: usize,
    /// Asked without a token, as whoever comes first does.
    strangers: usize,
    errors: usize,
    good: usize,
}

impl Account {
    fn of(crowd: &Crowd) -> Self {
        let seen = crowd.site.registry.requests();
        let (_, tokens) = crowd.asked();
        let strangers = seen
            .iter()
            .filter(|one| !one.authorized && one.path != "/token");
        let (strangers, errors) = (strangers.count(), crowd.site.registry.faults_done());
        let good = seen.len() - tokens - strangers - errors;
        Self {
            all: seen.len(),
            tokens,
            strangers,
            errors,
            good,
        }
    }

    /// Holds it to the promise, where one of `one_in` requests failed and `sent` bytes of `layer` came.
    fn settle(&self, one_in: usize, sent: u64, layer: &LayerFixture) {
        let Self {
            all,
            tokens,
            strangers,
            errors,
            good,
        } = *self;
        let times = (good + errors) as f64 / good as f64;
        println!(
            "{all} requests: {tokens} for tokens, {strangers} without one, {errors} errors, {good} good \
             answers; {times:.4} times as many as without errors, {sent} bytes"
        );
        let frames = layer.chunks.last().unwrap();
        assert!(sent <= frames.stored_offset + u64::from(frames.stored_len));
        assert!(
            errors >= (good + errors) / one_in && errors > 0,
            "{errors} errors"
        );
        // A log-in is asked for once, by however many came first.
        assert!(tokens <= 1 && strangers <= 16, "{tokens}, {strangers}");
        // To the request: the last error may have come before the good answers to it.
        let allowed = good.div_ceil(one_in - 1);
        assert!(errors <= allowed, "{errors} errors, {good} good");
    }
}

/// Promise: an error costs one more request, never more, and nothing is fetched twice: with one error for
/// ten good answers, a registry is asked 1.1 times as often as without.
#[tokio::test(flavor = "multi_thread")]
async fn errors_cost_one_more_request_each() {
    let crowd = Crowd::new(Way::Plain, None, LONG).await;
    let registry = &crowd.site.registry;
    let error = Fault::Status(500, None);
    registry.fault_one_in(ONE_IN, crowd.seed, On::Blobs, error);
    assert_eq!(crowd.read_all(Duration::ZERO).await, 0, "reads failed");
    Account::of(&crowd).settle(ONE_IN, registry.blob_bytes_sent(), &crowd.site.fixture);
}

/// Promise: the same of what is fetched for nobody in particular.
#[tokio::test(flavor = "multi_thread")]
async fn errors_cost_the_background_one_more_request_each() {
    let crowd = Crowd::new(Way::Plain, None, LONG).await;
    let registry = &crowd.site.registry;
    let error = Fault::Status(500, None);
    // It makes few requests, so more of them fail.
    registry.fault_one_in(3, crowd.seed, On::Blobs, error);
    crowd.layer.fetch_all().await.unwrap();
    Account::of(&crowd).settle(3, registry.blob_bytes_sent(), &crowd.site.fixture);
}

/// Promise: a registry that answers nothing but errors is asked at most three times per read that waits
/// for it, however many wait; afterwards it is found at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_registry_is_asked_at_most_three_times_per_read() {
    let crowd = Crowd::new(Way::Plain, None, LONG).await;
    let registry = &crowd.site.registry;
    registry.set_fault(Fault::Status(503, None));
    let failed = crowd.read_all(Duration::ZERO).await;
    let asked = registry.requests().len();
    let times = asked as f64 / failed as f64;
    println!("{asked} requests, all told, for {failed} failed reads: {times:.3} each");
    assert_eq!(failed, CHUNKS);
    assert!(asked <= 3 * failed, "{asked} requests for {failed} reads");
    registry.clear_faults();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let begun = Instant::now();
    assert_eq!(crowd.read_all(Duration::ZERO).await, 0);
    println!("healed in {:?}", begun.elapsed());
}

/// Promise: a blob that is gone is not hammered: two looks for each request that can be under way, in
/// thirty seconds (here: in one deadline), whoever reads.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_blob_is_not_hammered() {
    for status in [401, 403, 404, 410] {
        let crowd = Crowd::new(Way::Plain, None, LONG).await;
        let registry = &crowd.site.registry;
        registry.set_fault(Fault::Status(status, None));
        let begun = Instant::now();
        let failed = crowd.read_all(Duration::ZERO).await;
        let (asked, _) = crowd.asked();
        println!(
            "{status}: {asked} requests for {failed} reads in {:?}",
            begun.elapsed()
        );
        assert_eq!(failed, CHUNKS);
        // Each time the sixteen that were on their way before anybody knew, and one second look.
        let times = 1 + begun.elapsed().as_millis() / DEADLINE.as_millis();
        let most = 32 * usize::try_from(times).unwrap();
        assert!(asked <= most, "{status}: {asked}");
    }
}

/// Promise: sixty-four readers over tokens that live two seconds ask for one token each time.
#[tokio::test(flavor = "multi_thread")]
async fn expiring_tokens_cost_one_request_each() {
    let life = Duration::from_secs(2);
    let crowd = Crowd::new(Way::Plain, None, life).await;
    let begun = Instant::now();
    let failed = crowd.read_all(Duration::from_millis(1700)).await;
    let lives = begun.elapsed().as_secs_f64() / 1.5;
    let (asked, tokens) = crowd.asked();
    println!("{asked} requests, {tokens} tokens in {:?}", begun.elapsed());
    assert_eq!(failed, 0, "reads failed");
    assert!(tokens >= 2, "nothing expired");
    assert!(
        tokens as f64 <= lives + 1.0,
        "{tokens} tokens in {lives} lives"
    );
}

/// Promise: sixty-four readers over signed URLs that live two seconds read without an error, and a URL
/// that ends costs three requests at most; where URLs do not say when they end, that is learned once.
#[tokio::test(flavor = "multi_thread")]
async fn expiring_urls_cost_three_requests_each() {
    for told in [true, false] {
        let cdn = Cdn {
            lifetime: Some(Duration::from_secs(2)),
            told,
            ..Cdn::default()
        };
        let crowd = Crowd::new(Way::Cdn, Some(cdn), LONG).await;
        // The first URL is asked for by everybody at once, and in vain kept by nobody.
        let begun = Instant::now();
        let failed = crowd.read_all(Duration::from_millis(2100)).await;
        let lives = begun.elapsed().as_secs_f64() / 1.0;
        let seen = crowd.site.registry.requests();
        let (at_store, at_registry) = seen
            .iter()
            .filter(|one| one.path != "/token")
            .partition::<Vec<_>, _>(|one| one.cdn);
        // Chunks beside each other may come by one request.
        let extra = (at_registry.len() + at_store.len()).saturating_sub(CHUNKS);
        println!(
            "told {told}: {} + {} requests, {extra} extra in {:?}",
            at_registry.len(),
            at_store.len(),
            begun.elapsed()
        );
        assert_eq!(failed, 0, "reads failed");
        assert!(at_store.iter().all(|one| !one.authorized));
        // Who asks first, sixteen at once, learns the way each for itself; the same when the first URL
        // that did not tell its end ends.
        let learning = if told { 16.0 } else { 48.0 };
        assert!(extra as f64 <= 3.0 * lives + learning, "{extra} extra");
    }
}
