//! Images in containerd's content store, as source and as destination.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use larder_containerd::{CallError, Containerd, STALLED_MAX, Session, Unreachable, WriteError};
use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;

use crate::destination::read_at;
use crate::manifest::{Document, Parsed};
use crate::source::stream;

/// Where containerd listens unless told otherwise.
pub const ADDRESS_DEFAULT: &str = "/run/containerd/containerd.sock";

/// The namespace `ctr` uses unless told otherwise; Kubernetes uses `k8s.io`.
pub const NAMESPACE_DEFAULT: &str = "default";

/// Bytes of a blob sent in one message; containerd accepts messages of at most 16 MiB.
const MESSAGE_BYTES: usize = 1 << 20;

/// Time in which a lease that is being taken is there: one write to containerd's database.
const TAKING_TIME: Duration = Duration::from_millis(200);

/// Time for giving a lease back when a conversion fails or is interrupted; it expires otherwise.
const RELEASE_TIME: Duration = Duration::from_secs(1);

/// Which containerd, and which of its namespaces.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its socket.
    pub address: PathBuf,
    /// The namespace.
    pub namespace: String,
}

/// containerd does not have it, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// Nobody listens.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A call failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// There is no image of that name.
    #[error(
        "containerd has no image {name} in namespace {namespace}; `ctr -n {namespace} images ls` lists what it has, --namespace chooses another namespace"
    )]
    NoSuchImage {
        /// The name.
        name: String,
        /// The namespace.
        namespace: String,
    },
    /// The image is there, but not all of it.
    #[error(
        "containerd has image {name}, but not its blob {digest}: if that belongs to another platform, choose one \
         with --platform; if the image was pulled lazily, run `larder-snapshotter fetch-blobs {name}` first"
    )]
    NoSuchBlob {
        /// The image.
        name: String,
        /// The blob.
        digest: Digest,
    },
    /// The image's descriptor makes no sense.
    #[error("containerd's image {name} has no usable descriptor: {reason}")]
    Descriptor {
        /// The image.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The bytes to be written could not be read again.
    #[error("cannot read what is to be written to containerd: {0}")]
    Spool(std::io::Error),
}

/// An image in containerd, to be read.
#[derive(Debug)]
pub struct ContainerdSource {
    containerd: Containerd,
    namespace: String,
    name: String,
    root: Descriptor,
}

impl ContainerdSource {
    /// Looks the image up.
    pub async fn open(node: &Node, name: &str) -> Result<Self, ContainerdError> {
        let containerd = Containerd::new(node.address.clone());
        containerd.reach().await?;
        Self::look_up(containerd, node.namespace.clone(), name).await
    }

    async fn look_up(
        containerd: Containerd,
        namespace: String,
        name: &str,
    ) -> Result<Self, ContainerdError> {
        let target = match containerd.image(&namespace, name).await {
            Err(error) if error.is_not_found() => {
                return Err(ContainerdError::NoSuchImage {
                    name: name.into(),
                    namespace,
                });
            }
            target => target?,
        };
        let refuse = |reason: String| ContainerdError::Descriptor {
            name: name.into(),
            reason,
        };
        let digest = target.digest.parse::<Digest>();
        let digest = digest.map_err(|error| refuse(error.to_string()))?;
        let size = u64::try_from(target.size).map_err(|error| refuse(error.to_string()))?;
        Ok(Self {
            containerd,
            namespace,
            name: name.into(),
            root: Descriptor::new(target.media_type, digest, size),
        })
    }

    /// The descriptor of the image.
    pub fn root(&self) -> &Descriptor {
        &self.root
    }

    /// Whether containerd has a blob.
    pub async fn has(&self, digest: &Digest) -> Result<bool, ContainerdError> {
        let len = self.containerd.blob_len(&self.namespace, digest).await?;
        Ok(len.is_some())
    }

    /// A blob from its beginning to its end. Nothing has been checked.
    pub async fn blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, ContainerdError> {
        let parts = self
            .containerd
            .stream(&self.namespace, digest, (0, 0))
            .await;
        let parts = parts.map_err(|error| self.lacks(digest, error))?;
        Ok(Box::new(stream::reader(parts.map(|part| {
            part.map_err(|status| status.message().to_owned())
        }))))
    }

