//! What refers to an image: signatures, SBOMs, attestations.
//!
//! A signature signs the digest of the original, so it stays there and the user is told. Anything
//! else speaks of the same files, which the converted image has: `--referrers copy` gives it the
//! converted manifest as its subject. A manifest that stays as it is keeps all that refers to it.

use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_registry::Repository;
use larder_registry::oci::{Descriptor, Manifest, media_type};

use super::blobs::{self, Waiting};
use super::{Conversion, ConvertError, Documents, Image};
use crate::access::AccessError;
use crate::destination::Referrer;
use crate::manifest::{Document, Parsed};

/// Referrers of one manifest that are looked at; images have a handful.
const REFERRERS_MAX: usize = 100;

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
    let Some(repository) = conversion.source.repository() else {
        return Ok(prepared);
    };
    let (mut signed, mut left) = (Vec::new(), 0);
    for node in image.root.walk() {
        let old = node.document().digest;
        let Some(new) = result.new.get(&old) else {
            continue;
        };
        if new.digest == old {
            if mode == Referrers::Copy {
                for entry in referrers(repository, &old, mode).await? {
                    copy(conversion, &entry, None, old, &mut prepared).await?;
                }
            }
            continue;
        }
        if has_signature_tag(repository, &old).await {
            signed.push(old);
        }
        for entry in referrers(repository, &old, mode).await? {
            if is_signature(&entry) {
                signed.push(old);
            } else if mode == Referrers::Skip {
                left += 1;
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
async fn has_signature_tag(repository: &Repository, digest: &Digest) -> bool {
    let tag = format!("sha256-{}.sig", digest.hex());
    repository.head_manifest(&tag).await.is_ok()
}

async fn referrers(
    repository: &Repository,
    digest: &Digest,
    mode: Referrers,
) -> Result<Vec<Descriptor>, ConvertError> {
    match repository.referrers(digest).await {
        Ok(mut found) => {
            found.truncate(REFERRERS_MAX);
            Ok(found)
        }
        // They were asked for, so that they cannot be listed is a failure; else it is a pity.
        Err(error) if mode == Referrers::Copy => Err(AccessError::from(error).into()),
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
