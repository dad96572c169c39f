//! Changes in containerd made on behalf of one command, under a lease.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use containerd_client::services::v1 as api;
use containerd_client::types::{Descriptor, Mount};
use futures_util::{Stream, StreamExt};
use larder_proto::digest::Digest;
use larder_proto::grpc::snapshots::snapshots_client::SnapshotsClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::{Containerd, within};

/// Messages of an upload on their way; with a registry's pieces of at most 1 MiB, a few MiB.
const WRITES_QUEUED_MAX: usize = 4;

/// containerd records here which repositories of a registry a blob came from.
pub const SOURCE_PREFIX: &str = "containerd.io/distribution.source.";

/// How long what a killed or failed command brought is kept, for its next run.
const LEASE_KEPT: Duration = Duration::from_hours(24);

/// How long a document may be locked by whoever writes it: it is one message and one sync of the disk.
const LOCKED_TIME: Duration = Duration::from_secs(10);

/// How often is looked whether it still is.
const LOCKED_LOOK: Duration = Duration::from_millis(20);

/// How often is looked whether another command gets on with a blob: it may take minutes.
const OTHER_LOOK: Duration = Duration::from_millis(500);

/// How often another command may be found not to get on with a blob, half a second each: the registry client gives a
/// stalled sender up before.
pub const STALLED_MAX: usize = 60;

/// containerd in one namespace, keeping what is made until [`Session::end`].
#[derive(Debug, Clone)]
pub struct Session {
    containerd: Containerd,
    namespace: String,
    lease: String,
}

/// A call that failed, and what it was for.
#[derive(Debug, thiserror::Error)]
#[error("{doing}: containerd answers: {}", .status.message())]
pub struct CallError {
    doing: String,
    status: Box<Status>,
}

impl CallError {
    /// Says what a call that failed was for.
    pub fn of(doing: &str) -> impl FnOnce(Status) -> Self + '_ {
        move |status| Self {
            doing: doing.to_owned(),
            status: Box::new(status),
        }
    }

    /// Whether containerd says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        self.code() == Code::NotFound
    }

    /// Whether somebody else is writing the same blob at this moment.
    ///
    /// containerd 2 loses the code on its way where it truncates what is there of a blob; the words stay: "truncate failed: ref …
    /// locked for 31 ms: unavailable".
    pub fn is_locked(&self) -> bool {
        let is_unavailable = matches!(self.code(), Code::Unavailable | Code::Unknown);
        is_unavailable && self.status.message().contains(" locked for ")
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.status.code()
    }
}

impl Session {
    /// Takes a lease, so that containerd's collector spares what is made meanwhile.
    pub async fn begin(containerd: Containerd, namespace: String) -> Result<Self, CallError> {
        let session = Self::new(containerd, namespace);
        session.take().await?;
        Ok(session)
    }

    /// A session whose lease is still to be taken. Its name is known here already, so that whoever
    /// is interrupted while taking it can give it back.
    pub fn new(containerd: Containerd, namespace: String) -> Self {
        Self {
            containerd,
            namespace,
            lease: format!("larder-{}-{}", std::process::id(), unique()),
        }
    }

