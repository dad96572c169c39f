//! Artifacts of one blob: attached to a manifest, found by their type, taken off.

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_registry::oci::{Annotations, Descriptor, media_type};
use larder_registry::{Attachment, CREATED, Repository, newest};
use larder_test_support::registry::{Auth, FakeRegistry, Fault, On, Settings};

use crate::world::{TestClock, login, options, repository};

const KIND: &str = "application/vnd.example.thing.v1+json";

async fn subject(repository: &Repository) -> Descriptor {
    let bytes = Bytes::from_static(b"{\"layers\":[]}");
    let descriptor = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
    let put = repository.put_manifest("v1", media_type::OCI_MANIFEST, bytes);
    put.await.unwrap();
    descriptor
}

async fn attach(repository: &Repository, subject: &Descriptor, kind: &str, made: &str) -> Digest {
    let attachment = Attachment {
        kind,
        title: "thing.json",
        annotations: Annotations::from([(CREATED.into(), made.into())]),
        bytes: Bytes::from(format!("made {made}")),
    };
    let attached = repository.attach(subject, attachment).await.unwrap();
    attached.digest
}

/// Promise: with and without the API, an artifact is found by its type among what else refers to the manifest, the
/// newest is told by its own account, and one that is removed is not found any more.
#[tokio::test]
async fn artifacts_are_attached_found_and_removed() {
    for referrers in [true, false] {
        let settings = Settings {
            referrers,
            ..Settings::default()
        };
        let registry = FakeRegistry::start_with(settings).await;
        let repository = repository(&registry, options(&TestClock::new()));
        let subject = subject(&repository).await;
        let found = async || {
            let found = repository.artifacts(&subject.digest, KIND, 100).await;
            found.unwrap()
        };
        assert_eq!(found().await, []);
        let newer = attach(&repository, &subject, KIND, "2026-02-01T00:00:00Z").await;
        let older = attach(&repository, &subject, KIND, "2025-12-31T00:00:00Z").await;
        for number in 0..3 {
            attach(&repository, &subject, &format!("x/{number}"), "").await;
        }
        assert_eq!(found().await.len(), 2, "API: {referrers}");
        assert_eq!(newest(found().await).unwrap().digest, newer);
        let blob = repository.attached_blob(&newer, KIND).await.unwrap();
        let bytes = repository.blob_bytes(&blob.digest, 100).await.unwrap();
        assert_eq!(bytes, "made 2026-02-01T00:00:00Z");
        assert!(repository.attached_blob(&newer, "x/1").await.is_err());
        let removed = repository.remove_referrer(&subject.digest, &newer).await;
        removed.unwrap();
        assert_eq!(newest(found().await).unwrap().digest, older);
        assert!(registry.manifest("team/app", &newer.to_string()).is_none());
        // Again is no failure.
        let removed = repository.remove_referrer(&subject.digest, &newer).await;
        removed.unwrap();
        let rest = repository.referrers(&subject.digest).await.unwrap();
        assert_eq!(rest.len(), 4);
    }
}

/// Promise: where a registry refuses to delete, an artifact goes from the list under the tag all the same; one that
/// the registry itself lists stays, and that is told.
#[tokio::test]
async fn what_a_registry_does_not_delete_is_not_listed_where_we_write_the_list() {
    for referrers in [true, false] {
        let settings = Settings {
            referrers,
            ..Settings::default()
        };
        let registry = FakeRegistry::start_with(settings).await;
        let repository = repository(&registry, options(&TestClock::new()));
        let subject = subject(&repository).await;
        let artifact = attach(&repository, &subject, KIND, "").await;
        registry.fault(On::Path("DELETE", "/manifests/"), Fault::Status(405, None));
        let removed = repository.remove_referrer(&subject.digest, &artifact).await;
        assert_eq!(removed.is_ok(), !referrers);
        if let Err(error) = removed {
            assert!(error.to_string().contains("405"), "{error}");
        }
        let found = repository.artifacts(&subject.digest, KIND, 100).await;
        assert_eq!(found.unwrap().len(), usize::from(referrers));
    }
}

/// Promise: looking for an artifact where there is none costs two small requests without the API, and one with it;
/// of a long list, no more pages are turned than were asked for.
#[tokio::test]
async fn a_look_costs_two_requests_at_most() {
    for (referrers, requests) in [(true, 1), (false, 2)] {
        let settings = Settings {
            referrers,
            ..Settings::default()
        };
        let registry = FakeRegistry::start_with(settings).await;
        let repository = repository(&registry, options(&TestClock::new()));
        let subject = subject(&repository).await;
        registry.clear_requests();
        let found = repository.artifacts(&subject.digest, KIND, 1).await;
        assert_eq!(found.unwrap(), []);
        let asked = registry.requests();
        assert_eq!(asked.len(), requests, "{asked:?}");
        assert!(asked[0].query.contains("artifactType="), "{asked:?}");
        for number in 0..5 {
            attach(&repository, &subject, &format!("x/{number}"), "").await;
        }
        registry.clear_requests();
        let found = repository.artifacts(&subject.digest, KIND, 1).await;
        assert_eq!(found.unwrap(), []);
        assert_eq!(registry.requests().len(), requests);
    }
}

/// Promise: who may delete by the token server's word can, with a token of its own for that.
#[tokio::test]
async fn deleting_asks_for_a_token_that_allows_it() {
    let settings = Settings {
        auth: Auth::Token {
            account: Some(("me".into(), "secret".into())),
            identity: None,
            lifetime: std::time::Duration::from_mins(5),
        },
        ..Settings::default()
    };
    let registry = FakeRegistry::start_with(settings).await;
    let mut options = options(&TestClock::new());
    options.authfile = Some(login(&registry.host(), "me", "secret"));
    let repository = repository(&registry, options);
    let subject = subject(&repository).await;
    let artifact = attach(&repository, &subject, KIND, "").await;
    repository.delete_manifest(&artifact).await.unwrap();
    let tokens = registry.requests().into_iter();
    let scopes: Vec<_> = tokens
        .filter(|seen| seen.path == "/token")
        .map(|seen| seen.query)
        .collect();
    assert!(scopes.last().unwrap().contains("delete"), "{scopes:?}");
    let again = repository.delete_manifest(&artifact).await.unwrap_err();
    assert!(again.is_not_found(), "{again}");
}
