//! Chunks on their way, and who waits for them.

use std::collections::HashMap;
use std::sync::Arc;

use larder_proto::verified::Verified;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{FAILURE_REMEMBERED, FetchError};

/// How a flight ended.
#[derive(Debug, Clone)]
pub(crate) enum Landed {
    /// The chunk is in the store.
    Stored,
    /// The chunk is here; the store has no room.
    Held(Arc<Verified<Vec<u8>>>),
    /// It did not arrive.
    Failed(Arc<FetchError>),
}

/// A chunk somebody asked for.
#[derive(Debug)]
pub(super) enum Pending {
    Landed(Landed),
    InFlight(watch::Receiver<Option<Landed>>),
}

/// The flights of one layer. At most one per chunk, so the index bounds the table.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flying: HashMap<usize, watch::Sender<Option<Landed>>>,
    failed: HashMap<usize, (Instant, Arc<FetchError>)>,
}

impl Flights {
    pub(super) fn join(&self, row: usize) -> Option<watch::Receiver<Option<Landed>>> {
        self.flying.get(&row).map(watch::Sender::subscribe)
    }

    pub(super) fn begin(&mut self, row: usize) -> watch::Receiver<Option<Landed>> {
        let (sender, receiver) = watch::channel(None);
        self.flying.insert(row, sender);
        receiver
    }

    pub(super) fn land(&mut self, row: usize, landed: Landed) {
        if let Landed::Failed(error) = &landed {
            let now = Instant::now();
            self.failed
                .retain(|_, (at, _)| now - *at < FAILURE_REMEMBERED);
            self.failed.insert(row, (now, error.clone()));
        }
        if let Some(sender) = self.flying.remove(&row) {
            sender.send_replace(Some(landed));
        }
    }

    /// Why the chunk failed a moment ago, if it did.
    pub(super) fn failure(&self, row: usize, now: Instant) -> Option<Arc<FetchError>> {
        let (at, error) = self.failed.get(&row)?;
        (now.saturating_duration_since(*at) < FAILURE_REMEMBERED).then(|| error.clone())
    }

    pub(super) fn forget_failures(&mut self) {
        self.failed.clear();
    }
}

/// What a reader waits for: the chunks that were not in the store when it asked.
#[derive(Debug, Default)]
pub(crate) struct Landing(Vec<(usize, Pending)>);

impl Landing {
    pub(super) fn add(&mut self, row: usize, pending: Pending) {
        self.0.push((row, pending));
    }

    /// Waits for all of them. Chunks the store holds are left out of the answer.
    pub(crate) async fn all(self) -> Result<Vec<(usize, Arc<Verified<Vec<u8>>>)>, Arc<FetchError>> {
        let mut held = Vec::new();
        for (row, pending) in self.0 {
            match pending.landed().await {
                Landed::Stored => {}
                Landed::Held(content) => held.push((row, content)),
                Landed::Failed(error) => return Err(error),
            }
        }
        Ok(held)
    }

    /// Waits for all of them, and forgets those that are not stored.
    pub(super) async fn stored(self) -> Result<(), Arc<FetchError>> {
        self.all().await.map(drop)
    }
}

impl Pending {
    async fn landed(self) -> Landed {
        match self {
            Self::Landed(landed) => landed,
            Self::InFlight(mut receiver) => match receiver.wait_for(Option::is_some).await {
                Ok(landed) => landed.clone(),
                Err(_) => None,
            }
            .unwrap_or_else(|| Landed::Failed(Arc::new(FetchError::ShutDown))),
        }
    }
}
