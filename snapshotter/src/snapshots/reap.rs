//! Frees what removed snapshots left on disk, one task for all of them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{Inner, Snapshots};
use crate::failpoint::failpoint;

/// How long what could not be freed waits for the next try, unless something else is removed.
const RETRY: Duration = Duration::from_mins(1);

impl Snapshots {
    /// Starts the task, which ends with the last clone of the snapshots.
    pub(super) fn spawn_reaper(&self, orphans: Vec<u64>) {
        let removed = Arc::clone(&self.inner.removed);
        removed.notify_one();
        tokio::spawn(reap(Arc::downgrade(&self.inner), removed, orphans));
    }
}

async fn reap(inner: Weak<Inner>, removed: Arc<Notify>, mut orphans: Vec<u64>) {
    loop {
        // A timeout is as good as a call: what failed before is tried again.
        drop(timeout(RETRY, removed.notified()).await);
        let Some(inner) = inner.upgrade() else {
            return;
        };
        orphans = free(&inner, std::mem::take(&mut orphans)).await;
        if let Some(lazy) = &inner.lazy
            && let Err(error) = lazy.sweep(&inner.store).await
        {
            tracing::warn!(%error, "cannot free layers that no snapshot uses");
        }
    }
}

/// Frees removed snapshots and `orphans`; returns the orphans left.
async fn free(inner: &Inner, orphans: Vec<u64>) -> Vec<u64> {
    let mut left = Vec::new();
    for id in orphans {
        if !delete(inner, id).await {
            left.push(id);
        }
    }
    let store = Arc::clone(&inner.store);
    let removed = spawn_blocking(move || store.removed()).await;
    let removed = removed.ok().and_then(Result::ok).unwrap_or_default();
    let mut freed = Vec::new();
    for id in removed {
        if delete(inner, id).await {
            freed.push(id);
        }
    }
    if !freed.is_empty() {
        let store = Arc::clone(&inner.store);
        let forgotten = spawn_blocking(move || store.forget(&freed)).await;
        if let Ok(Err(error)) = forgotten {
            tracing::warn!(%error, "cannot note that removed snapshots were freed");
        }
        failpoint("reap: noted");
    }
    left
}

/// Unmounts and deletes one snapshot's directory; says whether nothing is left.
async fn delete(inner: &Inner, id: u64) -> bool {
    if let Some(lazy) = &inner.lazy
        && let Err(error) = lazy.release(&inner.store, id).await
    {
        tracing::warn!(id, %error, "a removed layer is still mounted; trying again later");
        return false;
    }
    let directories = inner.store.directories().clone();
    match spawn_blocking(move || directories.delete(id)).await {
        Ok(Ok(())) => {
            failpoint("reap: directory deleted");
            true
        }
        Ok(Err(error)) => {
            tracing::warn!(id, %error, "a removed snapshot still takes space; trying again later");
            false
        }
        Err(_) => false,
    }
}
