//! What the snapshot store refuses, and why.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::DirectoryError;

/// A request the store cannot fulfil.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The name is taken.
    #[error("snapshot {0:?} already exists")]
    Exists(String),
    /// No snapshot has this name.
    #[error("snapshot {0:?} does not exist")]
    Missing(String),
    /// The parent does not exist. If containerd believes that it does, the root directory was
    /// emptied or exchanged.
    #[error(
        "parent snapshot {0:?} does not exist; if containerd lists it, the snapshotter's root \
         directory was replaced: remove the image and pull it again"
    )]
    MissingParent(String),
    /// Only committed snapshots may be parents.
    #[error("parent snapshot {0:?} is not committed")]
    ParentNotCommitted(String),
    /// Only active snapshots can be committed.
    #[error("snapshot {0:?} is not active")]
    NotActive(String),
    /// Committed snapshots are not mounted themselves, only through children.
    #[error("snapshot {0:?} is committed: prepare or view a child of it")]
    Committed(String),
    /// Children still need it.
    #[error("cannot remove snapshot {0:?}: it has children")]
    HasChildren(String),
    /// A parent can be given at Commit only to a snapshot without one.
    #[error("snapshot {0:?} has a parent that cannot be exchanged")]
    ParentFixed(String),
    /// A snapshot needs a name.
    #[error("the name of a snapshot must not be empty")]
    EmptyName,
    /// Another process has the database.
    #[error("{0} is in use: another larder-snapshotter owns this root directory")]
    InUse(PathBuf),
    /// A newer build wrote the database.
    #[error(
        "a later build wrote the snapshot database, in version {found}; this build reads {newest}: put the \
         later build back. To go back to this one for good, remove the root directory and the images that \
         were pulled through it"
    )]
    TooNew {
        /// Version in the database.
        found: u64,
        /// Newest version this build knows.
        newest: u64,
    },
    /// The file is no database, or none any more.
    #[error(
        "the snapshot database {path} cannot be used: {why}. It says which containers and images have which \
         directory, and is not made anew over directories that are there: put it back from a copy, or drain the \
         node, move the root directory away, and remove the images that were pulled through it and pull them \
         again"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A record that this build did not write.
    #[error("the snapshot database holds a damaged record: {0}")]
    Damaged(#[from] serde_json::Error),
    /// The database failed.
    #[error("use the snapshot database: {0}")]
    Database(Box<redb::Error>),
    /// A directory could not be made or read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

impl StoreError {
    /// Whether nothing was changed. When the database itself fails, the change may be on the disk
    /// all the same, and the next start then finds the record: its directory must stay.
    pub fn is_certain(&self) -> bool {
        !matches!(self, Self::Database(_))
    }

    /// Whether another process has the database, which may be about to end.
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::InUse(_))
    }

    pub(super) fn unusable(path: &Path, why: impl Into<String>) -> Self {
        Self::Unusable {
            path: path.to_owned(),
            why: why.into(),
        }
    }

    /// redb asserts what it has written itself: `why` is what such an assertion said.
    pub(super) fn damaged(path: &Path, why: &str) -> Self {
        Self::unusable(path, format!("it is damaged ({why})"))
    }

    /// The same of the file it was found in, if that is damaged.
    pub(super) fn of_file(self, path: &Path) -> Self {
        match self {
            Self::Database(error) => match *error {
                redb::Error::Corrupted(why) => Self::unusable(path, why),
                other => Self::Database(Box::new(other)),
            },
            other => other,
        }
    }

    pub(super) fn open(path: &Path, error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse(path.to_owned()),
            // The second is what it says of a file that does not begin like a database.
            redb::DatabaseError::Storage(redb::StorageError::Corrupted(why)) => {
                Self::unusable(path, why)
            }
            redb::DatabaseError::Storage(redb::StorageError::Io(error))
                if matches!(
                    error.kind(),
                    ErrorKind::InvalidData | ErrorKind::UnexpectedEof
                ) =>
            {
                Self::unusable(path, error.to_string())
            }
            error => Self::Database(Box::new(error.into())),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),+) => {$(
        impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                Self::Database(Box::new(error.into()))
            }
        }
    )+};
}
from_redb!(TransactionError, TableError, StorageError, CommitError);
