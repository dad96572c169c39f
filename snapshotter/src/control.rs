//! The control socket of a root directory: what `status`, `mount` and `umount` ask of the process
//! that owns it.

mod complete;
mod images;
mod pins;
mod profiles;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use larder_fuse::StoreUsage;
use larder_proto::digest::Digest;
use larder_proto::grpc::control::control_server::{self, ControlServer};
use larder_proto::grpc::control::{
    self, CompleteRequest, CompleteResponse, ExportProfileResponse, FindProfileRequest,
    ImportProfileRequest, Layer, ListProfilesResponse, MountImageRequest, MountImageResponse,
    PinRequest, PinResponse, RemoveProfileResponse, Sender, Source, StatusResponse,
    UnmountImageRequest, UnpinRequest,
};
use larder_proto::profile::PROFILE_BYTES_MAX;
use tonic::{Request, Response, Status};

use crate::config::OldConfiguration;
use crate::lazy::Kept;
use crate::plane::{Plane, Progress};
use crate::profiles::Profiles;
use crate::snapshots::Snapshots;
use crate::store::{Record, StoreError};
use crate::survey::Disagreement;

pub use images::ImageControl;

/// Largest request, bytes: a profile, and what is around it.
const REQUEST_BYTES_MAX: usize = PROFILE_BYTES_MAX + (64 << 10);

/// Answers for the daemon.
#[derive(Debug)]
pub struct Control {
    snapshots: Snapshots,
    old: Option<OldConfiguration>,
}

impl Control {
    /// The service as tonic serves it, of a daemon that may run on a configuration of before.
    pub fn server(snapshots: Snapshots, old: Option<OldConfiguration>) -> ControlServer<Self> {
        ControlServer::new(Self { snapshots, old }).max_decoding_message_size(REQUEST_BYTES_MAX)
    }

    fn report(&self, disagreement: Option<Disagreement>) -> Result<StatusResponse, StoreError> {
        let mut layers = layers(&self.snapshots)?;
        let store = self.snapshots.store();
        let plane = self.plane();
        if let Some(plane) = plane {
            // Those of removed snapshots, and those of snapshots that come or go.
            let used: HashSet<_> = layers.iter().map(|layer| layer.index.clone()).collect();
            let kept = plane.layers().into_iter();
            let kept = kept.filter(|index| !used.contains(&index.to_string()));
            layers.extend(kept.map(|index| Layer {
                kept: self.kept(&index).to_owned(),
                ..lazy_layer(plane, &index)
            }));
        }
        let without_snapshot = layers.iter().filter(|layer| !layer.kept.is_empty());
        let without_snapshot = without_snapshot.map(|one| one.data_on_disk + one.beside_on_disk);
        let without_snapshot = without_snapshot.sum();
        let process = process(plane, self.profiles());
        let lost = process.containers_lost;
        let mut status = StatusResponse {
            layers,
            // Once nothing is left of them, nothing is to be restarted.
            containers_lost: if lost > 0 && store.is_used_since_before(lost)? {
                lost
            } else {
                0
            },
            disagreement: disagreement.map(disagreeing),
            old_configuration: self.old.clone().map(|old| control::OldConfiguration {
                since: old.since,
                why: old.why,
            }),
            ..process
        };
        if let Some(told) = &mut status.store {
            told.database = store.database_on_disk();
            told.kept = without_snapshot;
        }
        Ok(status)
    }

    /// What keeps a layer that no snapshot has.
    fn kept(&self, index: &Digest) -> &'static str {
        match self.snapshots.lazy().map(|lazy| lazy.kept(index)) {
            Some(Kept::Pinned) => "pinned",
            Some(Kept::Removed) => "keep_removed",
            Some(Kept::Passing) | None => "passing",
        }
    }

    fn profiles(&self) -> Option<&Arc<Profiles>> {
        self.snapshots.lazy().map(|lazy| lazy.profiles())
    }

    fn plane(&self) -> Option<&dyn Plane> {
        self.snapshots.lazy().map(|lazy| lazy.plane().as_ref())
    }
}

