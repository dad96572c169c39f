//! Writing an image to wherever it shall be.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;
use larder_registry::{Reference, Repository, UploadSource};

use crate::access::{Access, AccessError};
use crate::containerd::ContainerdDestination;
use crate::layout::{ArchiveDestination, LayoutDestination};
use crate::location::Location;
use crate::manifest::Document;
use crate::source::{Source, blocking};
use crate::spool;

/// An image to be written. Nothing has the image's name before [`Destination::finish`].
#[derive(Debug, Clone)]
pub struct Destination(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    Registry { repository: Repository, tag: String },
    Layout(LayoutDestination),
    Archive(ArchiveDestination),
    Containerd(ContainerdDestination),
}

impl Destination {
    /// Opens the destination; no blob is written yet.
    pub async fn open(location: &Location, access: &Access) -> Result<Self, AccessError> {
        let refuse = |reason| AccessError::NoDestination {
            location: location.to_string(),
            reason,
        };
        let kind = match location {
            Location::Registry(reference) => Kind::Registry {
                repository: access.client.repository(reference),
                tag: tag(reference).map_err(refuse)?,
            },
            Location::Layout { dir, tag } => {
                Kind::Layout(LayoutDestination::new(dir, tag.as_deref()))
            }
            Location::LayoutArchive { file, tag } => {
                Kind::Archive(ArchiveDestination::new(file, tag.as_deref())?)
            }
            Location::Containerd(name) => {
                // Its names are long forms of references.
                if let Ok(reference) = name.parse() {
                    tag(&reference).map_err(refuse)?;
                }
                Kind::Containerd(ContainerdDestination::open(&access.node, name).await?)
            }
            Location::DockerArchive { .. } => {
                return Err(refuse(
                    "archives of docker save cannot say where a layer's index is; \
                     write an oci-archive:, which docker load reads too since version 25",
                ));
            }
        };
        Ok(Self(Arc::new(kind)))
    }

    /// Asks whether the image can be put here, before any work is done for it.
    pub async fn prepare(&self) -> Result<(), AccessError> {
        match &*self.0 {
            Kind::Registry { repository, .. } => return Ok(repository.may_push().await?),
            // It gave a lease, so it lets us write.
            Kind::Containerd(_) => return Ok(()),
            Kind::Layout(_) | Kind::Archive(_) => {}
        }
        let to = Arc::clone(&self.0);
        blocking(move || match &*to {
            Kind::Layout(layout) => layout.prepare(),
            Kind::Archive(archive) => archive.prepare(),
            Kind::Registry { .. } | Kind::Containerd(_) => unreachable!("handled above"),
        })
        .await?;
        Ok(())
    }

    /// The directory for blobs that are on their way here.
    pub fn spool_dir(&self) -> PathBuf {
        match &*self.0 {
            Kind::Layout(layout) => layout.spool_dir(),
            Kind::Archive(archive) => archive.spool_dir(),
            Kind::Registry { .. } | Kind::Containerd(_) => spool::default_dir(),
        }
    }

    /// Whether a file put here becomes the blob, and is not only read.
    pub fn keeps_files(&self) -> bool {
        matches!(&*self.0, Kind::Layout(_))
    }

    /// The repository, if the destination is a registry.
    pub fn repository(&self) -> Option<&Repository> {
        match &*self.0 {
            Kind::Registry { repository, .. } => Some(repository),
            _ => None,
        }
    }

    /// What the image's name stands for until now, if for anything, and a way to read it.
    pub async fn existing(&self, access: &Access) -> Option<(Document, Source)> {
        let source = match &*self.0 {
            Kind::Registry { repository, tag } => {
                let text = format!("{}/{}:{tag}", repository.registry(), repository.name());
                let location = Location::Registry(text.parse().ok()?);
                Source::open(&location, access).await.ok()?
            }
            Kind::Layout(layout) => Source::from(layout.existing()?),
            Kind::Containerd(containerd) => Source::from(containerd.existing().await?),
            Kind::Archive(_) => return None,
        };
        Some((source.root().await.ok()?, source))
    }

    /// Whether a blob of this digest and length is there.
    pub async fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool, AccessError> {
        match &*self.0 {
            Kind::Registry { repository, .. } => Ok(repository
                .blob_exists(digest)
                .await?
                .is_some_and(|found| found == size)),
            Kind::Layout(layout) => Ok(layout.has_blob(digest, size)),
            Kind::Archive(archive) => Ok(archive.has_blob(digest)),
            Kind::Containerd(containerd) => Ok(containerd.has_blob(digest, size).await?),
        }
    }

    /// The bytes `range` of a blob that is there: exactly those, or an error.
    pub async fn range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, AccessError> {
        match &*self.0 {
            Kind::Registry { repository, .. } => Ok(repository.blob_range(digest, range).await?),
            Kind::Layout(layout) => Ok(layout.range(digest, range)?),
            // What is in the archive was put there now, and waits in a file, too.
            Kind::Archive(archive) => Err(archive.lacks(digest).into()),
            Kind::Containerd(containerd) => Ok(containerd.range(digest, range).await?),
        }
    }