    /// At most `len` bytes of a blob from `offset` on; fewer if it ends before.
    pub async fn range(
        &self,
        digest: &Digest,
        offset: u64,
        len: u64,
    ) -> Result<Vec<u8>, ContainerdError> {
        let mut bytes = Vec::new();
        if len == 0 {
            return Ok(bytes);
        }
        let parts = self
            .containerd
            .stream(&self.namespace, digest, (offset, len))
            .await;
        let mut parts = parts.map_err(|error| self.lacks(digest, error))?;
        while let Some(part) = parts.next().await {
            // Whether there is such a blob is told with the first part.
            let part = part.map_err(CallError::of("read a blob"));
            let part = part.map_err(|error| self.lacks(digest, error))?;
            let missing = usize::try_from(len).unwrap_or(usize::MAX) - bytes.len();
            bytes.extend_from_slice(&part[..missing.min(part.len())]);
        }
        Ok(bytes)
    }

    fn lacks(&self, digest: &Digest, error: CallError) -> ContainerdError {
        if error.is_not_found() {
            return ContainerdError::NoSuchBlob {
                name: self.name.clone(),
                digest: *digest,
            };
        }
        error.into()
    }
}

/// An image in containerd, to be written. Everything is under a lease until the image has its
/// name, so that containerd's collector leaves it alone.
#[derive(Debug)]
pub struct ContainerdDestination {
    /// Given back when the image is complete, or when this is dropped.
    session: std::sync::Mutex<Option<Session>>,
    node: Node,
    name: String,
}

impl ContainerdDestination {
    /// Takes a lease.
    pub async fn open(node: &Node, name: &str) -> Result<Self, ContainerdError> {
        let containerd = Containerd::new(node.address.clone());
        containerd.reach().await?;
        let session = Session::new(containerd, node.namespace.clone());
        // An interrupt while the lease is taken must find it here, too.
        let destination = Self {
            session: Some(session).into(),
            node: node.clone(),
            name: name.into(),
        };
        destination.session().take().await?;
        Ok(destination)
    }

    /// The image of that name as a source, if there is one.
    pub async fn existing(&self) -> Option<ContainerdSource> {
        ContainerdSource::open(&self.node, &self.name).await.ok()
    }

    /// Whether a blob of this digest and length is there; it then stays until the end.
    pub async fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool, ContainerdError> {
        let session = self.session();
        session.keep(digest).await?;
        let len = session.containerd().blob_len(session.namespace(), digest);
        Ok(len.await? == Some(size))
    }

    /// The bytes `range` of a blob: exactly those, or an error.
    pub async fn range(
        &self,
        digest: &Digest,
        range: Range<u64>,
    ) -> Result<Bytes, ContainerdError> {
        let session = self.session();
        let source = ContainerdSource {
            containerd: session.containerd().clone(),
            namespace: session.namespace().to_owned(),
            name: self.name.clone(),
            root: Descriptor::new("", *digest, range.end),
        };
        let len = range.end.saturating_sub(range.start);
        let bytes = source.range(digest, range.start, len).await?;
        if bytes.len() as u64 != len {
            return Err(ContainerdError::NoSuchBlob {
                name: self.name.clone(),
                digest: *digest,
            });
        }
        Ok(bytes.into())
    }

    /// Puts a blob that lies in a file.
    pub async fn put_blob(
        &self,
        digest: &Digest,
        size: u64,
        file: Arc<File>,
        sent: impl Fn(u64) + Send + Sync,
    ) -> Result<(), ContainerdError> {
        let session = self.session();
        let mut stalled = 0;
        loop {
            // What an interrupted conversion left is the same blob: names of uploads are digests.
            let begun = session.written(digest).await?.min(size);
            let (file, sent) = (&file, &sent);
            let body = futures_util::stream::try_unfold(begun, |at| {
                sent(at);
                async move {
                    let bytes = read_at(Arc::clone(file), at, MESSAGE_BYTES).await?;
                    let next = at + bytes.len() as u64;
                    Ok((!bytes.is_empty()).then_some((bytes, next)))
                }
            });
            let written = session.write(digest, size, HashMap::new(), begun, body);
            match written.await {
                Ok(()) => return Ok(()),
                // Another command's upload, which is not ours to throw away.
                Err(WriteError::Call(error)) if error.is_locked() && stalled < STALLED_MAX => {
                    if session.wait_for_other(digest).await? {
                        return Ok(session.keep(digest).await?);
                    }
                    stalled += 1;
                }
                Err(error) => {
                    // The first error is the one to tell; what cannot be thrown away is collected later.
                    let _ = session.abort(digest).await;
                    return Err(refused(error));
                }
            }
        }
    }

