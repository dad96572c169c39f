//! Referrers: listed in pages, or by the tag that stands in for the API.

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_registry::Repository;
use larder_registry::oci::{Descriptor, media_type};
use larder_test_support::registry::{FakeRegistry, Fault, On, Settings};

use crate::world::{TestClock, options, repository};

const KIND: &str = media_type::OCI_MANIFEST;

/// Puts `count` referrers of a new subject; gives their digests, sorted.
async fn put(repository: &Repository, count: u32) -> (Digest, Vec<Digest>) {
    let subject = Bytes::from_static(b"{\"layers\":[]}");
    let subject = repository.put_manifest("v1", KIND, subject).await.unwrap();
    let mut digests = Vec::new();
    for number in 0..count {
        let text = format!(
            r#"{{"layers":[],"artifactType":"x/{number}","subject":{{"digest":"{subject}"}}}}"#
        );
        let bytes = Bytes::from(text);
        let descriptor = Descriptor::of(KIND, &bytes);
        digests.push(
            repository
                .put_referrer(&subject, descriptor, bytes)
                .await
                .unwrap(),
        );
    }
    digests.sort();
    (subject, digests)
}

async fn listed(repository: &Repository, subject: &Digest) -> Vec<Digest> {
    let found = repository.referrers(subject).await.unwrap();
    let mut digests: Vec<_> = found.iter().map(|descriptor| descriptor.digest).collect();
    digests.sort();
    digests
}

#[tokio::test]
async fn referrers_are_found_with_and_without_the_api() {
    for referrers in [true, false] {
        let settings = Settings {
            referrers,
            ..Settings::default()
        };
        let registry = FakeRegistry::start_with(settings).await;
        let repository = repository(&registry, options(&TestClock::new()));
        assert_eq!(listed(&repository, &Digest::of(b"no")).await, []);
        let (subject, digests) = put(&repository, 5).await;
        assert_eq!(
            listed(&repository, &subject).await,
            digests,
            "API: {referrers}"
        );
        let tag = format!("sha256-{}", subject.hex());
        assert_eq!(registry.manifest("team/app", &tag).is_some(), !referrers);
        // Putting the same one again adds nothing.
        let (subject, _) = put(&repository, 5).await;
        assert_eq!(listed(&repository, &subject).await, digests);
    }
}

#[tokio::test]
async fn odd_answers_are_no_referrers_and_broken_ones_are_errors() {
    let registry = FakeRegistry::start().await;
    let repository = repository(&registry, options(&TestClock::new()));
    let (subject, digests) = put(&repository, 3).await;
    let on = || On::Path("GET", "/referrers/");
    // A registry that gives the subject itself under the tag, and no API.
    registry.fault(on(), Fault::Portal);
    let tag = format!("sha256-{}", subject.hex());
    registry.push_manifest("team/app", &tag, KIND, "{\"layers\":[]}");
    assert_eq!(listed(&repository, &subject).await, []);
    registry.clear_faults();
    registry.fault_times(1, on(), Fault::Status(503, None));
    assert_eq!(listed(&repository, &subject).await, digests);
    registry.fault(on(), Fault::Status(403, None));
    assert!(
        repository
            .referrers(&subject)
            .await
            .unwrap_err()
            .is_forbidden()
    );
}
