//! What refers to an image: signatures, SBOMs, attestations.
//!
//! A signature signs the digest of the original, so it stays there and the user is told. Anything
//! else speaks of the same files, which the converted image has: `--referrers copy` gives it the
//! converted manifest as its subject. A manifest that stays as it is keeps all that refers to it.
//! A profile speaks of chunks: it comes along where the layers it names stayed as they were.

use std::collections::BTreeSet;

use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_proto::profile::{LayerReads, MEDIA_TYPE, PROFILE_BYTES_MAX, Profile};
use larder_registry::oci::{Descriptor, Manifest, media_type};

use super::blobs::{self, Waiting};
use super::{Conversion, ConvertError, Documents, Image};
use crate::access::AccessError;
use crate::destination::Referrer;
use crate::manifest::{Document, Parsed};
use crate::plan::larder_location;
use crate::source::Source;

/// Words in the type of an artifact that holds a signature over a digest.
const SIGNED: [&str; 5] = ["signature", "cosign", "sigstore", "notary", "in-toto"];

/// What to do with what refers to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Referrers {
    /// It is copied, with the converted manifest as its subject; signatures are not.
    Copy,
    /// It stays where it is; the user is told.
    #[default]
    Skip,
}

/// Referrers of the result, ready to be pushed.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    /// Each with what it refers to, and its descriptor as a list of referrers has it.
    pub(super) referrers: Vec<Referrer>,
    pub(super) blobs: Vec<Waiting>,
}

/// Finds what refers to the image's manifests, and prepares copies of it where asked.
pub(super) async fn prepare(
    conversion: &Conversion,
    image: &Image,
    result: &Documents,
    mode: Referrers,
    notes: &mut Vec<String>,
) -> Result<Prepared, ConvertError> {
    let mut prepared = Prepared::default();
    let source = &conversion.source;
    let (mut signed, mut left) = (Vec::new(), 0);
    for node in image.root.walk() {
        let old = node.document().digest;
        let Some(new) = result.new.get(&old) else {
            continue;
        };
        if new.digest == old {
            if mode == Referrers::Copy {
                for entry in referrers(source, &old, mode).await? {
                    copy(conversion, &entry, None, old, &mut prepared).await?;
                }
            }
            continue;
        }
        if has_signature_tag(source, &old).await {
            signed.push(old);
        }
        for entry in referrers(source, &old, mode).await? {
            if is_signature(&entry) {
                signed.push(old);
            } else if mode == Referrers::Skip {
                left += 1;
            } else if is_profile(&entry) && !fits(conversion, &entry, result, &new.digest).await {
                notes.push(format!(
                    "the profile {} that is attached to {old} was not copied: it names chunks that the converted \
                     image does not have. Record one of that, and `larder profile attach` it",
                    entry.digest
                ));
            } else {
                copy(conversion, &entry, Some(new), new.digest, &mut prepared).await?;
            }
        }
    }
    signed.dedup();
    if !signed.is_empty() {
        notes.push(format!(
            "the source is signed ({}), the converted image is not: its digest is another one. \
             Sign it with the tool that signed the source, for example `cosign sign REPOSITORY@DIGEST`",
            signed.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ));
    }
    if left > 0 {
        notes.push(format!(
            "{left} artifacts that refer to the source were not copied; --referrers copy does"
        ));
    }
    Ok(prepared)
}

/// Whether the image has a signature where cosign puts it in registries without referrers.
async fn has_signature_tag(source: &Source, digest: &Digest) -> bool {
    let Some(repository) = source.repository() else {
        return false;
    };
    let tag = format!("sha256-{}.sig", digest.hex());
    repository.head_manifest(&tag).await.is_ok()
}

async fn referrers(
    source: &Source,
    digest: &Digest,
    mode: Referrers,
) -> Result<Vec<Descriptor>, ConvertError> {
    match source.referrers(digest).await {
        Ok(found) => Ok(found),
        // They were asked for, so that they cannot be listed is a failure; else it is a pity.
        Err(error) if mode == Referrers::Copy => Err(error.into()),
        Err(error) => {
            tracing::debug!(%error, "referrers cannot be listed");
            Ok(Vec::new())
        }
    }
}

fn is_signature(entry: &Descriptor) -> bool {
    let kind = entry.artifact_type.as_deref().unwrap_or_default();
    SIGNED.iter().any(|word| kind.contains(word))
}

fn is_profile(entry: &Descriptor) -> bool {
    entry.artifact_type.as_deref() == Some(MEDIA_TYPE)
}

/// Whether the converted manifest has all layers that a profile names. What is no profile does not fit.
async fn fits(
    conversion: &Conversion,
    entry: &Descriptor,
    result: &Documents,
    manifest: &Digest,
) -> bool {
    let profile = match profile(conversion, entry).await {
        Ok(profile) => profile,
        Err(reason) => {
            tracing::debug!(artifact = %entry.digest, reason, "an attached profile cannot be read");
            return false;
        }
    };
    let converted = result.document(manifest);
    let converted = converted.and_then(|one| Manifest::parse(&one.bytes).ok());
    let layers = converted.into_iter().flat_map(|one| one.layers);
    let indexes: BTreeSet<_> = layers
        .filter_map(|layer| larder_location(&layer))
        .map(|location| location.digest)
        .collect();
    let is_there = |layer: &LayerReads| indexes.contains(&layer.index);
    profile.layers.iter().all(is_there)
}

async fn profile(conversion: &Conversion, entry: &Descriptor) -> Result<Profile, String> {
    let source = &conversion.source;
    let said = |error: AccessError| error.to_string();
    let document = source.document(entry).await.map_err(said)?;
    let artifact = Manifest::parse(&document.bytes).map_err(|error| error.to_string())?;
    let layer = artifact.layers.first().ok_or("it has no layer")?;
    let bytes = source.small_blob(layer, PROFILE_BYTES_MAX as u64).await;
    Profile::decode(&bytes.map_err(said)?).map_err(|error| error.to_string())
}

/// Copies a referrer; `subject` is what it is to refer to instead.
async fn copy(
    conversion: &Conversion,
    entry: &Descriptor,
    subject: Option<&Descriptor>,
    digest: Digest,
    prepared: &mut Prepared,
) -> Result<(), ConvertError> {
    let document = conversion.source.document(entry).await?;
    let parsed = Parsed::parse(&document).map_err(AccessError::from)?;
    // An index may be a referrer too; none is known that is not made of signatures.
    let Parsed::Manifest(mut manifest) = parsed else {
        return Ok(());
    };
    let parts: Vec<_> = std::iter::once(&manifest.config)
        .chain(&manifest.layers)
        .collect();
    prepared
        .blobs
        .extend(blobs::fetch(conversion, parts).await?);
    let new = match subject {
        Some(subject) => repointed(&mut manifest, &document, subject),
        None => document,
    };
    let mut listed = new.descriptor();
    listed.artifact_type.clone_from(&entry.artifact_type);
    listed.annotations = manifest.annotations;
    prepared.referrers.push((digest, listed, new));
    Ok(())
}

fn repointed(manifest: &mut Manifest, old: &Document, subject: &Descriptor) -> Document {
    let Descriptor { digest, size, .. } = *subject;
    manifest.subject = Some(Descriptor::new(subject.media_type.clone(), digest, size));
    manifest
        .annotations
        .insert(annotation::SOURCE.into(), old.digest.to_string());
    let bytes = serde_json::to_vec(manifest).expect("a manifest has text keys only");
    Document::new(media_type::OCI_MANIFEST, bytes)
}
