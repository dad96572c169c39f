//! The snapshots service: decodes requests, calls [`Snapshots`], and encodes answers and errors.

mod codes;
mod convert;

use std::pin::Pin;

use larder_proto::grpc::snapshots::snapshots_server::{self, SnapshotsServer};
use larder_proto::grpc::snapshots::{
    CleanupRequest, CommitSnapshotRequest, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use crate::filter::Filter;
use crate::snapshots::Snapshots;
use convert::{info, labels, name, relabelling, signed};

/// Bytes of one message in either direction: containerd's own limit. Labels of one request stay
/// far below it.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Snapshots per message of List, as containerd's own service sends them.
const PAGE: usize = 100;

/// The gRPC face of [`Snapshots`].
#[derive(Debug, Clone)]
pub struct Service {
    snapshots: Snapshots,
}

impl Service {
    /// The service as tonic serves it.
    pub fn server(snapshots: Snapshots) -> SnapshotsServer<Self> {
        SnapshotsServer::new(Self { snapshots })
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

type Pages = Pin<Box<dyn Stream<Item = Result<ListSnapshotsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl snapshots_server::Snapshots for Service {
    type ListStream = Pages;

    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let call = request.into_inner();
        let labels = labels(call.labels)?;
        let (key, parent) = (name(call.key)?, name(call.parent)?);
        let mounts = self.snapshots.prepare(key, parent, labels).await?;
        Ok(Response::new(PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let call = request.into_inner();
        let labels = labels(call.labels)?;
        let (key, parent) = (name(call.key)?, name(call.parent)?);
        let mounts = self.snapshots.view(key, parent, labels).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let mounts = self.snapshots.mounts(request.into_inner().key).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let call = request.into_inner();
        let labels = labels(call.labels)?;
        self.snapshots
            .commit(name(call.name)?, call.key, labels, name(call.parent)?)
            .await?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        self.snapshots.remove(request.into_inner().key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        let record = self.snapshots.stat(key.clone()).await?;
        let info = Some(info(key, record));
        Ok(Response::new(StatSnapshotResponse { info }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let change = relabelling(request.into_inner())?;
        let key = change.key.clone();
        let record = self.snapshots.relabel(change).await?;
        let info = Some(info(key, record));
        Ok(Response::new(UpdateSnapshotResponse { info }))
    }

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filter = Filter::parse(&request.into_inner().filters);
        let filter = filter.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let pages = self.snapshots.list(filter, PAGE);
        let pages = tokio_stream::StreamExt::map(pages, |page| {
            let infos = page?.into_iter().map(|(name, record)| info(name, record));
            Ok(ListSnapshotsResponse {
                info: infos.collect(),
            })
        });
        Ok(Response::new(Box::pin(pages)))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let usage = self.snapshots.usage(request.into_inner().key).await?;
        let (size, inodes) = (signed(usage.bytes), signed(usage.inodes));
        Ok(Response::new(UsageResponse { size, inodes }))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        self.snapshots.cleanup();
        Ok(Response::new(()))
    }
}

#[cfg(test)]
mod tests;
