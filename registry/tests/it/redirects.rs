//! Redirects: remembered, renewed, and never a way out for credentials.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use larder_proto::digest::Digest;
use larder_registry::{Cause, ClientOptions, Repository};
use larder_test_support::registry::{Auth, Cdn, FakeRegistry, Fault, On, Seen, Settings};

use crate::world::{TestClock, login, noise, options, repository};

async fn world(cdn: Cdn, auth: Auth) -> (FakeRegistry, Digest, Vec<u8>, Repository, TestClock) {
    let settings = Settings {
        cdn: Some(cdn),
        auth,
        ..Settings::default()
    };
    let registry = FakeRegistry::start_with(settings).await;
    let bytes = noise(100_000);
    let digest = registry.push_blob(bytes.clone());
    let clock = TestClock::new();
    let authfile = Some(login(&registry.host(), "anna", "hunter2"));
    let repository = repository(
        &registry,
        ClientOptions {
            authfile,
            ..options(&clock)
        },
    );
    (registry, digest, bytes, repository, clock)
}

fn basic() -> Auth {
    Auth::Basic {
        username: "anna".into(),
        password: "hunter2".into(),
    }
}

/// How many requests the registry and its CDN got.
fn counts(seen: &[Seen]) -> (usize, usize) {
    let cdn = seen.iter().filter(|request| request.cdn).count();
    (seen.len() - cdn, cdn)
}

#[tokio::test]
async fn the_target_is_remembered_and_gets_no_credentials() {
    for hops in [1, 3, 5] {
        let (registry, digest, bytes, repository, _) = world(
            Cdn {
                hops,
                ..Cdn::default()
            },
            basic(),
        )
        .await;
        for start in 0..20 {
            let part = repository
                .blob_range(&digest, start..start + 1000)
                .await
                .unwrap();
            let start = usize::try_from(start).unwrap();
            assert_eq!(part, bytes[start..start + 1000]);
        }
        let seen = registry.requests();
        let hops = usize::try_from(hops).unwrap();
        // A 401, a redirect, and the CDN for the rest.
        assert_eq!(counts(&seen), (2, 19 + hops));
        assert!(
            seen.iter().filter(|r| r.cdn).all(|r| !r.authorized),
            "{seen:?}"
        );
        let parts: Vec<_> = repository
            .blob(&digest)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert_eq!(parts.concat(), bytes);
        assert_eq!(counts(&registry.requests()), (2, 20 + hops));
    }
    let (registry, digest, _, repository, _) = world(
        Cdn {
            hops: 6,
            ..Cdn::default()
        },
        basic(),
    )
    .await;
    let error = repository.blob_range(&digest, 0..10).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Redirect { .. }), "{error}");
    assert_eq!(counts(&registry.requests()).1, 5);
}

/// The end that the target carries is kept, with time to spare.
#[tokio::test]
async fn an_expiring_target_is_asked_for_anew() {
    for (query, cache, life) in [
        ("", None, 60),
        ("", Some("max-age=20"), 20),
        ("Expires=100", None, 0),
    ] {
        let cdn = Cdn {
            query: query.into(),
            cache_control: cache.map(Into::into),
            ..Cdn::default()
        };
        let (registry, digest, _, repository, clock) = world(cdn, Auth::None).await;
        repository.blob_range(&digest, 0..10).await.unwrap();
        clock.advance(Duration::from_secs(life).saturating_sub(Duration::from_secs(1)));
        repository.blob_range(&digest, 0..10).await.unwrap();
        let kept = if life == 0 { 2 } else { 1 };
        assert_eq!(counts(&registry.requests()), (kept, 2), "{query} {cache:?}");
        clock.advance(Duration::from_secs(2));
        repository.blob_range(&digest, 0..10).await.unwrap();
        assert_eq!(
            counts(&registry.requests()),
            (kept + 1, 3),
            "{query} {cache:?}"
        );
    }
}

