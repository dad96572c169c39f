//! The life of lazily loaded layers after their Prepare: mounted again at the next start, unmounted
//! with their snapshot.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;

use super::{Lazy, Reason, blocking};
use crate::failpoint::failpoint;
use crate::plane::Wanted;
use crate::store::{Record, Store};

/// Mounts made at once at the start: enough to hide the waiting, few enough for one core.
const MOUNTING_MAX: usize = 8;

/// Pause between attempts to fetch again the index of a layer that the store lost: kubelet waits as
/// long before it starts a container again.
const FETCH_PAUSE: Duration = Duration::from_secs(10);

/// Why a layer is not mounted again.
#[derive(Debug, thiserror::Error)]
enum NotBack {
    /// Its index may be had again, or the system may do better the next time.
    #[error("{0}")]
    Passing(String),
    /// Nothing that could be fetched changes it.
    #[error("{0}; remove the image")]
    Lasting(String),
}

impl Lazy {
    /// Mounts every recorded layer at its place, without the network. What cannot be mounted
    /// makes its snapshots unavailable, until its index was fetched again where that helps.
    pub(crate) async fn restore(self: &Arc<Self>, store: &Arc<Store>) -> Result<(), Reason> {
        let layers = blocking(store, Store::layers).await?;
        if self
            .plane
            .takeovers()
            .all()
            .iter()
            .any(|(_, count)| *count > 0)
        {
            let mounted = layers.iter().filter_map(|(_, record)| record.layer());
            self.profiles.were_read(mounted);
        }
        let mounting = layers.into_iter().map(|(name, record)| async move {
            let mounted = self.mount_again(store, &record).await;
            mounted.err().map(|error| (name, record, error))
        });
        let mounting = futures_util::stream::iter(mounting).buffer_unordered(MOUNTING_MAX);
        let failed: Vec<_> = mounting
            .filter_map(|failed| async { failed })
            .collect()
            .await;
        let mut awaited = Vec::new();
        let mut lost = Vec::new();
        for (name, record, error) in failed {
            self.set_missing(record.id, Some(error.to_string()));
            if let NotBack::Lasting(_) = error {
                tracing::warn!(snapshot = name, %error, "a layer cannot come back");
                continue;
            }
            tracing::warn!(snapshot = name, %error, "a layer is not back; fetching its index again");
            awaited.push(store.fs(record.id));
            lost.push(record);
        }
        self.plane.settle(awaited).await;
        for record in lost {
            tokio::spawn(Arc::clone(self).refetch(Arc::clone(store), record));
        }
        self.take_up_merged(store);
        Ok(())
    }

    async fn mount_again(&self, store: &Arc<Store>, record: &Record) -> Result<(), NotBack> {
        let lasting = |why: &str| NotBack::Lasting(why.to_owned());
        let (id, parent) = (record.id, record.parent.clone());
        let known = blocking(store, move |store| {
            Ok((store.layer_facts(id)?, store.parents(&parent)?))
        });
        let (facts, below) = known
            .await
            .map_err(|error| NotBack::Passing(error.to_string()))?;
        let facts = facts.ok_or_else(|| lasting("the database lost what is known of the layer"))?;
        let wanted = Wanted::from_facts(&facts).ok_or_else(|| lasting("its facts are damaged"))?;
        if !self.plane.attach(&wanted) {
            let why = "its index is not in the store";
            return Err(NotBack::Passing(why.to_owned()));
        }
        let progress = self.plane.progress(&wanted.index.digest);
        if let Some(lie) = progress.and_then(|progress| progress.quarantined) {
            return Err(lasting(&format!("its index does not describe it: {lie}")));
        }
        // What an earlier build took on trust. Without a chain nobody can share it.
        let belongs = record
            .chain_id()
            .map(|chain| self.belonging(record, chain, below.first()));
        if let Some(Err(reason @ Reason::Foreign { .. })) = belongs {
            return Err(lasting(&reason.to_string()));
        }
        let target = store.fs(id);
        let mounted = self
            .plane
            .mount(&wanted.index.digest, &target, &facts.implied);
        mounted
            .await
            .map_err(|error| NotBack::Passing(error.to_string()))
    }

    /// Fetches the index of a lost layer until it is back, its snapshot is gone, or that turns out not
    /// to help.
    async fn refetch(self: Arc<Self>, store: Arc<Store>, record: Record) {
        let id = record.id;
        loop {
            let facts = blocking(&store, move |store| store.layer_facts(id)).await;
            let Ok(Some(facts)) = facts else {
                self.set_missing(id, None);
                return;
            };
            if let Some(wanted) = Wanted::from_facts(&facts) {
                let _gate = self.gate.read().await;
                if self.plane.add(&wanted).await.is_ok() {
                    match self.mount_again(&store, &record).await {
                        Ok(()) => {
                            tracing::info!(id, "a lost layer is back");
                            self.set_missing(id, None);
                            return;
                        }
                        Err(error @ NotBack::Lasting(_)) => {
                            tracing::warn!(id, %error, "a layer cannot come back");
                            self.set_missing(id, Some(error.to_string()));
                            return;
                        }
                        Err(NotBack::Passing(_)) => {}
                    }
                }
            }
            tokio::time::sleep(FETCH_PAUSE).await;
        }
    }

    fn set_missing(&self, id: u64, reason: Option<String>) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => missing.insert(id, reason),
            None => missing.remove(&id),
        };
    }

    /// Why the layer of snapshot `id` is not mounted, if it is not.
    pub(crate) fn missing(&self, id: u64) -> Option<String> {
        self.missing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// Unmounts the layer of a removed snapshot and frees the layer if it was the last one.
    pub(crate) async fn release(&self, store: &Arc<Store>, id: u64) -> Result<(), Reason> {
        let facts = blocking(store, move |store| store.layer_facts(id)).await?;
        let Some(facts) = facts else {
            return Ok(());
        };
        self.let_merged_go(id).await?;
        self.plane.unmount(&store.fs(id)).await?;
        failpoint("reap: unmounted");
        if let Some(wanted) = Wanted::from_facts(&facts) {
            // Who has files of it open goes on reading: a daemon that took over does not know yet where
            // the bytes are.
            self.plane.attach(&wanted);
            self.free(store, &[wanted.index.digest]).await?;
            failpoint("reap: layer freed");
        }
        blocking(store, move |store| store.forget_layer(id)).await?;
        self.set_missing(id, None);
        Ok(())
    }
}
