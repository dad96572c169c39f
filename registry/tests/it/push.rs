//! Pushing: uploads that are resumed, mounts, manifests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use std::time::Duration;

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_registry::oci::media_type;
use larder_registry::{Cause, ClientOptions, FileSource};
use larder_test_support::registry::{FakeRegistry, Fault, On, Seen, Settings};

use crate::world::{TestClock, noise, options, repository};

const SIZE: usize = 500_000;

fn count(seen: &[Seen], method: &str) -> usize {
    seen.iter()
        .filter(|request| request.method == method)
        .count()
}

/// Uploads [`SIZE`] bytes and checks that they arrived and that nothing is left behind.
async fn upload(registry: &FakeRegistry, options: ClientOptions) {
    let repository = repository(registry, options);
    let bytes = Bytes::from(noise(SIZE));
    let digest = Digest::of(&bytes);
    let last = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&last);
    let progress = move |at| seen.store(at, Ordering::Relaxed);
    repository
        .upload_blob(&digest, SIZE as u64, bytes.clone(), progress)
        .await
        .unwrap();
    assert_eq!(registry.blob("team/app", &digest), Some(bytes));
    assert_eq!(last.load(Ordering::Relaxed), SIZE as u64);
    assert_eq!(registry.open_uploads(), 0);
}

#[tokio::test]
async fn a_blob_is_uploaded_in_every_way_registries_want() {
    let clock = TestClock::new();
    for (settings, piece, requests) in [
        (Settings::default(), None, [1, 1, 1]),
        (
            Settings {
                absolute_locations: true,
                ..Settings::default()
            },
            None,
            [1, 1, 1],
        ),
        (
            Settings {
                patch: false,
                ..Settings::default()
            },
            None,
            [2, 1, 1],
        ),
        (Settings::default(), Some(200_000), [1, 3, 1]),
        (
            Settings {
                piece_min: Some(300_000),
                ..Settings::default()
            },
            Some(1),
            [1, 2, 1],
        ),
    ] {
        let text = format!("{settings:?} {piece:?}");
        let registry = FakeRegistry::start_with(settings).await;
        upload(
            &registry,
            ClientOptions {
                upload_piece: piece,
                ..options(&clock)
            },
        )
        .await;
        let seen = registry.requests();
        let found = ["POST", "PATCH", "PUT"].map(|method| count(&seen, method));
        assert_eq!(found, requests, "{text}");
    }
}

#[tokio::test]
async fn what_is_there_already_is_not_sent_again() {
    let registry = FakeRegistry::start().await;
    registry.push_blob_into("team/app", noise(SIZE));
    upload(&registry, options(&TestClock::new())).await;
    let seen = registry.requests();
    assert_eq!((seen.len(), count(&seen, "HEAD")), (1, 1));
}

/// A connection that breaks in the middle costs the bytes it lost, not the upload.
#[tokio::test]
async fn a_broken_upload_goes_on_where_it_broke() {
    let registry = FakeRegistry::start().await;
    registry.fault_times(1, On::Path("PATCH", "/uploads/"), Fault::CutUpload(200_000));
    upload(&registry, options(&TestClock::new())).await;
    let seen = registry.requests();
    let patches: Vec<_> = seen.iter().filter(|r| r.method == "PATCH").collect();
    assert_eq!(patches.len(), 2);
    assert_eq!(patches[1].headers["content-range"], "200000-499999");
    assert_eq!(patches[1].body_bytes, 300_000);
    assert_eq!(count(&seen, "POST"), 1);
}

#[tokio::test]
async fn every_lost_answer_is_recovered_from() {
    for (method, part) in [
        ("POST", "/uploads/"),
        ("PATCH", "/uploads/"),
        ("PUT", "/uploads/"),
    ] {
        let registry = FakeRegistry::start().await;
        registry.fault_times(1, On::Path(method, part), Fault::DropAnswer);
        let repository = repository(&registry, options(&TestClock::new()));
        let bytes = Bytes::from(noise(SIZE));
        let digest = Digest::of(&bytes);
        let uploaded = repository
            .upload_blob(&digest, SIZE as u64, bytes.clone(), |_| ())
            .await;
        uploaded.unwrap_or_else(|error| panic!("{method}: {error}"));
        assert_eq!(registry.blob("team/app", &digest), Some(bytes), "{method}");
    }
}

#[tokio::test]
async fn a_busy_registry_is_waited_for() {
    let registry = FakeRegistry::start().await;
    let clock = TestClock::new();
    let busy = || Fault::Status(503, Some("3".into()));
    registry.fault_times(2, On::Path("PATCH", "/uploads/"), busy());
    registry.fault_times(1, On::Path("PUT", "/uploads/"), busy());
    upload(&registry, options(&clock)).await;
    let seconds: Vec<_> = clock.waits().iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [3, 3, 3]);
}

