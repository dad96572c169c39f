//! Whether a database is what redb wrote.
//!
//! redb trusts a file that was closed in order: it looks at no sum, and asserts what is in it, when it gets there. Its own check of all sums
//! mends what it can by going back a transaction, which would take a snapshot that was answered with success, and its directory. So a
//! copy in memory is checked, and nothing is written.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use larder_fuse::stderr::caught;
use redb::backends::InMemoryBackend;
use redb::{Database, DatabaseError, StorageBackend};
use rustix::fs::{FlockOperation, flock};

use super::{CACHE_BYTES_MAX, StoreError};

/// Largest file that is copied, bytes: a hundred thousand snapshots of a few hundred each. What is larger is opened as it is.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// Refuses a file in which a byte that matters was changed. What was not closed in order is whole if redb can mend it.
pub(super) fn check(path: &Path) -> Result<(), StoreError> {
    let file = File::open(path).map_err(|error| StoreError::open(path, error.into()))?;
    let len = file.metadata().map_or(0, |found| found.len());
    // Who has it locked is writing: opening it says so.
    let is_free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    if !is_free || len == 0 || len > COPY_BYTES_MAX {
        return Ok(());
    }
    let bytes = fs::read(path).map_err(|error| StoreError::open(path, error.into()))?;
    match caught(|| is_whole(&bytes)) {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(StoreError::unusable(path, "its sums are wrong")),
        Ok(Err(error)) => Err(StoreError::open(path, error)),
        Err(why) => Err(StoreError::damaged(path, &why)),
    }
}

fn is_whole(bytes: &[u8]) -> Result<bool, DatabaseError> {
    let copy = InMemoryBackend::new();
    let filled = copy
        .set_len(bytes.len() as u64)
        .and_then(|()| copy.write(0, bytes));
    filled.map_err(|error: io::Error| DatabaseError::Storage(error.into()))?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES_MAX);
    builder.create_with_backend(copy)?.check_integrity()
}
