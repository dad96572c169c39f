//! Records and requests between their wire form and ours.

use std::collections::{BTreeMap, HashMap};

use larder_proto::grpc::snapshots::{self as wire, Info, UpdateSnapshotRequest};
use tonic::Status;

use crate::snapshots::Relabel;
use crate::store::{Kind, Record, Timestamp};

/// Bytes of one label, key and value together: containerd's own limit for all labels.
pub(super) const LABEL_BYTES_MAX: usize = 4096;

/// Labels of one snapshot. containerd's clients put six at most, and hand over the annotations of a
/// layer that begin with `containerd.io/snapshot/`, of which converted layers have three.
pub(super) const LABELS_MAX: usize = 256;

/// Bytes of a snapshot's name. containerd's have a namespace, a number and a chain id or container
/// id, some 150 bytes; a name is repeated in every record of a child.
pub(super) const NAME_BYTES_MAX: usize = 4096;

/// Labels of a request, if they are no more than containerd would let through.
pub(super) fn labels(labels: HashMap<String, String>) -> Result<BTreeMap<String, String>, Status> {
    if labels.len() > LABELS_MAX {
        let why = format!(
            "{} labels; a snapshot has at most {LABELS_MAX}",
            labels.len()
        );
        return Err(Status::invalid_argument(why));
    }
    let is_long = |(key, value): &(&String, &String)| key.len() + value.len() > LABEL_BYTES_MAX;
    if let Some((key, _)) = labels.iter().find(is_long) {
        let key: String = key.chars().take(100).collect();
        let why = format!("label {key:?} has more than {LABEL_BYTES_MAX} bytes");
        return Err(Status::invalid_argument(why));
    }
    Ok(labels.into_iter().collect())
}

/// The name of a snapshot that is to be made, or of its parent.
pub(super) fn name(name: String) -> Result<String, Status> {
    if name.len() > NAME_BYTES_MAX {
        let why = format!("a snapshot's name has at most {NAME_BYTES_MAX} bytes");
        return Err(Status::invalid_argument(why));
    }
    Ok(name)
}

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
        labels: labels(info.labels)?,
        keys: keys.filter(|keys| !keys.is_empty()),
    })
}
