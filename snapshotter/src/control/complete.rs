//! `Complete` of the control socket.

use std::collections::BTreeSet;

use larder_proto::digest::Digest;
use larder_proto::grpc::control::{CompleteRequest, CompleteResponse};
use tonic::{Response, Status};

use super::lazy_layer;
use super::pins::{named, without_plane};
use crate::plane::Plane;

/// Begins to complete the layers that have one of the digests, and tells how they fare.
pub(super) fn complete(
    plane: Option<&dyn Plane>,
    request: &CompleteRequest,
) -> Result<Response<CompleteResponse>, Status> {
    let plane = plane.ok_or_else(without_plane)?;
    let (found, unknown) = named(plane, &request.layers)?;
    for index in &found {
        plane.complete(index);
    }
    let found: BTreeSet<Digest> = found;
    Ok(Response::new(CompleteResponse {
        layers: found.iter().map(|index| lazy_layer(plane, index)).collect(),
        unknown,
        caching_stopped: plane
            .caching_stopped()
            .map(|stopped| stopped.why)
            .unwrap_or_default(),
    }))
}