/// States of a layer, as they are told.
pub(crate) const LAYER_STATES: [&str; 5] = ["lazy", "complete", "eager", "quarantined", "lost"];

/// The layers of images on this node, oldest first.
pub(crate) fn layers(snapshots: &Snapshots) -> Result<Vec<Layer>, StoreError> {
    let committed = snapshots.store().committed()?;
    let told = committed
        .into_iter()
        .map(|(name, record)| layer(snapshots, name, &record));
    told.collect()
}

fn layer(snapshots: &Snapshots, snapshot: String, record: &Record) -> Result<Layer, StoreError> {
    let chain_id = record.layer_chain().unwrap_or_default().to_owned();
    let plane: Option<&dyn Plane> = snapshots.lazy().map(|lazy| lazy.plane().as_ref());
    let Some((plane, index)) = plane.zip(record.layer()) else {
        let reason = record.eager.as_ref().map(|eager| eager.reason.clone());
        let reason = reason.unwrap_or_else(|| "unpacked by an earlier build".to_owned());
        let state = "eager".to_owned();
        return Ok(Layer {
            snapshot,
            chain_id,
            state,
            reason,
            ..Layer::default()
        });
    };
    let facts = snapshots.store().layer_facts(record.id)?;
    let blob = facts.map(|facts| facts.blob).unwrap_or_default();
    let lazy = snapshots.lazy();
    let missing = lazy.and_then(|lazy| lazy.missing(record.id));
    if let Some(reason) = missing.filter(|_| plane.progress(&index).is_none()) {
        return Ok(Layer {
            snapshot,
            chain_id,
            blob,
            reason,
            state: "lost".to_owned(),
            index: index.to_string(),
            ..Layer::default()
        });
    }
    Ok(Layer {
        snapshot,
        chain_id,
        blob,
        ..lazy_layer(plane, &index)
    })
}

/// What there is to tell of the process itself.
fn process(plane: Option<&dyn Plane>, profiles: Option<&Arc<Profiles>>) -> StatusResponse {
    let (driver, driver_reason) = plane.map(Plane::driver).unwrap_or_default();
    let stopped = plane.and_then(Plane::caching_stopped);
    let verdicts = plane.map(Plane::verdicts).unwrap_or_default();
    let since = stopped.as_ref().map(|stopped| seconds(stopped.since));
    StatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        driver,
        driver_reason,
        caching_stopped: stopped.map(|stopped| stopped.why).unwrap_or_default(),
        caching_stopped_since: since.unwrap_or_default(),
        containers_lost: plane.and_then(Plane::lost).unwrap_or_default(),
        store: plane.map(|plane| control::Store {
            profiles: profiles
                .map(|profiles| profiles.bytes())
                .unwrap_or_default(),
            ..store(&plane.usage())
        }),
        profiles: profiles.map(|all| profiles::told(all)).unwrap_or_default(),
        layers_proven: verdicts.proven,
        layers_quarantined: verdicts.quarantined,
        ..StatusResponse::default()
    }
}

fn disagreeing(found: Disagreement) -> control::Disagreement {
    control::Disagreement {
        unknown: found.unknown as u64,
        absent: found.absent as u64,
        since: seconds(found.since),
        why: found.why,
    }
}