    /// Takes the lease.
    pub async fn take(&self) -> Result<(), CallError> {
        // A process that is killed cannot give its lease back.
        let expires = prost_types::Timestamp::from(SystemTime::now() + LEASE_KEPT).to_string();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expires)]);
        let id = self.lease.clone();
        let message = api::CreateRequest { id, labels };
        let mut leases = api::leases_client::LeasesClient::new(self.containerd.channel());
        let doing = CallError::of("take a lease");
        let request = match within(&self.namespace, message) {
            Ok(request) => request,
            Err(status) => return Err(doing(status)),
        };
        leases.create(request).await.map_err(doing)?;
        Ok(())
    }

    /// Gives the lease back; what nothing else refers to is then collected.
    pub async fn end(self) -> Result<(), CallError> {
        let message = api::DeleteRequest {
            id: self.lease.clone(),
            sync: false,
        };
        let mut leases = api::leases_client::LeasesClient::new(self.containerd.channel());
        let request = self.request(message);
        leases
            .delete(request)
            .await
            .map_err(CallError::of("give the lease back"))?;
        Ok(())
    }

    /// A request in the namespace and under the lease; both were checked by the first call.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in [
            ("containerd-namespace", &self.namespace),
            ("containerd-lease", &self.lease),
        ] {
            if let Ok(value) = value.parse() {
                request.metadata_mut().insert(name, value);
            }
        }
        request
    }

    /// The containerd it is with.
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// containerd's snapshots service.
    pub fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.containerd.channel())
    }

    /// Whether the content store has a blob.
    pub async fn has(&self, digest: &Digest) -> Result<bool, CallError> {
        Ok(self.labels(digest).await?.is_some())
    }

    /// The labels of a blob, if the content store has it.
    async fn labels(&self, digest: &Digest) -> Result<Option<HashMap<String, String>>, CallError> {
        let message = api::InfoRequest {
            digest: digest.to_string(),
        };
        let mut content = api::content_client::ContentClient::new(self.containerd.channel());
        match content.info(self.request(message)).await {
            Ok(info) => Ok(Some(info.into_inner().info.unwrap_or_default().labels)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(CallError::of("ask for a blob")(status)),
        }
    }

    /// The bytes of a blob of at most `max` bytes.
    pub async fn read(&self, digest: &Digest, max: u64) -> Result<Vec<u8>, super::ContentError> {
        self.containerd.read(&self.namespace, digest, max).await
    }

    /// Stores a document, or gives an existing one its labels. Where it came from is added to the
    /// places known before.
    pub async fn put(
        &self,
        digest: &Digest,
        bytes: &[u8],
        labels: HashMap<String, String>,
    ) -> Result<(), CallError> {
        let begin = Instant::now();
        loop {
            let put = self.put_once(digest, bytes, labels.clone()).await;
            // Of several pulls of one image, all have to write the same documents.
            if !put.as_ref().is_err_and(CallError::is_locked) || begin.elapsed() > LOCKED_TIME {
                return put;
            }
            tokio::time::sleep(LOCKED_LOOK).await;
        }
    }

    async fn put_once(
        &self,
        digest: &Digest,
        bytes: &[u8],
        mut labels: HashMap<String, String>,
    ) -> Result<(), CallError> {
        let body = futures_util::stream::iter([Ok(Bytes::copy_from_slice(bytes))]);
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let Some(known) = self.labels(digest).await? else {
            return self
                .write::<Status>(digest, len, labels, 0, body)
                .await
                .map_err(|e| match e {
                    WriteError::Call(error) => error,
                    WriteError::Source(status) => CallError::of("store a document")(status),
                });
        };
        for (label, repositories) in &mut labels {
            if let Some(before) = known
                .get(label)
                .filter(|_| label.starts_with(SOURCE_PREFIX))
            {
                *repositories = with_repository(before, repositories);
            }
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = api::Info {
            digest: digest.to_string(),
            labels,
            ..api::Info::default()
        };
        let update_mask = Some(prost_types::FieldMask { paths });
        let message = api::UpdateRequest {
            info: Some(info),
            update_mask,
        };
        let mut content = api::content_client::ContentClient::new(self.containerd.channel());
        let updated = content.update(self.request(message)).await;
        updated.map_err(CallError::of("label a document"))?;
        Ok(())
    }

    /// Bytes of a blob that an interrupted [`Session::write`] left in the content store.
    pub async fn written(&self, digest: &Digest) -> Result<u64, CallError> {
        let r#ref = upload(digest);
        let request = self.request(api::StatusRequest { r#ref });
        let mut content = api::content_client::ContentClient::new(self.containerd.channel());
        match content.status(request).await {
            Ok(status) => {
                let status = status.into_inner().status.unwrap_or_default();
                Ok(u64::try_from(status.offset).unwrap_or_default())
            }
            Err(status) if status.code() == Code::NotFound => Ok(0),
            Err(status) => Err(CallError::of("ask for an upload")(status)),
        }
    }

    /// Waits while another command writes a blob; whether it is there then. If not, the other one ended, or does not get on: that
    /// may be so [`STALLED_MAX`] times.
    pub async fn wait_for_other(&self, digest: &Digest) -> Result<bool, CallError> {
        let mut before = None;
        loop {
            tokio::time::sleep(OTHER_LOOK).await;
            if self.has(digest).await? {
                return Ok(true);
            }
            let written = Some(self.written(digest).await?);
            if written == before {
                return Ok(false);
            }
            before = written;
        }
    }

    /// Throws away what an interrupted [`Session::write`] left.
    pub async fn abort(&self, digest: &Digest) -> Result<(), CallError> {
        let r#ref = upload(digest);
        let request = self.request(api::AbortRequest { r#ref });
        let mut content = api::content_client::ContentClient::new(self.containerd.channel());
        match content.abort(request).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(CallError::of("throw an upload away")(status))
            }
            _ => Ok(()),
        }
    }

    /// Streams a blob from its byte `offset` on into the content store, which has the bytes before
    /// and checks the digest of all. What came before an error stays for the next call.
    pub async fn write<E>(
        &self,
        digest: &Digest,
        len: u64,
        labels: HashMap<String, String>,
        offset: u64,
        body: impl Stream<Item = Result<Bytes, E>> + Send,
    ) -> Result<(), WriteError<E>> {
        let (sender, receiver) = mpsc::channel(WRITES_QUEUED_MAX);
        let total = i64::try_from(len).unwrap_or(i64::MAX);
        let message = |action: api::WriteAction, offset, data: Vec<u8>| api::WriteContentRequest {
            action: action.into(),
            r#ref: upload(digest),
            total,
            expected: digest.to_string(),
            offset,
            data,
            labels: labels.clone(),
        };
        let feed = async {
            let mut body = std::pin::pin!(body);
            let mut offset = i64::try_from(offset).unwrap_or(i64::MAX);
            while let Some(bytes) = body.next().await {
                let bytes = bytes.map_err(WriteError::Source)?;
                let write = message(api::WriteAction::Write, offset, bytes.to_vec());
                offset += i64::try_from(bytes.len()).unwrap_or_default();
                if sender.send(write).await.is_err() {
                    // containerd ended the call; its answer says why.
                    return Ok(());
                }
            }
            let commit = message(api::WriteAction::Commit, offset, Vec::new());
            drop(sender.send(commit).await);
            drop(sender);
            Ok(())
        };
        let request = self.request(ReceiverStream::new(receiver));
        let call = async {
            let mut content = api::content_client::ContentClient::new(self.containerd.channel());
            let mut answers = content.write(request).await?.into_inner();
            while answers.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        let doing = format!("store blob {digest}");
        // The call ends only after the feeder dropped its end, so both are driven together.
        let (fed, called) = futures_util::future::join(feed, call).await;
        fed?;
        match called {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            called => called.map_err(|status| WriteError::Call(CallError::of(&doing)(status))),
        }
    }

    /// Unpacks a blob of the content store into mounts; returns the digest of its tar.
    pub async fn apply(&self, layer: Descriptor, mounts: Vec<Mount>) -> Result<String, CallError> {
        let doing = format!("unpack layer {}", layer.digest);
        let message = api::ApplyRequest {
            diff: Some(layer),
            mounts,
            ..Default::default()
        };
        let mut diff = api::diff_client::DiffClient::new(self.containerd.channel());
        let applied = diff
            .apply(self.request(message))
            .await
            .map_err(CallError::of(&doing))?;
        Ok(applied.into_inner().applied.unwrap_or_default().digest)
    }

    /// The descriptor an image name stands for.
    pub async fn image(&self, name: &str) -> Result<Descriptor, CallError> {
        self.containerd.image(&self.namespace, name).await
    }

    /// Spares a blob that is there already until the end of the session.
    pub async fn keep(&self, digest: &Digest) -> Result<(), CallError> {
        let message = api::AddResourceRequest {
            id: self.lease.clone(),
            resource: Some(api::Resource {
                id: digest.to_string(),
                r#type: "content".into(),
            }),
        };
        let mut leases = api::leases_client::LeasesClient::new(self.containerd.channel());
        let added = leases.add_resource(self.request(message)).await;
        added.map_err(CallError::of("add a blob to the lease"))?;
        Ok(())
    }

    /// Makes an image, or points an existing one at `target`.
    pub async fn put_image(&self, name: &str, target: Descriptor) -> Result<(), CallError> {
        let image = api::Image {
            name: name.to_owned(),
            target: Some(target),
            ..api::Image::default()
        };
        let mut images = api::images_client::ImagesClient::new(self.containerd.channel());
        let create = api::CreateImageRequest {
            image: Some(image.clone()),
            source_date_epoch: None,
        };
        match images.create(self.request(create)).await {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(CallError::of("create the image")(status)),
        }
        let update = api::UpdateImageRequest {
            image: Some(image),
            ..Default::default()
        };
        images
            .update(self.request(update))
            .await
            .map_err(CallError::of("update the image"))?;
        Ok(())
    }
}

/// The repositories of a label with one more, separated as containerd does.
fn with_repository(known: &str, new: &str) -> String {
    let mut all: Vec<&str> = known.split(',').filter(|one| !one.is_empty()).collect();
    if !all.contains(&new) {
        all.push(new);
    }
    all.join(",")
}

/// Names the upload of a blob, the same in every process: what one began, another one ends.
fn upload(digest: &Digest) -> String {
    format!("larder-{digest}")
}

/// A blob that did not arrive in the content store.
#[derive(Debug, thiserror::Error)]
pub enum WriteError<E> {
    /// containerd refused it.
    #[error(transparent)]
    Call(CallError),
    /// Its bytes could not be read.
    #[error("{0}")]
    Source(E),
}

/// A number no other call of this machine uses.
pub fn unique() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: that another command writes the same blob is known by either way in which containerd says so.
    #[test]
    fn a_locked_blob_is_waited_for_whatever_the_code() {
        let said = |code, words: &str| CallError::of("store")(Status::new(code, words)).is_locked();
        let words =
            "truncate failed: ref larder-sha256:00 locked for 31ms (since now): unavailable";
        assert!(said(Code::Unknown, words));
        assert!(said(Code::Unavailable, words));
        assert!(!said(Code::Unavailable, "error reading from server: EOF"));
        assert!(!said(Code::Unknown, "truncate failed: the file is locked"));
    }

    /// A pull by another name must not make the node forget where else the image is.
    #[test]
    fn a_second_repository_is_added_to_the_first() {
        assert_eq!(with_repository("a/b", "c"), "a/b,c");
        assert_eq!(with_repository("a/b,c", "c"), "a/b,c");
        assert_eq!(with_repository("", "c"), "c");
    }
}
