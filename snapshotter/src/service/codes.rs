//! The one place where errors become gRPC codes, which containerd acts upon.

use tonic::{Code, Status};

use crate::lazy::Unfit;
use crate::snapshots::SnapshotError;
use crate::store::StoreError;

/// Bytes of an error message that fit a gRPC trailer with room to spare: containerd reads at most
/// 16 KiB of headers, and messages may repeat names of any length.
const MESSAGE_BYTES_MAX: usize = 2048;

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        let code = match &error {
            SnapshotError::Store(error) => code(error),
            SnapshotError::Unavailable { .. }
            | SnapshotError::Unfit(Unfit::Contested { .. } | Unfit::Unknown { .. }) => {
                Code::Unavailable
            }
            SnapshotError::DiskFull(_) => Code::ResourceExhausted,
            SnapshotError::Unfit(Unfit::Quarantined { .. }) => Code::FailedPrecondition,
            SnapshotError::Usage { .. }
            | SnapshotError::Restore(_)
            | SnapshotError::Interrupted => Code::Internal,
        };
        let mut message = error.to_string();
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        Self::new(code, message)
    }
}

fn code(error: &StoreError) -> Code {
    match error {
        StoreError::Exists(_) => Code::AlreadyExists,
        StoreError::Missing(_) | StoreError::MissingParent(_) => Code::NotFound,
        StoreError::ParentNotCommitted(_) | StoreError::ParentFixed(_) | StoreError::EmptyName => {
            Code::InvalidArgument
        }
        StoreError::NotActive(_) | StoreError::Committed(_) | StoreError::HasChildren(_) => {
            Code::FailedPrecondition
        }
        StoreError::InUse(_)
        | StoreError::TooNew { .. }
        | StoreError::Unusable { .. }
        | StoreError::Damaged(_)
        | StoreError::Database(_)
        | StoreError::Directory(_) => Code::Internal,
    }
}
