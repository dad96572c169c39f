//! Honest registries: manifests and blobs come as they are.

use futures_util::TryStreamExt as _;
use larder_proto::digest::Digest;
use larder_registry::Cause;
use larder_registry::oci::media_type;
use larder_test_support::registry::{FakeRegistry, Fault, On, Settings};

use crate::world::{TestClock, noise, options, repository};

const MANIFEST: &str = r#"{"schemaVersion":2,"layers":[]}"#;

#[tokio::test]
async fn manifests_come_by_tag_and_by_digest() {
    let registry = FakeRegistry::start().await;
    let kind = media_type::OCI_MANIFEST;
    let digest = registry.push_manifest("team/app", "v1", kind, MANIFEST);
    let repository = repository(&registry, options(&TestClock::new()));
    for id in ["v1".to_owned(), digest.to_string()] {
        let head = repository.head_manifest(&id).await.unwrap();
        assert_eq!(
            (head.digest, head.size, &*head.media_type),
            (digest, 31, kind)
        );
        let manifest = repository.manifest(&id).await.unwrap();
        assert_eq!((manifest.digest, &*manifest.media_type), (digest, kind));
        assert_eq!(manifest.bytes, MANIFEST);
        assert_eq!(manifest.descriptor(), head);
    }
    for id in ["v2", &Digest::of(b"no").to_string()] {
        assert!(repository.manifest(id).await.unwrap_err().is_not_found());
        assert!(
            repository
                .head_manifest(id)
                .await
                .unwrap_err()
                .is_not_found()
        );
    }
    registry.clear_requests();
    let error = repository.manifest("../v1").await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Local(_)), "{error}");
    assert_eq!(registry.requests(), []);
}

#[tokio::test]
async fn a_registry_without_head_or_digest_header_is_understood() {
    let settings = Settings {
        head: false,
        ..Settings::default()
    };
    let registry = FakeRegistry::start_with(settings).await;
    let digest = registry.push_manifest("team/app", "v1", media_type::OCI_MANIFEST, MANIFEST);
    let blob = registry.push_blob(noise(1000));
    let repository = repository(&registry, options(&TestClock::new()));
    assert_eq!(repository.head_manifest("v1").await.unwrap().digest, digest);
    assert_eq!(repository.blob_exists(&blob).await.unwrap(), Some(1000));
    assert_eq!(
        repository.blob_exists(&Digest::of(b"no")).await.unwrap(),
        None
    );
    registry.fault(
        On::All,
        Fault::Header("docker-content-digest", String::new()),
    );
    assert_eq!(repository.manifest("v1").await.unwrap().digest, digest);
}

#[tokio::test]
async fn blobs_come_whole_and_in_parts() {
    let registry = FakeRegistry::start().await;
    let bytes = noise(300_000);
    let digest = registry.push_blob(bytes.clone());
    let empty = registry.push_blob("");
    let repository = repository(&registry, options(&TestClock::new()));
    assert_eq!(
        repository.blob_exists(&digest).await.unwrap(),
        Some(300_000)
    );
    assert_eq!(repository.blob_exists(&empty).await.unwrap(), Some(0));
    for range in [0..1, 0..300_000, 299_999..300_000, 1234..56_789] {
        let part = repository.blob_range(&digest, range.clone()).await.unwrap();
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        assert_eq!(part, bytes[range]);
    }
    registry.clear_requests();
    assert_eq!(repository.blob_range(&digest, 7..7).await.unwrap(), "");
    assert!(repository.blob_range(&digest, 0..u64::MAX).await.is_err());
    assert_eq!(registry.requests(), []);
    for (digest, bytes) in [(digest, &bytes[..]), (empty, b"")] {
        let body = repository.blob(&digest).await.unwrap().verified();
        assert_eq!(body.size(), Some(bytes.len() as u64));
        let parts: Vec<_> = body.try_collect().await.unwrap();
        assert_eq!(parts.concat(), bytes);
        assert_eq!(
            repository.blob_bytes(&digest, 300_000).await.unwrap(),
            bytes
        );
    }
    let error = repository.blob_bytes(&digest, 1000).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::TooLarge { .. }), "{error}");
    assert!(
        repository
            .blob(&Digest::of(b"no"))
            .await
            .unwrap_err()
            .is_not_found()
    );
    let error = repository
        .blob_range(&digest, 299_999..300_001)
        .await
        .unwrap_err();
    assert!(matches!(error.cause(), Cause::Malformed { .. }), "{error}");
}

/// The error says where, what and why.
#[tokio::test]
async fn an_error_names_registry_repository_and_cause() {
    let registry = FakeRegistry::start().await;
    let repository = repository(&registry, options(&TestClock::new()));
    let text = repository.manifest("v9").await.unwrap_err().to_string();
    let host = registry.host();
    assert_eq!(
        text,
        format!(
            "cannot fetch manifest v9 in {host}/team/app: not found \
             (MANIFEST_UNKNOWN: says the fake): check the name, and that the account may see it"
        )
    );
}

/// Promise: a blob is continued where an earlier download ended, also by a registry that ignores
/// ranges.
#[tokio::test]
async fn a_blob_is_continued_at_any_byte() {
    for fault in [None, Some(Fault::IgnoreRange)] {
        let registry = FakeRegistry::start().await;
        let bytes = noise(100_000);
        let digest = registry.push_blob(bytes.clone());
        if let Some(fault) = fault {
            registry.set_fault(fault);
        }
        let repository = repository(&registry, options(&TestClock::new()));
        for offset in [0, 1, 99_999] {
            let body = repository.blob_from(&digest, offset).await.unwrap();
            let pieces: Vec<_> = body.try_collect().await.unwrap();
            let place = usize::try_from(offset).unwrap();
            assert!(pieces.concat() == bytes[place..], "from {offset}");
        }
    }
}
