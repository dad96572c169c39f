//! Broken and lying registries: right bytes or an error, within bounded time and requests.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use larder_proto::digest::Digest;
use larder_registry::{Cause, RegistryError, Repository};
use larder_test_support::registry::{FakeRegistry, Fault, On};

use crate::world::{TestClock, noise, options, repository};

const SIZE: usize = 200_000;
const SIZE_64: u64 = SIZE as u64;

async fn world() -> (FakeRegistry, Digest, Vec<u8>, Repository, TestClock) {
    let registry = FakeRegistry::start().await;
    let bytes = noise(SIZE);
    let digest = registry.push_blob(bytes.clone());
    let clock = TestClock::new();
    let repository = repository(&registry, options(&clock));
    (registry, digest, bytes, repository, clock)
}

async fn whole(repository: &Repository, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
    let parts: Vec<Bytes> = repository
        .blob(digest)
        .await?
        .verified()
        .try_collect()
        .await?;
    Ok(parts.concat())
}

/// Faults that pass: one of them costs one more request, never a wrong byte.
fn passing() -> Vec<Fault> {
    vec![
        Fault::StallBeforeHeaders,
        Fault::StallMidBody,
        Fault::Drip(10, Duration::from_millis(100)),
        Fault::ShortBody,
        Fault::Reset,
        Fault::DropAnswer,
        Fault::Status(408, None),
        Fault::Status(429, Some("1".into())),
        Fault::Status(500, None),
        Fault::Status(502, None),
        Fault::Status(503, Some("Sun, 06 Nov 1994 08:49:37 GMT".into())),
        Fault::Status(504, None),
    ]
}

#[tokio::test]
async fn a_passing_fault_costs_one_more_request() {
    for fault in passing() {
        let (registry, digest, bytes, repository, _) = world().await;
        for read in ["range", "whole", "small"] {
            registry.clear_requests();
            registry.fault_times(1, On::Blobs, fault.clone());
            let got = match read {
                "range" => repository
                    .blob_range(&digest, 0..SIZE_64)
                    .await
                    .map(Vec::from),
                "whole" => whole(&repository, &digest).await,
                _ => repository.blob_bytes(&digest, SIZE_64).await.map(Vec::from),
            };
            let got = got.unwrap_or_else(|error| panic!("{fault:?} {read}: {error}"));
            assert!(got == bytes, "{fault:?} {read}");
            assert_eq!(registry.requests().len(), 2, "{fault:?} {read}");
        }
    }
}

/// What has come before a break is not fetched again.
#[tokio::test]
async fn a_broken_body_is_resumed_at_the_byte_where_it_broke() {
    for fault in [Fault::ShortBody, Fault::Reset, Fault::StallMidBody] {
        let (registry, digest, bytes, repository, _) = world().await;
        registry.fault_times(1, On::Blobs, fault.clone());
        let part = repository
            .blob_range(&digest, 50_000..150_000)
            .await
            .unwrap();
        assert_eq!(part, bytes[50_000..150_000]);
        let ranges: Vec<_> = registry
            .requests()
            .into_iter()
            .filter_map(|r| r.range)
            .collect();
        assert_eq!(
            ranges,
            ["bytes=50000-149999", "bytes=100000-149999"],
            "{fault:?}"
        );
        registry.clear_requests();
        registry.fault_times(3, On::Blobs, fault.clone());
        assert!(whole(&repository, &digest).await.unwrap() == bytes);
        let ranges: Vec<_> = registry.requests().into_iter().map(|r| r.range).collect();
        let from = |n: u32| Some(format!("bytes={n}-"));
        assert_eq!(
            ranges,
            [None, from(100_000), from(150_000), from(175_000)],
            "{fault:?}"
        );
    }
}

/// Faults that do not pass are final at the first answer; the reason is told.
#[tokio::test]
async fn a_lasting_fault_fails_at_once_and_says_why() {
    for (fault, reason) in [
        (Fault::Status(401, None), "does not accept the credentials"),
        (Fault::Status(403, None), "access denied"),
        (Fault::Status(404, None), "not found"),
        (Fault::Status(410, None), "not found"),
        (Fault::Status(416, None), "answered 416"),
        (Fault::LongBody, "more bytes than it was asked for"),
        (
            Fault::WrongContentRange,
            "was asked for bytes 0-199998 and sends \"bytes 1-199999/200001\"",
        ),
        (Fault::Multipart, "sends something else"),
        (Fault::Gzip, "compressed on its way"),
        (Fault::Portal, "is there a login page"),
        (Fault::RedirectLoop, "redirects more than 5 times"),
        (
            Fault::RedirectTo("ftp://127.0.0.1/x".into()),
            "scheme \"ftp\"",
        ),
        (Fault::RedirectTo("http://".into()), "no URL"),
        (Fault::RedirectTo(String::new()), "without saying where"),
    ] {
        let (registry, digest, _, repository, clock) = world().await;
        registry.set_fault(fault.clone());
        let error = repository
            .blob_range(&digest, 0..SIZE_64 - 1)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(reason), "{fault:?}: {error}");
        assert!(!error.is_transient(), "{fault:?}: {error}");
        assert!(registry.requests().len() <= 6, "{fault:?}");
        assert_eq!(clock.waits(), [], "{fault:?}");
    }
}