/// A URL that is refused earlier than it said leads back to the registry, not to the log-in.
#[tokio::test]
async fn a_refused_target_is_renewed_once() {
    for status in [400, 401, 403, 404, 410] {
        let (registry, digest, bytes, repository, clock) = world(Cdn::default(), basic()).await;
        repository.blob_range(&digest, 0..10).await.unwrap();
        registry.clear_requests();
        registry.fault_times(1, On::Cdn, Fault::Status(status, None));
        assert_eq!(
            repository.blob_range(&digest, 5..10).await.unwrap(),
            bytes[5..10]
        );
        assert_eq!(counts(&registry.requests()), (1, 2), "{status}");
        registry.clear_requests();
        registry.expire_urls();
        assert_eq!(
            repository.blob_range(&digest, 5..10).await.unwrap(),
            bytes[5..10]
        );
        assert_eq!(counts(&registry.requests()), (1, 2), "{status}");
        registry.clear_requests();
        registry.fault(On::Cdn, Fault::Status(status, None));
        let error = repository.blob_range(&digest, 5..10).await.unwrap_err();
        assert!(
            !error.is_unauthorized() && !error.is_not_found(),
            "{status}: {error}"
        );
        assert!(error.to_string().contains("has just signed"), "{error}");
        assert_eq!(counts(&registry.requests()), (1, 2), "{status}");
        assert_eq!(clock.waits(), [], "{status}");
    }
}