fn seconds(since: SystemTime) -> u64 {
    let since = since.duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn store(usage: &StoreUsage) -> control::Store {
    control::Store {
        limit: usage.limit.unwrap_or_default(),
        total: usage.total,
        data: usage.data,
        overhead: usage.overhead,
        evictable: usage.evictable,
        pinned: usage.pinned,
        database: 0,
        removed: usage.removed,
        profiles: 0,
        kept: 0,
    }
}

/// How a lazily loaded layer fares.
fn lazy_layer(plane: &dyn Plane, index: &Digest) -> Layer {
    let progress = plane.progress(index).unwrap_or_default();
    let Progress {
        bytes_total,
        bytes_present,
        complete,
        proven,
        quarantined,
        sources,
        blob,
        data_on_disk,
        beside_on_disk,
        in_use,
        last_used,
        pins,
    } = progress;
    let sources = sources.into_iter().map(|source| Source {
        name: source.name,
        bytes_fetched: source.bytes_fetched,
        failure: source.failure,
        senders: source.senders.into_iter().map(sender).collect(),
    });
    let state = match (&quarantined, complete) {
        (Some(_), _) => "quarantined",
        (None, true) => "complete",
        (None, false) => "lazy",
    };
    Layer {
        state: state.to_owned(),
        reason: quarantined.unwrap_or_default(),
        blob: blob.map(|blob| blob.to_string()).unwrap_or_default(),
        bytes_total,
        bytes_present,
        proven,
        sources: sources.collect(),
        index: index.to_string(),
        data_on_disk,
        beside_on_disk,
        in_use,
        last_used,
        pins,
        ..Layer::default()
    }
}

fn sender((host, bytes_fetched): (String, u64)) -> Sender {
    Sender {
        host,
        bytes_fetched,
    }
}

#[tonic::async_trait]
impl control_server::Control for Control {
    async fn status(&self, _: Request<()>) -> Result<Response<StatusResponse>, Status> {
        let disagreement = self.snapshots.survey().found_now().await;
        let report = tokio::task::block_in_place(|| self.report(disagreement));
        report
            .map(Response::new)
            .map_err(|error| Status::internal(error.to_string()))
    }

    async fn mount(
        &self,
        _: Request<MountImageRequest>,
    ) -> Result<Response<MountImageResponse>, Status> {
        Err(elsewhere())
    }

    async fn unmount(&self, _: Request<UnmountImageRequest>) -> Result<Response<()>, Status> {
        Err(elsewhere())
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
        tokio::task::block_in_place(|| pins::pin(self.plane(), &request.into_inner()))
    }

    async fn complete(
        &self,
        request: Request<CompleteRequest>,
    ) -> Result<Response<CompleteResponse>, Status> {
        tokio::task::block_in_place(|| complete::complete(self.plane(), &request.into_inner()))
    }

    async fn unpin(&self, request: Request<UnpinRequest>) -> Result<Response<PinResponse>, Status> {
        let name = request.into_inner().name;
        let layers = tokio::task::block_in_place(|| pins::unpin(self.plane(), &name))?;
        let Some(lazy) = self.snapshots.lazy() else {
            return Err(pins::without_plane());
        };
        let freed = lazy.unpinned(self.snapshots.store(), &layers).await;
        let freed = freed.unwrap_or_else(|error| {
            tracing::warn!(%error, "an unpinned layer cannot be freed now; trying again later");
            0
        });
        // Somebody may be at work that keeps them for a moment.
        self.snapshots.cleanup();
        Ok(pins::unpinned(layers.len(), freed))
    }

    async fn list_profiles(
        &self,
        _: Request<()>,
    ) -> Result<Response<ListProfilesResponse>, Status> {
        tokio::task::block_in_place(|| profiles::list(self.profiles()))
    }

    async fn export_profile(
        &self,
        request: Request<FindProfileRequest>,
    ) -> Result<Response<ExportProfileResponse>, Status> {
        tokio::task::block_in_place(|| profiles::export(self.profiles(), &request.into_inner()))
    }

    async fn import_profile(
        &self,
        request: Request<ImportProfileRequest>,
    ) -> Result<Response<control::Profile>, Status> {
        tokio::task::block_in_place(|| profiles::import(self.profiles(), &request.into_inner()))
    }

    async fn remove_profile(
        &self,
        request: Request<FindProfileRequest>,
    ) -> Result<Response<RemoveProfileResponse>, Status> {
        tokio::task::block_in_place(|| profiles::remove(self.profiles(), &request.into_inner()))
    }
}

/// Images mounted by hand have a root directory of their own, so that containerd's collector and
/// a person's `umount` never meet.
fn elsewhere() -> Status {
    Status::failed_precondition(
        "this root directory belongs to containerd's snapshots: mount with another --root",
    )
}