/// A server that ignores ranges may send a small blob whole; its digest is checked.
#[tokio::test]
async fn a_small_blob_may_come_whole_and_a_large_one_may_not() {
    let (registry, digest, bytes, repository, _) = world().await;
    let large = registry.push_blob(vec![1; 9 << 20]);
    registry.set_fault(Fault::IgnoreRange);
    let part = repository.blob_range(&digest, 7..9_000).await.unwrap();
    assert_eq!(part, bytes[7..9_000]);
    let error = repository.blob_range(&large, 7..9_000).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::TooLarge { .. }), "{error}");
    let error = repository
        .blob_range(&digest, 0..SIZE_64 + 1)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("only 200000 bytes"), "{error}");
    registry.clear_faults();
    // A resumed download from a server that begins anew passes over what it has.
    registry.fault_times(1, On::Blobs, Fault::ShortBody);
    registry.fault_times(1, On::Blobs, Fault::IgnoreRange);
    assert!(whole(&repository, &digest).await.unwrap() == bytes);
}

/// Wrong bytes of the right length are found out wherever the digest is known here.
#[tokio::test]
async fn other_bytes_are_not_taken_for_the_blob() {
    for fault in [Fault::FlippedBit, Fault::OtherBlob] {
        let (registry, digest, _, repository, _) = world().await;
        registry.set_fault(fault.clone());
        for error in [
            whole(&repository, &digest).await.unwrap_err(),
            repository.blob_bytes(&digest, SIZE_64).await.unwrap_err(),
        ] {
            assert!(
                matches!(error.cause(), Cause::WrongDigest { .. }),
                "{fault:?}: {error}"
            );
            assert!(error.to_string().contains("team/app"), "{error}");
        }
    }
}

/// The same for manifests, by digest or by what the registry itself announces.
#[tokio::test]
async fn manifests_are_checked_and_bounded() {
    let kind = larder_registry::oci::media_type::OCI_MANIFEST;
    for (fault, reason) in [
        (
            Fault::Body(Bytes::from_static(b"{\"other\": 1}")),
            "expected sha256:",
        ),
        (
            Fault::Body(vec![b' '; 5 << 20].into()),
            "exceeds the limit of 4194304",
        ),
        (Fault::Portal, "login page"),
        (Fault::Status(404, None), "not found"),
    ] {
        let (registry, _, _, repository, _) = world().await;
        let digest = registry.push_manifest("team/app", "v1", kind, "{\"layers\":[]}");
        registry.fault(On::Path("GET", "/manifests/"), fault.clone());
        let error = repository.manifest(&digest.to_string()).await.unwrap_err();
        assert!(error.to_string().contains(reason), "{fault:?}: {error}");
    }
    let (registry, _, _, repository, _) = world().await;
    registry.push_manifest("team/app", "v1", kind, "{\"layers\":[]}");
    let lie = Digest::of(b"lie").to_string();
    registry.fault(
        On::Path("GET", "/v1"),
        Fault::Header("docker-content-digest", lie),
    );
    let error = repository.manifest("v1").await.unwrap_err();
    assert!(
        matches!(error.cause(), Cause::WrongDigest { .. }),
        "{error}"
    );
    registry.clear_faults();
    for fault in passing() {
        registry.fault_times(1, On::Path("GET", "/manifests/"), fault.clone());
        registry.fault_times(1, On::Path("HEAD", "/manifests/"), fault.clone());
        let fetched = repository.manifest("v1").await;
        let head = repository.head_manifest("v1").await;
        assert_eq!(fetched.unwrap().descriptor(), head.unwrap(), "{fault:?}");
        registry.clear_faults();
    }
}

