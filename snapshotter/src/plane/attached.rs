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
