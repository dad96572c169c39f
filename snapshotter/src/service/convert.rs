//! Records and requests between their wire form and ours.

use larder_proto::grpc::snapshots::{self as wire, Info, UpdateSnapshotRequest};
use tonic::Status;

use crate::snapshots::Relabel;
use crate::store::{Kind, Record, Timestamp};

/// A record as containerd reads it.
pub(super) fn info(name: String, record: Record) -> Info {
    let kind = match record.kind {
        Kind::Active => wire::Kind::Active,
        Kind::View => wire::Kind::View,
        Kind::Committed => wire::Kind::Committed,
    };
    Info {
        name,
        parent: record.parent,
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.into_iter().collect(),
    }
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp {
        seconds: signed(time.seconds),
        nanos: i32::try_from(time.nanos).unwrap_or_default(),
    }
}

/// A count as gRPC sends it; no count of ours comes near the limit.
pub(super) fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Which labels an Update changes. An absent mask and an empty one both mean all of them.
pub(super) fn relabelling(request: UpdateSnapshotRequest) -> Result<Relabel, Status> {
    let info = request.info.unwrap_or_default();
    let mut keys = Some(Vec::new());
    for path in request.update_mask.unwrap_or_default().paths {
        match (path.as_str(), path.strip_prefix("labels.")) {
            ("labels", _) => keys = None,
            (_, Some(key)) => {
                if let Some(keys) = &mut keys {
                    keys.push(key.to_owned());
                }
            }
            _ => {
                let why = format!("cannot update field {path:?} of a snapshot: only labels change");
                return Err(Status::invalid_argument(why));
            }
        }
    }
    Ok(Relabel {
        key: info.name,
        labels: info.labels.into_iter().collect(),
        keys: keys.filter(|keys| !keys.is_empty()),
    })
}