/// A size that is not told is asked for in other ways, and missed by nobody.
#[tokio::test]
async fn a_blob_without_content_length_comes_whole() {
    let (registry, digest, bytes, repository, _) = world().await;
    registry.fault(On::All, Fault::Chunked);
    assert!(whole(&repository, &digest).await.unwrap() == bytes);
    assert_eq!(
        repository.blob_range(&digest, 5..50).await.unwrap(),
        bytes[5..50]
    );
    assert_eq!(
        repository.blob_exists(&digest).await.unwrap(),
        Some(SIZE_64)
    );
}

/// Six attempts, waits that grow, and then an error that one may retry later.
#[tokio::test]
async fn a_registry_that_stays_broken_is_given_up() {
    let (registry, digest, _, repository, clock) = world().await;
    registry.set_fault(Fault::Status(503, None));
    let error = repository.blob_range(&digest, 0..10).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(registry.requests().len(), 6);
    let waits: Vec<_> = clock.waits().iter().map(Duration::as_millis).collect();
    assert_eq!(waits, [150, 300, 600, 1200, 2400]);
    let nobody = larder_test_support::registry::FakeRegistry::start().await;
    let repository = crate::world::repository(&nobody, options(&clock));
    drop(nobody);
    tokio::task::yield_now().await;
    let error = repository.blob_range(&digest, 0..10).await.unwrap_err();
    assert!(
        error.is_transient() && error.to_string().contains("cannot talk to"),
        "{error}"
    );
}

/// Ten per cent of errors cost ten per cent of requests, and a dead registry is not stormed.
#[tokio::test]
async fn retries_stay_within_the_budget() {
    let (registry, digest, _, repository, _) = world().await;
    registry.set_fault(Fault::Status(503, None));
    for _ in 0..300 {
        let _ = repository.blob_range(&digest, 0..10).await;
    }
    let requests = registry.requests().len();
    assert!(requests <= 300 * 3, "{requests} requests for 300 reads");
}

/// The whole call has a deadline, however the registry spends the time.
#[tokio::test]
async fn no_call_outlives_its_deadline() {
    let (registry, digest, ..) = world().await;
    let mut options = options(&TestClock::new());
    options.timeouts.call = Duration::from_millis(700);
    options.timeouts.answer = Duration::from_mins(1);
    let repository = repository(&registry, options);
    registry.set_fault(Fault::StallBeforeHeaders);
    let begun = Instant::now();
    let error = repository.blob_range(&digest, 0..10).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Deadline { .. }), "{error}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

/// A registry that goes away and comes back is found again, whoever was connected.
#[tokio::test]
async fn a_registry_that_comes_back_is_found_again() {
    let (registry, digest, bytes, repository, _) = world().await;
    repository.blob_range(&digest, 0..10).await.unwrap();
    registry.set_down(true);
    let error = repository.blob_range(&digest, 0..10).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    registry.set_down(false);
    assert_eq!(
        repository.blob_range(&digest, 0..10).await.unwrap(),
        bytes[..10]
    );
}

/// Promise: where connections fell silent, as behind a firewall that forgot them, one attempt finds that out
/// for all of them, however many are kept.
#[tokio::test]
async fn connections_that_fell_silent_cost_one_attempt() {
    let (registry, digest, bytes, repository, clock) = world().await;
    registry.fault(On::Blobs, Fault::Delay(Duration::from_millis(200)));
    let reads = (0..8).map(|_| repository.blob_range(&digest, 0..10));
    for read in futures_util::future::join_all(reads).await {
        assert!(read.is_ok());
    }
    registry.clear_faults();
    registry.clear_requests();
    registry.fault(On::All, Fault::Mute);
    let read = repository.blob_range(&digest, 0..SIZE_64).await.unwrap();
    assert!(read == bytes);
    // The first of them came to nobody.
    assert_eq!((registry.requests().len(), clock.waits().len()), (1, 1));
}

/// The same where who asked has stopped waiting, as a read does after a third of its deadline.
#[tokio::test]
async fn a_call_that_is_given_up_gives_silent_connections_up() {
    let (registry, digest, bytes, repository, _) = world().await;
    assert!(repository.blob_range(&digest, 0..10).await.is_ok());
    registry.fault(On::All, Fault::Mute);
    let patience = Duration::from_millis(300);
    let call = repository.blob_range(&digest, 0..SIZE_64);
    assert!(tokio::time::timeout(patience, call).await.is_err());
    let read = repository.blob_range(&digest, 0..SIZE_64);
    // It would wait for the answer's timeout on the old one first, and try again.
    let read = tokio::time::timeout(Duration::from_mins(1), read).await;
    assert!(read.expect("a new connection is made").unwrap() == bytes);
}
