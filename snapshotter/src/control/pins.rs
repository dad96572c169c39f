//! `Pin` and `Unpin` of the control socket.

use std::collections::BTreeSet;

use larder_proto::digest::Digest;
use larder_proto::grpc::control::{PinRequest, PinResponse};
use tonic::{Response, Status};

use crate::plane::{Plane, PlaneError};

/// Pins the layers of the store that have one of the digests.
pub(super) fn pin(
    plane: Option<&dyn Plane>,
    request: &PinRequest,
) -> Result<Response<PinResponse>, Status> {
    let plane = plane.ok_or_else(without_plane)?;
    let (found, unknown) = named(plane, &request.layers)?;
    let layers: Vec<_> = found.into_iter().collect();
    if !layers.is_empty() {
        plane
            .pin(&layers, &request.name)
            .map_err(|error| refused(&error))?;
    }
    Ok(Response::new(PinResponse {
        layers: u32::try_from(layers.len()).unwrap_or(u32::MAX),
        unknown,
        freed: 0,
    }))
}

/// The layers of the store whose blob or index has one of the digests, and the digests of none.
pub(super) fn named(
    plane: &dyn Plane,
    digests: &[String],
) -> Result<(BTreeSet<Digest>, Vec<String>), Status> {
    let there: Vec<_> = plane
        .layers()
        .into_iter()
        .map(|index| (index, plane.progress(&index).and_then(|found| found.blob)))
        .collect();
    let (mut found, mut unknown) = (BTreeSet::new(), Vec::new());
    for text in digests {
        let digest: Result<Digest, _> = text.parse();
        let digest =
            digest.map_err(|error| Status::invalid_argument(format!("{text}: {error}")))?;
        let named =
            |(index, blob): &&(Digest, Option<Digest>)| *index == digest || *blob == Some(digest);
        let mut indexes = there
            .iter()
            .filter(named)
            .map(|(index, _)| *index)
            .peekable();
        if indexes.peek().is_none() {
            unknown.push(text.clone());
        }
        found.extend(indexes);
    }
    Ok((found, unknown))
}

/// Takes the pins of that name away; the layers that had one.
pub(super) fn unpin(plane: Option<&dyn Plane>, name: &str) -> Result<Vec<Digest>, Status> {
    let plane = plane.ok_or_else(without_plane)?;
    plane.unpin(name).map_err(|error| refused(&error))
}

/// That so many layers had the pin, and so many went with it.
pub(super) fn unpinned(layers: usize, freed: usize) -> Response<PinResponse> {
    let count = |many| u32::try_from(many).unwrap_or(u32::MAX);
    Response::new(PinResponse {
        layers: count(layers),
        unknown: Vec::new(),
        freed: count(freed),
    })
}

fn refused(error: &PlaneError) -> Status {
    Status::failed_precondition(error.to_string())
}

pub(super) fn without_plane() -> Status {
    Status::failed_precondition("this process loads nothing lazily")
}
