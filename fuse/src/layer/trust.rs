//! Whether the index of a layer is believed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Layer;
use crate::store::Proof;

/// What is known of a layer's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Nothing but what whoever vouches for it says: not all chunks were here yet.
    Claimed,
    /// The tar has the digest it names, and unpacks to the tree it shows.
    Proven,
    /// It lied, in the way told: no new mounts.
    Quarantined(String),
}

impl Layer {
    /// What is known of its index now.
    pub fn trust(&self) -> Trust {
        match self.stored().record().proof {
            Proof::Pending => Trust::Claimed,
            Proof::Proven => Trust::Proven,
            Proof::Quarantined(reason) => Trust::Quarantined(reason),
        }
    }

    /// All of it was verified by a daemon before, within the hour: if it is proven, it may be mounted directly.
    pub(crate) fn believe_proof(&self) {
        if self.trust() == Trust::Proven {
            self.0.proven.store(true, Ordering::Release);
        }
    }

    /// Completes and proves the layer before any other work that nobody waits for; waits until that is
    /// settled. Giving up the waiting does not end the work, removing the layer does.
    pub async fn prove(&self) -> Trust {
        if let Some(plane) = self.0.plane.upgrade() {
            plane.completion.hurry(self.id());
        }
        self.settled().await
    }

    /// Fetches all that is missing before any other work that nobody waits for; of a layer that is not proven, the
    /// proof follows. Returns at once.
    pub fn complete(&self) {
        if self.trust() == Trust::Claimed {
            if let Some(plane) = self.0.plane.upgrade() {
                plane.completion.hurry(self.id());
            }
            return;
        }
        // What was evicted of it, or is to be verified in this run.
        let parts = self.0.clone();
        if self.stored().presence().all_verified()
            || parts.is_completing.swap(true, Ordering::AcqRel)
        {
            return;
        }
        self.0.fetcher.runtime().spawn(async move {
            if let Err(error) = parts.fetcher.fetch_all().await {
                tracing::debug!(index = %parts.id, %error, "a layer is not completed now");
            }
            parts.is_completing.store(false, Ordering::Release);
        });
    }

    /// Waits until the layer is proven or quarantined, it is removed, or the data plane ends.
    async fn settled(&self) -> Trust {
        let mut settled = self.0.settled.subscribe();
        let is_open = || self.trust() == Trust::Claimed && !self.0.fetcher.is_removed();
        while is_open() && settled.changed().await.is_ok() {}
        self.trust()
    }

    /// The layer is removed: nothing is fetched for it any more but what is read, and nothing is written
    /// down; who waits for its proof is told.
    pub(crate) fn forget(&self) {
        self.stored().lose_name();
        self.rest();
    }

    /// Nothing is fetched for it any more but what is read; who waits for its proof is told.
    pub(crate) fn rest(&self) {
        self.0.fetcher.remove();
        self.tell();
    }

    /// Tells who waits that there is news.
    pub(super) fn tell(&self) {
        self.0.settled.send_replace(());
    }

    /// Completes it without haste, in parts of about `bytes` of the blob.
    pub(crate) async fn complete_some(&self, hurry: bool, bytes: u64) -> Result<(), String> {
        let fetcher = self.0.fetcher.clone();
        let told = |error: Arc<crate::fetch::FetchError>| error.to_string();
        if self.stored().presence().all_verified() {
            // Complete and not settled: the disk failed the proof, or could not keep it.
            fetcher.complete_again();
            return Err("it is complete, and its proof is to be made again".into());
        }
        if hurry {
            fetcher.fetch_some(bytes).await.map_err(told)
        } else {
            fetcher.fetch_politely(bytes).await.map_err(told)
        }
    }
}