    /// Puts a manifest or index, with the labels by which the collector finds what it names.
    pub async fn put_document(
        &self,
        document: &Document,
        referrers: &[Descriptor],
    ) -> Result<(), ContainerdError> {
        let mut labels = references(document);
        for (number, referrer) in referrers.iter().enumerate() {
            labels.insert(
                format!("containerd.io/gc.ref.content.larder.referrer.{number}"),
                referrer.digest.to_string(),
            );
        }
        let session = self.session();
        session
            .put(&document.digest, &document.bytes, labels)
            .await?;
        Ok(session.keep(&document.digest).await?)
    }

    /// Gives the image its name, which is what keeps it from now on.
    pub async fn finish(&self, root: &Descriptor) -> Result<(), ContainerdError> {
        let target = larder_containerd::Descriptor {
            media_type: root.media_type.clone(),
            digest: root.digest.to_string(),
            size: i64::try_from(root.size).unwrap_or(i64::MAX),
            ..Default::default()
        };
        Ok(self.session().put_image(&self.name, target).await?)
    }

    fn session(&self) -> Session {
        let session = self.session.lock();
        let session = session.unwrap_or_else(std::sync::PoisonError::into_inner);
        session.clone().expect("the session lives until drop")
    }
}

impl Drop for ContainerdDestination {
    fn drop(&mut self) {
        let session = self.session.get_mut();
        let session = session.unwrap_or_else(std::sync::PoisonError::into_inner);
        let (Some(session), Ok(runtime)) = (session.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        // Waited for, on a thread of its own: the runtime may be about to end.
        let release = std::thread::spawn(move || {
            runtime.block_on(async {
                // A lease that cannot be given back expires.
                let _ = tokio::time::timeout(RELEASE_TIME, release(session)).await;
            });
        });
        let _ = release.join();
    }
}

/// Gives a lease back. One that containerd does not know may be on its way there: taking it was
/// interrupted.
async fn release(session: Session) {
    if let Err(error) = session.clone().end().await
        && error.is_not_found()
    {
        tokio::time::sleep(TAKING_TIME).await;
        let _ = session.end().await;
    }
}

fn refused(error: WriteError<std::io::Error>) -> ContainerdError {
    match error {
        WriteError::Call(error) => error.into(),
        WriteError::Source(error) => ContainerdError::Spool(error),
    }
}

/// The labels that make containerd's collector keep what a document names.
fn references(document: &Document) -> HashMap<String, String> {
    let label = |what: String, entry: &Descriptor| {
        (
            format!("containerd.io/gc.ref.content.{what}"),
            entry.digest.to_string(),
        )
    };
    match Parsed::parse(document) {
        Ok(Parsed::Manifest(manifest)) => {
            let layers = manifest.layers.iter().enumerate();
            let layers = layers.map(|(number, layer)| label(format!("l.{number}"), layer));
            layers
                .chain([label("config".into(), &manifest.config)])
                .collect()
        }
        Ok(Parsed::Index(index)) => {
            let entries = index.manifests.iter().enumerate();
            entries
                .map(|(number, entry)| label(format!("m.{number}"), entry))
                .collect()
        }
        // What is neither names nothing.
        Err(_) => HashMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_registry::oci::media_type;

    /// Promise: containerd's collector finds the config and every layer of a manifest, and every
    /// manifest of an index.
    #[test]
    fn a_document_refers_to_all_it_names() {
        let entry = |text: &str| {
            let digest = Digest::of(text.as_bytes());
            format!(r#"{{"mediaType":"x","digest":"{digest}","size":1}}"#)
        };
        let [config, one, two] = ["config", "one", "two"].map(entry);
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{one},{two}]}}"#);
        let labels = references(&Document::new(media_type::OCI_MANIFEST, text.into()));
        for (what, of) in [("config", "config"), ("l.0", "one"), ("l.1", "two")] {
            let label = format!("containerd.io/gc.ref.content.{what}");
            assert_eq!(labels[&label], Digest::of(of.as_bytes()).to_string());
        }
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{one},{two}]}}"#);
        let labels = references(&Document::new(media_type::OCI_INDEX, text.into()));
        assert_eq!(labels.len(), 2);
        let second = Digest::of(b"two").to_string();
        assert_eq!(labels["containerd.io/gc.ref.content.m.1"], second);
    }
}
