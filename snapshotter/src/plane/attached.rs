//! The profile that is attached to an image, from the registry.

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_proto::profile::{MEDIA_TYPE, PROFILE_BYTES_MAX};
use larder_registry::{RegistryError, Repository, newest};

/// Pages of the list of referrers that are looked at. Registries that know the types of artifacts have the few of
/// ours on the first; for the others a node does not turn pages.
const PAGES_MAX: usize = 1;

/// The newest profile that is attached to `manifest`, as its bytes are; `None` if there is none.
pub(super) async fn profile(
    repository: &Repository,
    manifest: &Digest,
) -> Result<Option<Bytes>, RegistryError> {
    let found = repository
        .artifacts(manifest, MEDIA_TYPE, PAGES_MAX)
        .await?;
    let Some(artifact) = newest(found) else {
        return Ok(None);
    };
    let blob = repository
        .attached_blob(&artifact.digest, MEDIA_TYPE)
        .await?;
    let bytes = repository.blob_bytes(&blob.digest, PROFILE_BYTES_MAX as u64);
    Ok(Some(bytes.await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_registry::oci::{Annotations, Descriptor, media_type};
    use larder_registry::{Attachment, CREATED, Client, ClientOptions};
    use larder_test_support::registry::{FakeRegistry, Fault, On, Settings};

    async fn attach(repository: &Repository, subject: &Descriptor, bytes: Vec<u8>, made: &str) {
        let attachment = Attachment {
            kind: MEDIA_TYPE,
            title: "profile.json",
            annotations: Annotations::from([(CREATED.into(), made.into())]),
            bytes: bytes.into(),
        };
        repository.attach(subject, attachment).await.unwrap();
    }

    /// Promise: the newest artifact is fetched, with the API and without; what is longer than a profile is not
    /// read, a registry that fails is an error.
    #[tokio::test]
    async fn the_newest_profile_is_fetched_and_no_more_than_one_may_have() {
        for referrers in [true, false] {
            let settings = Settings {
                referrers,
                ..Settings::default()
            };
            let registry = FakeRegistry::start_with(settings).await;
            let reference = registry.reference("team/app", "v1").parse().unwrap();
            let client = Client::new(ClientOptions::default()).unwrap();
            let repository = client.repository(&reference);
            let image = Bytes::from_static(b"{\"layers\":[]}");
            let subject = Descriptor::of(media_type::OCI_MANIFEST, &image);
            let put = repository.put_manifest("v1", media_type::OCI_MANIFEST, image);
            put.await.unwrap();
            let found = async || profile(&repository, &subject.digest).await;
            assert_eq!(found().await.unwrap(), None);
            attach(&repository, &subject, b"new".to_vec(), "2026-02").await;
            attach(&repository, &subject, b"old".to_vec(), "2026-01").await;
            assert_eq!(found().await.unwrap().unwrap(), "new", "API: {referrers}");
            let huge = vec![b' '; PROFILE_BYTES_MAX + 1];
            attach(&repository, &subject, huge, "2026-03").await;
            registry.clear_requests();
            assert!(found().await.is_err());
            assert!(registry.requests().len() <= 4);
            registry.fault(On::Path("GET", "/referrers/"), Fault::Status(403, None));
            assert!(found().await.unwrap_err().is_forbidden());
        }
    }
}
