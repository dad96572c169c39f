//! Artifacts of one blob that refer to a manifest: attached, found, read.
//!
//! They are what `oras attach` makes: a manifest with a type, the empty configuration, one layer, and the
//! manifest that it speaks of as its subject.

use bytes::Bytes;
use larder_proto::digest::Digest;

use crate::client::Repository;
use crate::error::{Cause, RegistryError};
use crate::oci::{Annotations, Descriptor, Manifest, Other, media_type};

/// Key of the annotation that says when an artifact was made.
pub const CREATED: &str = "org.opencontainers.image.created";

/// Key of the annotation by which `oras pull` names the file.
const TITLE: &str = "org.opencontainers.image.title";

/// The configuration of what is no image.
const EMPTY: &[u8] = b"{}";

/// A blob that is to be attached.
#[derive(Debug, Clone)]
pub struct Attachment<'a> {
    /// The artifact's type, and that of its layer.
    pub kind: &'a str,
    /// What the file is called where it is pulled.
    pub title: &'a str,
    /// Annotations of the artifact.
    pub annotations: Annotations,
    /// Its bytes.
    pub bytes: Bytes,
}

/// Of artifacts of one manifest, the one that was made last by its own account.
pub fn newest(found: Vec<Descriptor>) -> Option<Descriptor> {
    let made = |entry: &Descriptor| (entry.annotations.get(CREATED).cloned(), entry.digest);
    found.into_iter().max_by_key(made)
}

impl Repository {
    /// Attaches a blob to the manifest `subject`, which is in this repository; the artifact's descriptor.
    pub async fn attach(
        &self,
        subject: &Descriptor,
        attachment: Attachment<'_>,
    ) -> Result<Descriptor, RegistryError> {
        let Attachment {
            kind,
            title,
            annotations,
            bytes,
        } = attachment;
        let config = Descriptor::of(media_type::OCI_EMPTY, EMPTY);
        let mut layer = Descriptor::of(kind, &bytes);
        for (blob, bytes) in [(&config, Bytes::from_static(EMPTY)), (&layer, bytes)] {
            self.upload_blob(&blob.digest, blob.size, bytes, |_| {})
                .await?;
        }
        layer.annotations.insert(TITLE.into(), title.into());
        let Descriptor { digest, size, .. } = *subject;
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: Some(kind.into()),
            config,
            layers: vec![layer],
            subject: Some(Descriptor::new(subject.media_type.clone(), digest, size)),
            annotations: annotations.clone(),
            other: Other::new(),
        };
        let doing = format!("attach a blob to {digest}");
        let bytes = serde_json::to_vec(&manifest);
        let bytes = bytes.map_err(|error| self.error(&doing, Cause::Local(error.to_string())))?;
        let mut artifact = Descriptor::of(media_type::OCI_MANIFEST, &bytes);
        artifact.artifact_type = Some(kind.into());
        artifact.annotations = annotations;
        self.put_referrer(&digest, artifact.clone(), bytes.into())
            .await?;
        Ok(artifact)
    }

    /// The descriptor of the blob that an artifact of type `kind` has, if it has that one alone.
    pub async fn attached_blob(
        &self,
        artifact: &Digest,
        kind: &str,
    ) -> Result<Descriptor, RegistryError> {
        let manifest = self.manifest(&artifact.to_string()).await?;
        let wrong = |detail: String| {
            let host = self.registry().into();
            let cause = Cause::Malformed { host, detail };
            self.error(&format!("read artifact {artifact}"), cause)
        };
        let mut manifest =
            Manifest::parse(&manifest.bytes).map_err(|error| wrong(error.to_string()))?;
        match (manifest.layers.pop(), manifest.layers.is_empty()) {
            (Some(layer), true) if layer.media_type == kind => Ok(layer),
            _ => Err(wrong(format!("it is not one layer of type {kind}"))),
        }
    }
}
