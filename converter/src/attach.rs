//! Profiles that are attached to images in registries, as artifacts that refer to their manifests.
//!
//! A node that has no profile of an image looks there at its first pull. The newest one counts; attaching
//! takes those before away, as far as the registry lets it.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use larder_proto::moment::moment;
use larder_proto::profile::{LayerReads, MEDIA_TYPE, PROFILE_BYTES_MAX, Profile};
use larder_registry::oci::{Annotations, Descriptor};
use larder_registry::{Attachment, CREATED, Reference, RegistryError, Repository, newest};
use serde::Serialize;

use crate::access::{Access, AccessError};
use crate::convert::{Image, LoadError, ManifestFacts, ManifestNode, load};
use crate::location::Location;
use crate::plan::{PlatformFilter, larder_location};
use crate::source::Source;

/// Pages of a list of referrers that are looked at: a manifest that is signed every day for three years has
/// so many, at ten on a page.
const PAGES_MAX: usize = 100;

/// What the file is called where `oras pull` writes it.
const TITLE: &str = "profile.json";

/// A profile that cannot be attached, shown or taken off.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The image cannot be read.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Its documents do not make an image.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The registry refused.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// It is of other layers.
    #[error(
        "the profile is of another image (it says of {named:?}): {image} has no layer {blob} with index {index}; \
         record one of this image as it is in the registry"
    )]
    Foreign {
        /// The image.
        image: String,
        /// What the profile says it is of.
        named: String,
        /// The first of its layers that the image has not got.
        blob: String,
        /// The index of that.
        index: String,
    },
    /// It would have nodes fetch nothing.
    #[error("the profile names no chunk that a start reads")]
    Idle,
    /// There is nothing to take off.
    #[error("no profile is attached to {0}")]
    Missing(String),
}

/// An image in a registry, with all that is asked about it.
#[derive(Debug)]
pub struct Attachable {
    name: String,
    repository: Repository,
    image: Image,
}

/// A profile that was attached to one manifest.
#[derive(Debug, Serialize)]
pub struct Attached {
    /// The manifest.
    #[serde(flatten)]
    pub manifest: ManifestFacts,
    /// The artifact's digest.
    pub artifact: String,
    /// Whether it was there already.
    pub was_there: bool,
    /// Artifacts that were taken away for it.
    pub replaced: Vec<String>,
    /// Artifacts that the registry keeps.
    pub left: Vec<Left>,
}

/// An artifact that was to go, and did not.
#[derive(Debug, Serialize)]
pub struct Left {
    /// Its digest.
    pub artifact: String,
    /// What the registry said.
    pub reason: String,
}

/// What is attached to one manifest.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// The manifest.
    #[serde(flatten)]
    pub manifest: ManifestFacts,
    /// The artifacts, the one that nodes use first.
    pub profiles: Vec<ShownProfile>,
}

/// An attached profile.
#[derive(Debug, Serialize)]
pub struct ShownProfile {
    /// The artifact's digest.
    pub artifact: String,
    /// When it was attached, by its own account; empty where it does not say.
    pub created: String,
    /// What it says, or why it is of no use.
    #[serde(flatten)]
    pub content: Content,
}

/// What is in an artifact.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// A profile of the image.
    Profile {
        /// Its own name of the image.
        image: String,
        /// How many layers it is of.
        layers: usize,
        /// How many chunks a start reads.
        chunks: usize,
    },
    /// Nothing of use.
    Problem {
        /// Why.
        problem: String,
    },
}

impl Attachable {
    /// Reads the documents of an image, of all platforms or of those that pass a filter.
    pub async fn open(
        reference: &Reference,
        platforms: &[PlatformFilter],
        access: &Access,
    ) -> Result<Self, AttachError> {
        let location = Location::Registry(reference.clone());
        let source = Source::open(&location, access).await?;
        Ok(Self {
            name: reference.to_string(),
            repository: access.client.repository(reference),
            image: load(&source, platforms).await?,
        })
    }

    /// Attaches `profile`, whose bytes are `bytes`, to every manifest that it is of: mostly to one.
    pub async fn attach(
        &self,
        profile: &Profile,
        bytes: Bytes,
    ) -> Result<Vec<Attached>, AttachError> {
        if profile.reads() == 0 {
            return Err(AttachError::Idle);
        }
        let mut attached = Vec::new();
        let mut missing = None;
        for node in self.image.manifests() {
            match foreign(profile, &node) {
                None => attached.push(self.attach_to(&node, bytes.clone()).await?),
                Some(layer) => missing = missing.or(Some(layer)),
            }
        }
        match missing {
            Some(layer) if attached.is_empty() => Err(AttachError::Foreign {
                image: self.name.clone(),
                named: profile.image.clone(),
                blob: layer.blob.to_string(),
                index: layer.index.to_string(),
            }),
            _ => Ok(attached),
        }
    }

