//! The calls of the control socket that are about profiles. Each waits for the disk.

use std::sync::Arc;

use larder_proto::digest::Digest;
use larder_proto::grpc::control::{
    self, ExportProfileResponse, FindProfileRequest, ImportProfileRequest, ListProfilesResponse,
    RemoveProfileResponse,
};
use tonic::{Response, Status};

use crate::profiles::{Kept, Profiles, ProfilesError, Start};

/// What is told of all of them.
pub(super) fn told(profiles: &Profiles) -> Vec<control::Profile> {
    let all = profiles.list().into_iter();
    all.map(|(kept, start)| message(&kept, start)).collect()
}

pub(super) fn list(
    profiles: Option<&Arc<Profiles>>,
) -> Result<Response<ListProfilesResponse>, Status> {
    let profiles = told(some(profiles)?);
    Ok(Response::new(ListProfilesResponse { profiles }))
}

pub(super) fn export(
    profiles: Option<&Arc<Profiles>>,
    request: &FindProfileRequest,
) -> Result<Response<ExportProfileResponse>, Status> {
    let found = some(profiles)?.export(&request.image, &layers(request)?);
    let profile = found.map_err(|error| refused(&error))?.encode();
    Ok(Response::new(ExportProfileResponse { profile }))
}

pub(super) fn import(
    profiles: Option<&Arc<Profiles>>,
    request: &ImportProfileRequest,
) -> Result<Response<control::Profile>, Status> {
    let kept = some(profiles)?.import(&request.profile);
    let kept = kept.map_err(|error| refused(&error))?;
    Ok(Response::new(message(&kept, None)))
}

pub(super) fn remove(
    profiles: Option<&Arc<Profiles>>,
    request: &FindProfileRequest,
) -> Result<Response<RemoveProfileResponse>, Status> {
    let removed = some(profiles)?.remove(&request.image, &layers(request)?);
    let key = removed.map_err(|error| refused(&error))?.to_string();
    Ok(Response::new(RemoveProfileResponse { key }))
}

fn some(profiles: Option<&Arc<Profiles>>) -> Result<&Arc<Profiles>, Status> {
    profiles.ok_or_else(super::pins::without_plane)
}

fn layers(request: &FindProfileRequest) -> Result<Vec<Digest>, Status> {
    let parsed = request.layers.iter().map(|text| {
        let digest: Result<Digest, _> = text.parse();
        digest.map_err(|error| Status::invalid_argument(error.to_string()))
    });
    parsed.collect()
}

fn refused(error: &ProfilesError) -> Status {
    let said = error.to_string();
    match error {
        ProfilesError::Missing(_) => Status::not_found(said),
        ProfilesError::Bad(_) => Status::invalid_argument(said),
        ProfilesError::Io { .. } => Status::failed_precondition(said),
    }
}

fn message(kept: &Kept, start: Option<Start>) -> control::Profile {
    let start = start.map(|start| control::ProfileStart {
        planned: start.planned,
        read: start.read,
        missed: start.missed,
    });
    control::Profile {
        key: kept.key.to_string(),
        image: kept.image.clone(),
        layers: u32::try_from(kept.layers.len()).unwrap_or(u32::MAX),
        reads: kept.reads as u64,
        bytes: kept.bytes,
        used: super::seconds(kept.used),
        latest_start: start,
    }
}
