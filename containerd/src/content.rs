//! containerd's content store: listing and reading blobs.

use std::collections::HashMap;

use bytes::Bytes;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::{
    GetImageRequest, Info, InfoRequest, ListContentRequest, ReadContentRequest,
};
use containerd_client::types::Descriptor;
use futures_util::{Stream, StreamExt};
use larder_proto::digest::Digest;
use tonic::{Code, Status};

use super::session::CallError;
use super::{Containerd, within};

/// Blobs looked at in one listing: a node with more manifests than this in one namespace does not
/// exist, and the listing must stay cheap.
const LISTED_MAX: usize = 10_000;

/// A blob containerd has.
#[derive(Debug, Clone)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length, bytes.
    pub len: u64,
    /// Seconds since 1970 when it arrived.
    pub created: i64,
    /// Its labels.
    pub labels: HashMap<String, String>,
}

/// The content store did not deliver.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The call failed.
    #[error("ask containerd's content store: {}", .0.message())]
    Call(Box<Status>),
    /// The blob is longer than it may be.
    #[error("blob {digest} has {len} bytes, more than {max}")]
    TooLong {
        /// The blob.
        digest: Digest,
        /// Its length.
        len: u64,
        /// The most that was expected.
        max: u64,
    },
    /// The bytes are not those of the digest.
    #[error("containerd's content store returned other bytes than {0}")]
    Damaged(Digest),
}

impl From<Status> for ContentError {
    fn from(status: Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl Containerd {
    /// Blobs of `namespace` that pass a filter of containerd's; those with other than SHA-256
    /// digests are left out.
    pub async fn blobs(&self, namespace: &str, filter: &str) -> Result<Vec<Blob>, ContentError> {
        let filters = if filter.is_empty() {
            Vec::new()
        } else {
            vec![filter.to_owned()]
        };
        let request = within(namespace, ListContentRequest { filters })?;
        let mut pages = ContentClient::new(self.channel())
            .list(request)
            .await?
            .into_inner();
        let mut blobs = Vec::new();
        while let Some(page) = pages.message().await? {
            blobs.extend(page.info.into_iter().filter_map(blob));
            if blobs.len() > LISTED_MAX {
                break;
            }
        }
        Ok(blobs)
    }

    /// The bytes of a blob, whose digest is checked.
    pub async fn read(
        &self,
        namespace: &str,
        digest: &Digest,
        max: u64,
    ) -> Result<Vec<u8>, ContentError> {
        let message = ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        };
        let request = within(namespace, message)?;
        let mut parts = ContentClient::new(self.channel())
            .read(request)
            .await?
            .into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await? {
            bytes.extend_from_slice(&part.data);
            let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            if len > max {
                return Err(ContentError::TooLong {
                    digest: *digest,
                    len,
                    max,
                });
            }
        }
        if Digest::of(&bytes) != *digest {
            return Err(ContentError::Damaged(*digest));
        }
        Ok(bytes)
    }
}

impl Containerd {
    /// The length of a blob; `None` if the content store of `namespace` does not have it.
    pub async fn blob_len(
        &self,
        namespace: &str,
        digest: &Digest,
    ) -> Result<Option<u64>, CallError> {
        let doing = format!("ask for blob {digest}");
        let message = InfoRequest {
            digest: digest.to_string(),
        };
        let request = within(namespace, message).map_err(CallError::of(&doing))?;
        match ContentClient::new(self.channel()).info(request).await {
            Ok(info) => {
                let size = info.into_inner().info.unwrap_or_default().size;
                Ok(u64::try_from(size).ok())
            }
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(CallError::of(&doing)(status)),
        }
    }

    /// The bytes of a blob from `offset` on: `len` of them, or all when that is 0. Nothing has
    /// been checked.
    pub async fn stream(
        &self,
        namespace: &str,
        digest: &Digest,
        (offset, len): (u64, u64),
    ) -> Result<impl Stream<Item = Result<Bytes, Status>> + Send + Unpin + 'static, CallError> {
        let doing = format!("read blob {digest}");
        let message = ReadContentRequest {
            digest: digest.to_string(),
            offset: i64::try_from(offset).unwrap_or(i64::MAX),
            size: i64::try_from(len).unwrap_or(i64::MAX),
        };
        let request = within(namespace, message).map_err(CallError::of(&doing))?;
        let parts = ContentClient::new(self.channel()).read(request).await;
        let parts = parts.map_err(CallError::of(&doing))?.into_inner();
        Ok(parts.map(|part| part.map(|part| Bytes::from(part.data))))
    }

    /// The descriptor an image name stands for.
    pub async fn image(&self, namespace: &str, name: &str) -> Result<Descriptor, CallError> {
        let doing = format!("look up image {name} in namespace {namespace}");
        let message = GetImageRequest {
            name: name.to_owned(),
        };
        let request = within(namespace, message).map_err(CallError::of(&doing))?;
        let got = ImagesClient::new(self.channel()).get(request).await;
        let image = got.map_err(CallError::of(&doing))?.into_inner().image;
        Ok(image.unwrap_or_default().target.unwrap_or_default())
    }
}

fn blob(info: Info) -> Option<Blob> {
    Some(Blob {
        digest: info.digest.parse().ok()?,
        len: u64::try_from(info.size).ok()?,
        created: info.created_at.map_or(0, |time| time.seconds),
        labels: info.labels,
    })
}