    /// Lets the registry take a blob from another of its repositories; `false` if it does not.
    pub async fn mount(&self, digest: &Digest, from: &Repository) -> Result<bool, AccessError> {
        match &*self.0 {
            Kind::Registry { repository, .. }
                if repository.registry() == from.registry() && repository.name() != from.name() =>
            {
                Ok(repository.mount_blob(digest, from.name()).await?)
            }
            _ => Ok(false),
        }
    }

    /// Puts a blob that lies in a nameless file; `sent` is told how many bytes have been sent so far; after a broken
    /// connection that may be fewer again.
    pub async fn put_blob(
        &self,
        digest: Digest,
        size: u64,
        file: Arc<File>,
        sent: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(), AccessError> {
        match &*self.0 {
            Kind::Registry { repository, .. } => {
                let upload = repository.upload_blob(&digest, size, Spooled(file), sent);
                return Ok(Box::pin(upload).await?);
            }
            Kind::Containerd(containerd) => {
                return Ok(Box::pin(containerd.put_blob(&digest, size, file, sent)).await?);
            }
            Kind::Layout(_) | Kind::Archive(_) => {}
        }
        let to = Arc::clone(&self.0);
        blocking(move || match &*to {
            Kind::Layout(layout) => layout.put_blob(&digest, size, &file),
            Kind::Archive(archive) => archive.put_blob(&digest, &file),
            Kind::Registry { .. } | Kind::Containerd(_) => unreachable!("handled above"),
        })
        .await?;
        sent(size);
        Ok(())
    }

    /// Puts a manifest or index without naming it.
    pub async fn put_document(&self, document: &Document) -> Result<(), AccessError> {
        let Document {
            digest,
            media_type,
            bytes,
        } = document;
        match &*self.0 {
            Kind::Registry { repository, .. } => {
                let name = digest.to_string();
                repository
                    .put_manifest(&name, media_type, bytes.clone().into())
                    .await?;
            }
            Kind::Layout(layout) => layout.put_bytes(digest, bytes)?,
            Kind::Archive(archive) => archive.put_bytes(digest, bytes)?,
            Kind::Containerd(containerd) => containerd.put_document(document, &[]).await?,
        }
        Ok(())
    }

    /// Puts what refers to the image, then the image's own manifest or index, and gives it its
    /// name; the last step of all.
    pub async fn finish(&self, root: &Document, referrers: &[Referrer]) -> Result<(), AccessError> {
        let Document {
            media_type, bytes, ..
        } = root;
        let entries = || {
            referrers
                .iter()
                .map(|(_, entry, _)| entry.clone())
                .collect::<Vec<_>>()
        };
        for (subject, entry, document) in referrers {
            match &*self.0 {
                Kind::Registry { repository, .. } => {
                    let bytes = document.bytes.clone().into();
                    repository
                        .put_referrer(subject, entry.clone(), bytes)
                        .await?;
                }
                _ => self.put_document(document).await?,
            }
        }
        match &*self.0 {
            Kind::Registry { repository, tag } => {
                repository
                    .put_manifest(tag, media_type, bytes.clone().into())
                    .await?;
            }
            Kind::Layout(layout) => {
                self.put_document(root).await?;
                layout.finish(root.descriptor(), &entries())?;
            }
            Kind::Archive(archive) => {
                self.put_document(root).await?;
                archive.finish(root.descriptor(), &entries())?;
            }
            Kind::Containerd(containerd) => {
                containerd.put_document(root, &entries()).await?;
                containerd.finish(&root.descriptor()).await?;
            }
        }
        Ok(())
    }
}

/// What refers to a manifest: that manifest, the referrer's descriptor, and the referrer.
pub type Referrer = (Digest, Descriptor, Document);

/// A nameless file as the source of an upload.
struct Spooled(Arc<File>);

impl UploadSource for Spooled {
    fn read_at(&self, offset: u64, length: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(read_at(Arc::clone(&self.0), offset, length))
    }
}

/// At most `length` bytes of a file from `offset` on; none at its end.
pub(crate) async fn read_at(file: Arc<File>, offset: u64, length: usize) -> io::Result<Bytes> {
    blocking(move || {
        let mut bytes = vec![0; length];
        let count = file.read_at(&mut bytes, offset)?;
        bytes.truncate(count);
        Ok(bytes.into())
    })
    .await
}

/// The tag to push to. A digest names bytes that do not exist before the conversion.
fn tag(reference: &Reference) -> Result<String, &'static str> {
    match (reference.digest(), reference.tag()) {
        (None, Some(tag)) => Ok(tag.to_owned()),
        _ => Err("a converted image gets a digest of its own; name it by a tag"),
    }
}
