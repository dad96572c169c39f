//! Reading an image from wherever it is.

pub(crate) mod stream;

use std::io::Read;
use std::ops::Range;

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, Manifest};
use larder_registry::{Reference, Repository};

use crate::access::{Access, AccessError};
use crate::containerd::ContainerdSource;
use crate::docker::DockerSource;
use crate::files::{Files, Window};
use crate::layout::{LayoutError, LayoutSource};
use crate::location::Location;
use crate::manifest::{Document, MANIFEST_BYTES_MAX};

/// Referrers of one manifest that are looked at; images have a handful.
const REFERRERS_MAX: usize = 100;

/// An image to be read.
#[derive(Debug)]
pub struct Source {
    location: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Registry {
        repository: Repository,
        reference: Reference,
    },
    Layout(Box<LayoutSource>),
    Docker(DockerSource),
    Containerd(Box<ContainerdSource>),
}

impl Source {
    /// Opens the image; a registry is not asked yet.
    pub async fn open(location: &Location, access: &Access) -> Result<Self, AccessError> {
        let at = location.clone();
        let kind = match at {
            Location::Registry(reference) => {
                let repository = access.client.repository(&reference);
                Kind::Registry {
                    repository,
                    reference,
                }
            }
            Location::Layout { dir, tag } => Kind::Layout(Box::new(LayoutSource::open(
                Files::directory(&dir),
                tag.as_deref(),
            )?)),
            // Archives may have to be unpacked or hashed first, which takes its time.
            Location::LayoutArchive { file, tag } => {
                let open = move || {
                    let files = Files::archive(&file).map_err(LayoutError::from)?;
                    LayoutSource::open(files, tag.as_deref())
                };
                Kind::Layout(Box::new(blocking(open).await?))
            }
            Location::DockerArchive { file, reference } => Kind::Docker(
                blocking(move || DockerSource::open(&file, reference.as_deref())).await?,
            ),
            Location::Containerd(name) => {
                Kind::Containerd(Box::new(ContainerdSource::open(&access.node, &name).await?))
            }
        };
        Ok(Self {
            location: location.to_string(),
            kind,
        })
    }

    /// Where it is, as the user named it.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// The repository, if the image is in a registry.
    pub fn repository(&self) -> Option<&Repository> {
        match &self.kind {
            Kind::Registry { repository, .. } => Some(repository),
            _ => None,
        }
    }

    /// The image's manifest or index.
    pub async fn root(&self) -> Result<Document, AccessError> {
        match &self.kind {
            Kind::Registry {
                repository,
                reference,
            } => {
                let manifest = repository.manifest(&reference.identifier()).await?;
                Ok(document(manifest))
            }
            Kind::Layout(layout) => self.document(layout.root()).await,
            Kind::Docker(docker) => Ok(docker.root().clone()),
            Kind::Containerd(containerd) => self.document(containerd.root()).await,
        }
    }

    /// A manifest or index that another document names; its digest is checked.
    pub async fn document(&self, entry: &Descriptor) -> Result<Document, AccessError> {
        if let Kind::Registry { repository, .. } = &self.kind {
            let mut document = document(repository.manifest(&entry.digest.to_string()).await?);
            if !entry.media_type.is_empty() {
                document.media_type.clone_from(&entry.media_type);
            }
            return Ok(document);
        }
        let bytes = self.small_blob(entry, MANIFEST_BYTES_MAX).await?;
        Ok(Document::new(entry.media_type.clone(), bytes))
    }

    /// What refers to the manifest `subject`, as far as its place tells: registries by their API or its tag, layouts by
    /// entries without a name, of which the first hundred are looked at. Archives of Docker and containerd do not tell.
    pub async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, AccessError> {
        let mut found = match &self.kind {
            Kind::Registry { repository, .. } => repository.referrers(subject).await?,
            Kind::Layout(layout) => {
                let mut found = Vec::new();
                for entry in layout.unnamed().iter().take(REFERRERS_MAX) {
                    found.extend(self.referring(entry, subject).await?);
                }
                found
            }
            Kind::Docker(_) | Kind::Containerd(_) => Vec::new(),
        };
        found.truncate(REFERRERS_MAX);
        Ok(found)
    }

    /// An entry of a layout, with its type, if it refers to `subject`.
    async fn referring(
        &self,
        entry: &Descriptor,
        subject: &Digest,
    ) -> Result<Option<Descriptor>, AccessError> {
        let document = self.document(entry).await?;
        let Ok(manifest) = Manifest::parse(&document.bytes) else {
            return Ok(None);
        };
        if manifest
            .subject
            .is_none_or(|found| found.digest != *subject)
        {
            return Ok(None);
        }
        let mut entry = entry.clone();
        let config = manifest.config.media_type;
        let said = entry.artifact_type.take().or(manifest.artifact_type);
        entry.artifact_type = said.or(Some(config));
        Ok(Some(entry))
    }

