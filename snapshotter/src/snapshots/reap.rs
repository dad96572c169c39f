//! Frees what removed snapshots left on disk, one task for all of them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Inner, Snapshots};
use crate::store::Store;

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
        let left = std::mem::take(&mut orphans);
        let freed = tokio::task::spawn_blocking(move || free(&inner.store, left)).await;
        match freed {
            Ok(left) => orphans = left,
            Err(_) => return,
        }
    }
}

/// Deletes the directories of removed snapshots and of `orphans`; returns the orphans left.
fn free(store: &Store, orphans: Vec<u64>) -> Vec<u64> {
    let delete = |id: &u64| match store.directories().delete(*id) {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(id, %error, "a removed snapshot still takes space; trying again later");
            false
        }
    };
    let left = orphans.into_iter().filter(|id| !delete(id)).collect();
    let removed = store.removed().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot read which snapshots were removed");
        Vec::new()
    });
    let freed: Vec<u64> = removed.into_iter().filter(delete).collect();
    if !freed.is_empty()
        && let Err(error) = store.forget(&freed)
    {
        tracing::warn!(%error, "cannot note that removed snapshots were freed");
    }
    left
}
