//! What happens when the last chunk of a layer has arrived.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{Layer, LayerParts};
use crate::fetch::Fetcher;
use crate::proof::{Verdict, prove};
use crate::store::{LayerStoreError, Proof};
use crate::sys::lower_this_thread;

/// One proof at a time, and none after the end.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    turn: Mutex<()>,
    closed: Mutex<bool>,
}

impl Proofs {
    /// After this, no proof writes into the store, which may be another daemon's by then.
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Writes down what a proof found; false if it is too late, and the next start proves again.
    fn keep(
        &self,
        write: impl FnOnce() -> Result<(), LayerStoreError>,
    ) -> Result<bool, LayerStoreError> {
        let closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Ok(false);
        }
        write().map(|()| true)
    }
}

/// Waits for a layer to be complete, and settles whether its index told the truth. One layer of
/// the node at a time.
pub(super) async fn watch(parts: Weak<LayerParts>, fetcher: Arc<Fetcher>, proofs: Arc<Proofs>) {
    loop {
        fetcher.completed().await;
        let Some(layer) = parts.upgrade().map(Layer) else {
            return;
        };
        let (done, settled) = oneshot::channel();
        let proofs = proofs.clone();
        // A thread of its own: it reads the whole layer, and must not take a worker from readers.
        let started = std::thread::Builder::new()
            .name("larder-proof".into())
            .spawn(move || {
                lower_this_thread();
                let _one_at_a_time = proofs.turn.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = done.send(layer.settle(&proofs));
            });
        match started {
            // Damaged chunks are fetched again, and the layer completes anew.
            Ok(_) if settled.await == Ok(false) => {
                let fetcher = fetcher.clone();
                tokio::spawn(async move { fetcher.fetch_all().await });
            }
            Ok(_) => {}
            Err(error) => warn!(%error, "cannot start a proof; the layer stays unproven"),
        }
    }
}

impl Layer {
    /// Whether the matter is settled; otherwise chunks have to come again.
    fn settle(&self, proofs: &Proofs) -> bool {
        let stored = self.stored();
        if !stored.presence().all_verified() {
            return true;
        }
        let verdict = match stored.record().proof {
            Proof::Proven => Verdict::True,
            Proof::Quarantined(_) => return true,
            Proof::Pending => prove(stored),
        };
        match verdict {
            Verdict::True => {
                // Durable before it is called proven: the file may be mounted from now on.
                let write = || stored.sync().and_then(|()| stored.set_proof(Proof::Proven));
                let kept = proofs.keep(write);
                match kept {
                    Ok(false) => {}
                    Ok(true) => {
                        self.0.proven.store(true, Ordering::Release);
                        info!(index = %self.id(), layer = %self.blob(), "complete, and proven to be what its index says");
                    }
                    // Removed meanwhile: nobody asks for its proof any more.
                    Err(_) if !stored.directory().exists() => {}
                    Err(error) => warn!(index = %self.id(), %error, "cannot keep a proof"),
                }
                true
            }
            Verdict::Lie(reason) => {
                error!(
                    index = %self.id(), layer = %self.blob(), reason,
                    "quarantined: the index does not describe the layer. Running containers go \
                     on; remove the image, and tell whoever converted it"
                );
                let context = self.0.fetcher.context();
                context.counts.quarantine();
                context
                    .observer
                    .quarantined(self.id(), self.blob(), &reason);
                let proof = Proof::Quarantined(reason);
                if let Err(error) = proofs.keep(|| stored.set_proof(proof)) {
                    error!(index = %self.id(), %error, "the quarantine cannot be written down");
                }
                true
            }
            Verdict::Unknown(reason) => {
                warn!(index = %self.id(), reason, "a layer cannot be proven now");
                stored.presence().all_verified()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image that is unmounted while it is proved ends without a warning.
    #[test]
    fn a_proof_that_comes_too_late_is_not_kept_and_no_failure() {
        let proofs = Proofs::default();
        assert!(matches!(proofs.keep(|| Ok(())), Ok(true)));
        proofs.close();
        let kept = proofs.keep(|| panic!("written after the end"));
        assert!(matches!(kept, Ok(false)));
    }
}