    async fn attach_to(
        &self,
        node: &ManifestNode<'_>,
        bytes: Bytes,
    ) -> Result<Attached, AttachError> {
        let subject = node.document.descriptor();
        let mut before = self.artifacts(&subject).await?;
        let there = self.same(&before, &bytes).await;
        let was_there = there.is_some();
        let artifact = match there {
            Some(there) => there,
            None => self.put(&subject, bytes).await?,
        };
        before.retain(|entry| entry.digest != artifact.digest);
        let (mut replaced, mut left) = (Vec::new(), Vec::new());
        for entry in before {
            let artifact = entry.digest.to_string();
            let removed = self
                .repository
                .remove_referrer(&subject.digest, &entry.digest);
            match removed.await {
                Ok(()) => replaced.push(artifact),
                Err(error) => left.push(Left {
                    artifact,
                    reason: error.to_string(),
                }),
            }
        }
        Ok(Attached {
            manifest: node.facts(),
            artifact: artifact.digest.to_string(),
            was_there,
            replaced,
            left,
        })
    }

    async fn put(&self, subject: &Descriptor, bytes: Bytes) -> Result<Descriptor, AttachError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = moment(now.unwrap_or_default().as_secs());
        let attachment = Attachment {
            kind: MEDIA_TYPE,
            title: TITLE,
            annotations: Annotations::from([(CREATED.into(), now)]),
            bytes,
        };
        Ok(self.repository.attach(subject, attachment).await?)
    }

    /// The artifact that nodes use, if it has just these bytes.
    async fn same(&self, there: &[Descriptor], bytes: &Bytes) -> Option<Descriptor> {
        let newest = newest(there.to_vec())?;
        let blob = self.repository.attached_blob(&newest.digest, MEDIA_TYPE);
        let digest = larder_proto::digest::Digest::of(bytes);
        // What cannot be read is replaced.
        let is_same = blob.await.is_ok_and(|blob| blob.digest == digest);
        is_same.then_some(newest)
    }

    /// What is attached to each of the image's manifests.
    pub async fn show(&self) -> Result<Vec<Shown>, AttachError> {
        let mut all = Vec::new();
        for node in self.image.manifests().filter(|node| node.config.is_some()) {
            let mut there = self.artifacts(&node.document.descriptor()).await?;
            let mut profiles = Vec::new();
            while let Some(next) = newest(there.clone()) {
                there.retain(|entry| entry.digest != next.digest);
                let created = next.annotations.get(CREATED);
                profiles.push(ShownProfile {
                    artifact: next.digest.to_string(),
                    created: created.cloned().unwrap_or_default(),
                    content: self.content(&next, &node).await,
                });
            }
            all.push(Shown {
                manifest: node.facts(),
                profiles,
            });
        }
        Ok(all)
    }

    async fn content(&self, artifact: &Descriptor, node: &ManifestNode<'_>) -> Content {
        match self.profile(artifact).await {
            Ok(profile) if foreign(&profile, node).is_some() => Content::Problem {
                problem: "it is of another image".into(),
            },
            Ok(profile) => Content::Profile {
                layers: profile.layers.len(),
                chunks: profile.reads(),
                image: profile.image,
            },
            Err(problem) => Content::Problem { problem },
        }
    }

    async fn profile(&self, artifact: &Descriptor) -> Result<Profile, String> {
        let said = |error: RegistryError| error.to_string();
        let blob = self.repository.attached_blob(&artifact.digest, MEDIA_TYPE);
        let digest = blob.await.map_err(said)?.digest;
        let bytes = self
            .repository
            .blob_bytes(&digest, PROFILE_BYTES_MAX as u64);
        Profile::decode(&bytes.await.map_err(said)?).map_err(|error| error.to_string())
    }

    /// Takes all attached profiles off; the digests of their artifacts.
    pub async fn detach(&self) -> Result<Vec<String>, AttachError> {
        let mut gone = Vec::new();
        for node in self.image.manifests() {
            let subject = node.document.descriptor();
            for entry in self.artifacts(&subject).await? {
                self.repository
                    .remove_referrer(&subject.digest, &entry.digest)
                    .await?;
                gone.push(entry.digest.to_string());
            }
        }
        if gone.is_empty() {
            return Err(AttachError::Missing(self.name.clone()));
        }
        Ok(gone)
    }

    async fn artifacts(&self, subject: &Descriptor) -> Result<Vec<Descriptor>, RegistryError> {
        self.repository
            .artifacts(&subject.digest, MEDIA_TYPE, PAGES_MAX)
            .await
    }
}

/// The first layer of a profile that a manifest has not got; none if it is of that manifest.
fn foreign<'a>(profile: &'a Profile, node: &ManifestNode<'_>) -> Option<&'a LayerReads> {
    let diff_ids = node
        .config
        .map(|config| config.rootfs.diff_ids.as_slice())
        .unwrap_or_default();
    let is_there = |wanted: &&LayerReads| {
        let mut layers = node.manifest.layers.iter().zip(diff_ids);
        layers.any(|(layer, diff_id)| {
            let location = larder_location(layer);
            location.is_some_and(|location| location.digest == wanted.index)
                && (layer.digest, *diff_id) == (wanted.blob, wanted.diff_id)
        })
    };
    profile.layers.iter().find(|layer| !is_there(layer))
}
