//! Whether a database is what redb wrote.
//!
//! redb trusts a file that was closed in order: it looks at no sum, and asserts what is in it, when it gets there. Its own check of all sums
//! mends what it can by going back a transaction, which would take a snapshot that was answered with success, and its directory. So a
//! copy in memory is checked, and nothing is written.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use larder_fuse::stderr::caught;
use redb::backends::InMemoryBackend;
use redb::{Database, DatabaseError, StorageBackend};
use rustix::fs::{FlockOperation, flock};

use super::{CACHE_BYTES_MAX, StoreError};

/// Largest file that is copied, bytes: a third of the 96 MiB the daemon is to do with. The file of a thousand snapshots has less than one. What is
/// larger is opened as it is.
const COPY_BYTES_MAX: u64 = 32 << 20;

/// Bytes that are read at a time, so that there is one copy and not two.
const PIECE_BYTES: u64 = 256 << 10;

/// Refuses a file in which a byte that matters was changed. What was not closed in order is whole if redb can mend it.
pub(super) fn check(path: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| StoreError::open(path, error.into());
    let file = File::open(path).map_err(failed)?;
    // Who has it locked is writing: opening it says so.
    let is_free = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    let len = file.metadata().map_err(failed)?.len();
    if !is_free || len == 0 || len > COPY_BYTES_MAX {
        return Ok(());
    }
    let copy = copied(&file, len).map_err(failed)?;
    match caught(|| is_whole(copy)) {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(StoreError::unusable(path, "its sums are wrong")),
        Ok(Err(error)) => Err(StoreError::open(path, error)),
        Err(why) => Err(StoreError::damaged(path, &why)),
    }
}

fn copied(file: &File, len: u64) -> io::Result<InMemoryBackend> {
    let copy = InMemoryBackend::new();
    copy.set_len(len)?;
    let mut piece = Vec::new();
    let mut at = 0;
    while at < len {
        piece.resize(
            usize::try_from(PIECE_BYTES.min(len - at)).unwrap_or_default(),
            0,
        );
        file.read_exact_at(&mut piece, at)?;
        copy.write(at, &piece)?;
        at += PIECE_BYTES;
    }
    Ok(copy)
}

fn is_whole(copy: InMemoryBackend) -> Result<bool, DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES_MAX);
    builder.create_with_backend(copy)?.check_integrity()
}
