//! The packaged docker-registry: what a real one makes of our requests.

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, Manifest, media_type};
use larder_registry::{ClientOptions, Repository, Timeouts};
use larder_test_support::certificates::Certificates;
use larder_test_support::registry::{RealOptions, RealRegistry};

use crate::world::{TestClock, login, noise, open, options};

/// A client with the patience of real ones.
fn client(registry: &RealRegistry, name: &str, options: ClientOptions) -> Repository {
    let timeouts = Timeouts::default();
    let options = ClientOptions {
        timeouts,
        ..options
    };
    open(&registry.reference(name, "v1"), options)
}

fn manifest(config: Descriptor, layer: Descriptor) -> Bytes {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(media_type::OCI_MANIFEST.into()),
        artifact_type: None,
        config,
        layers: vec![layer],
        subject: None,
        annotations: [("a".into(), "b".into())].into(),
        other: [].into(),
    };
    serde_json::to_vec(&manifest).unwrap().into()
}

/// Pushes an image and reads it back, whole and in parts.
async fn round_trip(repository: &Repository) -> Digest {
    let layer = Bytes::from(noise(3 << 20));
    let config = Bytes::from_static(br#"{"architecture":"amd64","os":"linux"}"#);
    let layer_as = Descriptor::of(media_type::OCI_LAYER_ZSTD, &layer);
    let config_as = Descriptor::of(media_type::OCI_CONFIG, &config);
    for (bytes, descriptor) in [(&layer, &layer_as), (&config, &config_as)] {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        assert_eq!(repository.blob_exists(digest).await.unwrap(), None);
        repository
            .upload_blob(digest, size, bytes.clone(), |_| ())
            .await
            .unwrap();
        assert_eq!(repository.blob_exists(digest).await.unwrap(), Some(size));
    }
    let bytes = manifest(config_as.clone(), layer_as.clone());
    let digest = repository
        .put_manifest("v1", media_type::OCI_MANIFEST, bytes.clone())
        .await;
    let digest = digest.unwrap();
    for id in ["v1", &digest.to_string()] {
        let fetched = repository.manifest(id).await.unwrap();
        assert_eq!((&fetched.bytes, fetched.digest), (&bytes, digest));
        assert_eq!(
            repository.head_manifest(id).await.unwrap(),
            fetched.descriptor()
        );
    }
    let part = repository
        .blob_range(&layer_as.digest, 1_000_000..1_500_000)
        .await
        .unwrap();
    assert_eq!(part, layer[1_000_000..1_500_000]);
    let body = repository.blob(&layer_as.digest).await.unwrap().verified();
    assert_eq!(body.size(), Some(3 << 20));
    let parts: Vec<_> = body.try_collect().await.unwrap();
    assert!(parts.concat() == layer);
    assert_eq!(
        repository
            .blob_bytes(&config_as.digest, 1000)
            .await
            .unwrap(),
        config
    );
    layer_as.digest
}

#[tokio::test]
async fn an_image_goes_there_and_back() {
    let registry = RealRegistry::start();
    let plain = || options(&TestClock::new());
    let pieces = ClientOptions {
        upload_piece: Some(1 << 20),
        ..plain()
    };
    let layer = round_trip(&client(&registry, "team/app", plain())).await;
    round_trip(&client(&registry, "team/pieces", pieces)).await;
    let other = client(&registry, "team/other", plain());
    assert!(other.mount_blob(&layer, "team/app").await.unwrap());
    assert_eq!(other.blob_exists(&layer).await.unwrap(), Some(3 << 20));
    assert!(
        !other
            .mount_blob(&Digest::of(b"no"), "team/app")
            .await
            .unwrap()
    );
    // It leaves a directory behind when it forgets a session, but not the session's date.
    let uploads = registry
        .storage()
        .join("docker/registry/v2/repositories/team/other/_uploads");
    for upload in std::fs::read_dir(uploads).unwrap() {
        assert!(
            !upload.unwrap().path().join("startedat").exists(),
            "a session is still open"
        );
    }
    assert!(other.manifest("none").await.unwrap_err().is_not_found());
    assert!(other.referrers(&layer).await.unwrap().is_empty());
}

#[tokio::test]
async fn passwords_and_private_certificates_work_together() {
    let certificates = Certificates::new();
    let account = Some(("anna".into(), "hunter2".into()));
    let registry = RealRegistry::start_with(&RealOptions {
        account,
        tls: Some(certificates.clone()),
    });
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join(registry.host());
    std::fs::create_dir(&place).unwrap();
    std::fs::copy(certificates.authority(), place.join("ca.crt")).unwrap();
    let with = |password: &str| ClientOptions {
        authfile: Some(login(&registry.host(), "anna", password)),
        hosts_dir: Some(dir.path().into()),
        ..options(&TestClock::new())
    };
    round_trip(&client(&registry, "team/app", with("hunter2"))).await;
    let error = client(&registry, "team/app", with("wrong"))
        .manifest("v1")
        .await
        .unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
}

/// The other protocol is recognised by what a real server says to it.
#[tokio::test]
async fn plain_http_to_a_tls_registry_is_explained() {
    let tls = Some(Certificates::new());
    let registry = RealRegistry::start_with(&RealOptions {
        tls,
        ..RealOptions::default()
    });
    let repository = client(&registry, "team/app", options(&TestClock::new()));
    let error = repository.manifest("v1").await.unwrap_err();
    let error = error.to_string();
    // Nobody asked for plain HTTP here, so leaving that out cannot be all the advice.
    for words in [
        "it speaks TLS and was asked in plain HTTP",
        "loopback",
        "hosts.toml",
    ] {
        assert!(error.contains(words), "{error}");
    }
}

/// Wrong content is refused by the registry, and the right one is taken afterwards.
#[tokio::test]
async fn wrong_content_is_refused_and_the_right_one_taken() {
    let registry = RealRegistry::start();
    let repository = client(&registry, "team/app", options(&TestClock::new()));
    let bytes = Bytes::from(noise(300_000));
    let digest = Digest::of(&bytes);
    let other = Bytes::from(vec![1; 300_000]);
    let error = repository
        .upload_blob(&digest, 300_000, other, |_| ())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    repository
        .upload_blob(&digest, 300_000, bytes, |_| ())
        .await
        .unwrap();
    assert_eq!(
        repository.blob_exists(&digest).await.unwrap(),
        Some(300_000)
    );
}