#[tokio::test]
async fn an_upload_that_stalls_is_broken_off_and_resumed() {
    let registry = FakeRegistry::start().await;
    registry.fault_times(1, On::Path("PATCH", "/uploads/"), Fault::StallBeforeHeaders);
    upload(&registry, options(&TestClock::new())).await;
}

/// The session is given up, so that the registry need not keep it.
#[tokio::test]
async fn a_source_that_ends_early_or_lies_fails_the_upload() {
    let registry = FakeRegistry::start().await;
    let repository = repository(&registry, options(&TestClock::new()));
    let bytes = Bytes::from(noise(SIZE));
    let digest = Digest::of(&bytes);
    let short = bytes.slice(..SIZE - 1);
    let error = repository
        .upload_blob(&digest, SIZE as u64, short, |_| ())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it ends at byte 499999, before 500000"),
        "{error}"
    );
    let other = Bytes::from(vec![0; SIZE]);
    let error = repository
        .upload_blob(&digest, SIZE as u64, other, |_| ())
        .await
        .unwrap_err();
    assert!(
        matches!(error.cause(), Cause::Refused { status: 400, .. }),
        "{error}"
    );
    assert_eq!(registry.open_uploads(), 0);
    assert_eq!(registry.blob("team/app", &digest), None);
}

#[tokio::test]
async fn files_and_empty_blobs_are_uploaded_too() {
    let registry = FakeRegistry::start().await;
    let repository = repository(&registry, options(&TestClock::new()));
    let file = tempfile::NamedTempFile::new().unwrap();
    for bytes in [noise(SIZE), Vec::new(), vec![7]] {
        std::fs::write(file.path(), &bytes).unwrap();
        let digest = Digest::of(&bytes);
        let source = FileSource::open(file.path()).unwrap();
        let size = bytes.len() as u64;
        repository
            .upload_blob(&digest, size, source, |_| ())
            .await
            .unwrap();
        assert_eq!(registry.blob("team/app", &digest), Some(bytes.into()));
    }
}

#[tokio::test]
async fn a_mount_saves_the_upload_or_says_no_and_leaves_nothing() {
    for (mount, patch) in [(true, true), (false, true)] {
        let registry = FakeRegistry::start_with(Settings {
            mount,
            patch,
            ..Settings::default()
        })
        .await;
        let digest = registry.push_blob_into("team/base", noise(SIZE));
        let repository = repository(&registry, options(&TestClock::new()));
        assert_eq!(
            repository.mount_blob(&digest, "team/base").await.unwrap(),
            mount
        );
        assert_eq!(registry.blob("team/app", &digest).is_some(), mount);
        assert_eq!(registry.open_uploads(), 0);
        assert!(!repository.mount_blob(&digest, "team/none").await.unwrap());
        assert!(repository.mount_blob(&digest, "../x").await.is_err());
        registry.set_fault(Fault::Portal);
        for status in [401, 403, 404, 405] {
            registry.fault_times(2, On::Path("POST", "mount"), Fault::Status(status, None));
            registry.fault_times(
                1,
                On::Path("POST", "/uploads/"),
                Fault::Status(status, None),
            );
            assert!(
                !repository.mount_blob(&digest, "team/base").await.unwrap(),
                "{status}"
            );
            registry.clear_faults();
        }
        assert_eq!(registry.open_uploads(), 0);
    }
}

#[tokio::test]
async fn manifests_are_put_under_tags_and_digests() {
    let registry = FakeRegistry::start().await;
    let repository = repository(&registry, options(&TestClock::new()));
    let bytes = Bytes::from_static(br#"{"schemaVersion":2,"layers":[]}"#);
    let kind = media_type::OCI_MANIFEST;
    let digest = repository
        .put_manifest("v2", kind, bytes.clone())
        .await
        .unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    assert_eq!(
        registry.manifest("team/app", "v2"),
        Some((kind.into(), bytes.clone()))
    );
    repository
        .put_manifest(&digest.to_string(), kind, bytes.clone())
        .await
        .unwrap();
    let wrong = Digest::of(b"no").to_string();
    assert!(
        repository
            .put_manifest(&wrong, kind, bytes.clone())
            .await
            .is_err()
    );
    registry.fault_times(1, On::Path("PUT", "/manifests/"), Fault::DropAnswer);
    repository.put_manifest("v3", kind, bytes).await.unwrap();
    let error = repository
        .put_manifest("v4", kind, "no".into())
        .await
        .unwrap_err();
    assert!(
        matches!(error.cause(), Cause::Refused { status: 400, .. }),
        "{error}"
    );
}