/// URLs that live a fraction of a long read's time: no error, whatever expires when.
#[tokio::test]
async fn short_lived_urls_carry_a_long_read() {
    let lifetime = Some(Duration::from_secs(1));
    let (registry, digest, bytes, repository, _) = world(
        Cdn {
            lifetime,
            ..Cdn::default()
        },
        basic(),
    )
    .await;
    for round in 0..60_u64 {
        let start = round * 100;
        let part = repository
            .blob_range(&digest, start..start + 100)
            .await
            .unwrap();
        let start = usize::try_from(start).unwrap();
        assert_eq!(part, bytes[start..start + 100]);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let (own, cdn) = counts(&registry.requests());
    assert!(own + cdn <= 60 * 3, "{own} + {cdn}");
    assert!(own > 2, "nothing expired");
}

#[tokio::test]
async fn a_broken_cdn_is_left_and_found_again() {
    for fault in [
        Fault::Reset,
        Fault::ShortBody,
        Fault::StallBeforeHeaders,
        Fault::Status(503, None),
    ] {
        let (registry, digest, bytes, repository, _) = world(Cdn::default(), basic()).await;
        repository.blob_range(&digest, 0..10).await.unwrap();
        registry.fault_times(1, On::Cdn, fault.clone());
        let part = repository.blob_range(&digest, 100..50_000).await;
        assert_eq!(part.unwrap(), bytes[100..50_000], "{fault:?}");
    }
}

/// Two hundred ways through other hosts and back: credentials stay at home.
#[tokio::test]
async fn credentials_never_leave_on_any_path() {
    let victim = FakeRegistry::start().await;
    for round in 0..50_u32 {
        let (registry, digest, _, repository, _) = world(Cdn::default(), basic()).await;
        // Away to the victim, which sends the client on to the registry's CDN or back home.
        let home = format!("http://{}/v2/team/app/blobs/{digest}", registry.host());
        let away = format!("http://{}/away/{round}", victim.host());
        let times = 1 + round % 4;
        // From now on it has credentials to lose.
        repository.head_manifest("none").await.unwrap_err();
        registry.fault_times(times, On::Blobs, Fault::RedirectTo(away));
        victim.fault_times(times, On::All, Fault::RedirectTo(home));
        let _ = repository.blob_range(&digest, 0..10).await;
        victim.clear_faults();
    }
    let seen = victim.requests();
    assert!(seen.len() >= 50, "{}", seen.len());
    assert!(seen.iter().all(|request| !request.authorized), "{seen:?}");
}

/// What a store says of a signature is not what the registry says of the blob.
#[tokio::test]
async fn existence_is_learned_behind_a_redirect_too() {
    let cdn = Cdn {
        head: true,
        ..Cdn::default()
    };
    let (registry, digest, _, repository, _) = world(cdn, basic()).await;
    assert_eq!(
        repository.blob_exists(&digest).await.unwrap(),
        Some(100_000)
    );
    assert_eq!(
        repository.blob_exists(&Digest::of(b"no")).await.unwrap(),
        None
    );
    registry.fault(On::Cdn, Fault::Status(404, None));
    let error = repository.blob_exists(&digest).await.unwrap_err();
    assert!(error.to_string().contains("has just signed"), "{error}");
}

/// Regression: what was learned of time by a clock that was wrong outlived its correction by years: a
/// mirror that had failed once was passed over, and a refusal stood, until the old time came again.
#[tokio::test]
async fn a_step_of_the_clock_makes_nothing_live_longer() {
    const TEN_YEARS: i64 = 10 * 365 * 86_400;
    for step in [TEN_YEARS, -TEN_YEARS, -3600] {
        let cdn = Cdn {
            lifetime: Some(Duration::from_mins(5)),
            told: true,
            ..Cdn::default()
        };
        let (registry, digest, bytes, repository, clock) = world(cdn, basic()).await;
        let read = async || {
            registry.clear_requests();
            let part = repository.blob_range(&digest, 5..10).await.unwrap();
            assert_eq!(part, bytes[5..10], "{step}");
            counts(&registry.requests())
        };
        read().await;
        clock.step(step);
        // The target is as good as before, and no longer: its end is told by the registry's clock.
        assert_eq!(read().await, (0, 1), "{step}");
        clock.advance(Duration::from_secs(290));
        assert_eq!(read().await, (0, 1), "{step}");
        clock.advance(Duration::from_secs(20));
        assert_eq!(read().await, (1, 1), "{step}");
        // Nor is a refusal.
        registry.fault(On::Blobs, Fault::Status(404, None));
        registry.fault(On::Path("GET", "/manifests/"), Fault::Status(401, None));
        let refused = repository.manifest("v1").await.unwrap_err();
        assert!(refused.is_unauthorized(), "{refused}");
        clock.step(-step);
        registry.clear_faults();
        clock.advance(Duration::from_secs(31));
        let missing = repository.manifest("v1").await.unwrap_err();
        assert!(missing.is_not_found(), "{step}: {missing}");
    }
}

/// A wait that the registry asks for by a date is measured by the registry's own clock.
#[tokio::test]
async fn a_date_to_wait_for_is_of_the_registrys_clock() {
    let (registry, digest, _, repository, clock) = world(Cdn::default(), basic()).await;
    clock.step(-10 * 365 * 86_400);
    let past = "Sun, 06 Nov 1994 08:49:37 GMT".to_owned();
    registry.fault_times(1, On::Blobs, Fault::Status(503, Some(past)));
    repository.blob_range(&digest, 5..10).await.unwrap();
    // By the clock here, that date is two years from now.
    assert!(
        clock.waits()[0] < Duration::from_secs(1),
        "{:?}",
        clock.waits()
    );
}

/// Regression: URLs that live for seconds were never used twice, and each reader that found one expired
/// asked for a new one of its own.
#[tokio::test]
async fn a_crowd_renews_a_short_lived_url_once() {
    for told in [true, false] {
        let cdn = Cdn {
            lifetime: Some(Duration::from_secs(3)),
            told,
            ..Cdn::default()
        };
        let settings = Settings {
            cdn: Some(cdn),
            ..Settings::default()
        };
        let registry = FakeRegistry::start_with(settings).await;
        let digest = registry.push_blob(noise(100_000));
        let clock = larder_registry::clock::SystemClock;
        let options = ClientOptions {
            clock: std::sync::Arc::new(clock),
            ..options(&TestClock::new())
        };
        let repository = repository(&registry, options);
        repository.blob_range(&digest, 0..10).await.unwrap();
        registry.clear_requests();
        let mut own = Vec::new();
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(3100)).await;
            let crowd = (0..64).map(|at| repository.blob_range(&digest, at..at + 10));
            let read = futures_util::future::join_all(crowd).await;
            assert!(read.iter().all(Result::is_ok), "{told}");
            own.push(counts(&registry.requests()).0);
            registry.clear_requests();
        }
        // The first end of a URL that did not tell it costs those on their way a request each at the
        // store, never at the registry.
        assert_eq!(own, [1, 1], "{told}");
    }
}
