//! The control socket of a process that mounts images by hand.

use std::path::Path;
use std::sync::Arc;

use larder_proto::grpc::control::control_server::{self, ControlServer};
use larder_proto::grpc::control::{
    self, CompleteRequest, CompleteResponse, ExportProfileResponse, FindProfileRequest,
    ImportProfileRequest, ListProfilesResponse, MountImageRequest, MountImageResponse, Mounted,
    PinRequest, PinResponse, RemoveProfileResponse, StatusResponse, UnmountImageRequest,
    UnpinRequest,
};
use tonic::{Request, Response, Status};

use crate::mounter::{MountImageError, Mounter};

/// Answers for a [`Mounter`].
#[derive(Debug)]
pub struct ImageControl {
    mounter: Arc<Mounter>,
}

impl ImageControl {
    /// The service as tonic serves it.
    pub fn server(mounter: Arc<Mounter>) -> ControlServer<Self> {
        ControlServer::new(Self { mounter }).max_decoding_message_size(super::REQUEST_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl control_server::Control for ImageControl {
    async fn status(&self, _: Request<()>) -> Result<Response<StatusResponse>, Status> {
        self.mounter.forget_unmounted().await;
        let mounted = self
            .mounter
            .list()
            .await
            .into_iter()
            .map(|(reference, target)| Mounted {
                reference,
                target: target.to_string_lossy().into_owned(),
            });
        let layers = self.mounter.plane().layers().into_iter();
        let layers = layers.map(|index| super::lazy_layer(self.mounter.plane().as_ref(), &index));
        Ok(Response::new(StatusResponse {
            layers: layers.collect(),
            mounted: mounted.collect(),
            // What an owner that died had mounted is unmounted by the next one, and no container has it.
            containers_lost: 0,
            ..super::process(
                Some(self.mounter.plane().as_ref()),
                Some(self.mounter.profiles()),
            )
        }))
    }

    async fn mount(
        &self,
        request: Request<MountImageRequest>,
    ) -> Result<Response<MountImageResponse>, Status> {
        let call = request.into_inner();
        let mounter = Arc::clone(&self.mounter);
        // A task of its own: a caller that goes away must not leave half a stack.
        let mounting = tokio::spawn(async move {
            mounter.forget_unmounted().await;
            mounter
                .mount(&call.reference, Path::new(&call.target), call.plain_http)
                .await
        });
        let mounted = mounting
            .await
            .map_err(|error| Status::internal(error.to_string()))?;
        let (manifest, layers) = mounted.map_err(|error| status(&error))?;
        let layers = u32::try_from(layers).unwrap_or(u32::MAX);
        Ok(Response::new(MountImageResponse {
            manifest: manifest.to_string(),
            layers,
        }))
    }

    async fn unmount(&self, request: Request<UnmountImageRequest>) -> Result<Response<()>, Status> {
        let call = request.into_inner();
        self.mounter
            .unmount(Path::new(&call.target))
            .await
            .map_err(|error| status(&error))?;
        Ok(Response::new(()))
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
        let plane = Some(self.mounter.plane().as_ref());
        tokio::task::block_in_place(|| super::pins::pin(plane, &request.into_inner()))
    }

    async fn complete(
        &self,
        request: Request<CompleteRequest>,
    ) -> Result<Response<CompleteResponse>, Status> {
        let plane = Some(self.mounter.plane().as_ref());
        tokio::task::block_in_place(|| super::complete::complete(plane, &request.into_inner()))
    }

    async fn unpin(&self, request: Request<UnpinRequest>) -> Result<Response<PinResponse>, Status> {
        let plane = Some(self.mounter.plane().as_ref());
        let name = request.into_inner().name;
        let layers = tokio::task::block_in_place(|| super::pins::unpin(plane, &name))?;
        // Nothing is freed here but by eviction.
        Ok(super::pins::unpinned(layers.len(), 0))
    }

    async fn list_profiles(
        &self,
        _: Request<()>,
    ) -> Result<Response<ListProfilesResponse>, Status> {
        tokio::task::block_in_place(|| super::profiles::list(Some(self.mounter.profiles())))
    }

    async fn export_profile(
        &self,
        request: Request<FindProfileRequest>,
    ) -> Result<Response<ExportProfileResponse>, Status> {
        tokio::task::block_in_place(|| {
            super::profiles::export(Some(self.mounter.profiles()), &request.into_inner())
        })
    }

    async fn import_profile(
        &self,
        request: Request<ImportProfileRequest>,
    ) -> Result<Response<control::Profile>, Status> {
        tokio::task::block_in_place(|| {
            super::profiles::import(Some(self.mounter.profiles()), &request.into_inner())
        })
    }

    async fn remove_profile(
        &self,
        request: Request<FindProfileRequest>,
    ) -> Result<Response<RemoveProfileResponse>, Status> {
        tokio::task::block_in_place(|| {
            super::profiles::remove(Some(self.mounter.profiles()), &request.into_inner())
        })
    }
}

fn status(error: &MountImageError) -> Status {
    let message = error.to_string();
    match error {
        MountImageError::Absent(_) => Status::not_found(message),
        MountImageError::Taken(_) => Status::already_exists(message),
        MountImageError::Ending => Status::unavailable(message),
        _ => Status::failed_precondition(message),
    }
}
