//! What refers to an image: its signature.
//!
//! A signature signs the digest of the original, so it stays there and the user is told.

use larder_proto::digest::Digest;
use larder_registry::Repository;

use super::{Conversion, Documents, Image};

/// Tells of signatures that the result does not have.
pub(super) async fn tell(
    conversion: &Conversion,
    image: &Image,
    result: &Documents,
    notes: &mut Vec<String>,
) {
    let Some(repository) = conversion.source.repository() else {
        return;
    };
    let mut signed = Vec::new();
    for node in image.root.walk() {
        let old = node.document().digest;
        let changed = result.new.get(&old).is_some_and(|new| new.digest != old);
        if changed && has_signature_tag(repository, &old).await {
            signed.push(old.to_string());
        }
    }
    if !signed.is_empty() {
        notes.push(format!(
            "the source is signed ({}), the converted image is not: its digest is another one. \
             Sign it with the tool that signed the source, for example `cosign sign REPOSITORY@DIGEST`",
            signed.join(", ")
        ));
    }
}

/// Whether the image has a signature where cosign puts it in registries without referrers.
async fn has_signature_tag(repository: &Repository, digest: &Digest) -> bool {
    let tag = format!("sha256-{}.sig", digest.hex());
    repository.head_manifest(&tag).await.is_ok()
}