    /// Whether the image is there without this blob, as far as that can be known without reading it.
    pub async fn lacks(&self, digest: &Digest) -> Result<bool, AccessError> {
        match &self.kind {
            Kind::Containerd(containerd) => Ok(!containerd.has(digest).await?),
            _ => Ok(false),
        }
    }

    /// A whole blob of at most `limit` bytes; its digest is checked.
    pub async fn small_blob(&self, entry: &Descriptor, limit: u64) -> Result<Vec<u8>, AccessError> {
        let Descriptor { digest, size, .. } = *entry;
        let location = || self.location.clone();
        if size > limit {
            return Err(AccessError::TooLarge {
                location: location(),
                digest,
                size,
                limit,
            });
        }
        if let Kind::Registry { repository, .. } = &self.kind {
            return Ok(repository.blob_bytes(&digest, limit).await?.to_vec());
        }
        let bytes = if let Kind::Containerd(containerd) = &self.kind {
            // One byte more than promised is enough to know that the blob is another one.
            containerd.range(&digest, 0, size + 1).await?
        } else {
            self.file_bytes(&digest, limit)?
        };
        match Digest::of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(AccessError::Digest {
                location: location(),
                expected: digest,
                found,
            }),
        }
    }

    fn file_bytes(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, AccessError> {
        let window = self.window(digest)?;
        if window.len() > limit {
            return Err(AccessError::TooLarge {
                location: self.location.clone(),
                digest: *digest,
                size: window.len(),
                limit,
            });
        }
        let mut bytes = Vec::new();
        let read = window.reader().read_to_end(&mut bytes);
        read.map_err(|error| AccessError::Read {
            location: self.location.clone(),
            digest: *digest,
            error,
        })?;
        Ok(bytes)
    }

    /// A blob from its beginning to its end, to be read on a thread that may block.
    ///
    /// Neither digest nor length have been checked.
    pub async fn blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, AccessError> {
        match &self.kind {
            Kind::Registry { repository, .. } => {
                Ok(Box::new(stream::reader(repository.blob(digest).await?)))
            }
            Kind::Containerd(containerd) => Ok(containerd.blob(digest).await?),
            _ => Ok(Box::new(self.window(digest)?.reader())),
        }
    }

    /// The bytes `range` of a blob: exactly those, or an error.
    pub async fn range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, AccessError> {
        if let Kind::Registry { repository, .. } = &self.kind {
            return Ok(repository.blob_range(digest, range).await?);
        }
        let read = |error| AccessError::Read {
            location: self.location.clone(),
            digest: *digest,
            error,
        };
        let len = range.end.saturating_sub(range.start);
        if let Kind::Containerd(containerd) = &self.kind {
            let bytes = containerd.range(digest, range.start, len).await?;
            if bytes.len() as u64 != len {
                return Err(read(std::io::ErrorKind::UnexpectedEof.into()));
            }
            return Ok(bytes.into());
        }
        let window = self.window(digest)?;
        if range.end > window.len() {
            return Err(read(std::io::ErrorKind::UnexpectedEof.into()));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        window
            .read_exact_at(&mut bytes, range.start)
            .map_err(read)?;
        Ok(bytes.into())
    }

    fn window(&self, digest: &Digest) -> Result<Window, AccessError> {
        match &self.kind {
            Kind::Layout(layout) => Ok(layout.blob(digest)?),
            Kind::Docker(docker) => Ok(docker.blob(digest)?),
            Kind::Registry { .. } | Kind::Containerd(_) => {
                unreachable!("blobs of registries and containerd are fetched, not opened")
            }
        }
    }
}

fn document(manifest: larder_registry::Manifest) -> Document {
    Document {
        digest: manifest.digest,
        media_type: manifest.media_type,
        bytes: manifest.bytes.to_vec(),
    }
}

impl From<LayoutSource> for Source {
    fn from(layout: LayoutSource) -> Self {
        Self {
            location: "the destination".into(),
            kind: Kind::Layout(Box::new(layout)),
        }
    }
}

impl From<ContainerdSource> for Source {
    fn from(containerd: ContainerdSource) -> Self {
        Self {
            location: "the destination".into(),
            kind: Kind::Containerd(Box::new(containerd)),
        }
    }
}

/// Runs what blocks on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
