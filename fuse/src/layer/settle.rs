//! What happens when the last chunk of a layer has arrived.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use larder_proto::digest::Digest;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{Layer, LayerParts, Trust};
use crate::config::Quarantine;
use crate::fetch::Fetcher;
use crate::proof::{Verdict, prove};
use crate::store::{LayerStoreError, Lies, Proof};
use crate::sys::lower_this_thread;

/// What proofs came to since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Layers whose index was found true.
    pub proven: u64,
    /// Layers whose index lied.
    pub quarantined: u64,
}

/// One proof at a time, and none after the end.
#[derive(Debug)]
pub(crate) struct Proofs {
    turn: Mutex<()>,
    closed: Mutex<bool>,
    lies: Lies,
    quarantine: Quarantine,
    proven: AtomicU64,
    quarantined: AtomicU64,
}

impl Proofs {
    pub(crate) fn new(lies: Lies, quarantine: Quarantine) -> Self {
        Self {
            turn: Mutex::default(),
            closed: Mutex::default(),
            lies,
            quarantine,
            proven: AtomicU64::default(),
            quarantined: AtomicU64::default(),
        }
    }

    /// In which way an index lied that was proved on this node, now or earlier.
    pub(crate) fn lie(&self, index: &Digest) -> Option<String> {
        self.lies.told(index)
    }

    /// Since the start.
    pub(crate) fn verdicts(&self) -> Verdicts {
        Verdicts {
            proven: self.proven.load(Ordering::Relaxed),
            quarantined: self.quarantined.load(Ordering::Relaxed),
        }
    }

    /// What a lie means for who has the layer mounted, now or after a restart.
    pub(crate) fn bar(&self, fetcher: &Fetcher) {
        if self.quarantine == Quarantine::Eio {
            fetcher.bar();
        }
    }

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
                // What a run before proved is not read: containers may be about to start on it.
                let is_read = layer.trust() == Trust::Claimed;
                let _one_at_a_time = is_read.then(|| {
                    lower_this_thread();
                    proofs.turn.lock().unwrap_or_else(PoisonError::into_inner)
                });
                let settled = layer.settle(&proofs);
                layer.tell();
                let _ = done.send(settled);
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
                let write = || {
                    stored.sync()?;
                    match stored.record().proof {
                        // Since a run before.
                        Proof::Proven => Ok(()),
                        _ => stored.set_proof(Proof::Proven),
                    }
                };
                let kept = proofs.keep(write);
                match kept {
                    Ok(false) => {}
                    Ok(true) => {
                        // Whoever completed it may have asked for the proof once more meanwhile.
                        if self.0.proven.swap(true, Ordering::AcqRel) {
                            return true;
                        }
                        proofs.proven.fetch_add(1, Ordering::Relaxed);
                        info!(index = %self.id(), layer = %self.blob(), "complete, and proven to be what its index says");
                        if let Some(plane) = self.0.plane.upgrade() {
                            plane.renew(self);
                        }
                    }
                    // Removed meanwhile: nobody asks for its proof any more.
                    Err(_) if self.0.fetcher.is_removed() => {}
                    Err(error) => warn!(index = %self.id(), %error, "cannot keep a proof"),
                }
                true
            }
            Verdict::Lie(reason) => {
                self.quarantine_for(reason, proofs);
                true
            }
            // It completes again when it is read, or not: no reason to fetch what had to go.
            Verdict::Evicted => true,
            Verdict::Unknown(reason) => {
                warn!(index = %self.id(), reason, "a layer cannot be proven now");
                stored.presence().all_verified()
            }
        }
    }

    /// Nothing believes the index any more, in this run and the next ones.
    fn quarantine_for(&self, reason: String, proofs: &Proofs) {
        let stored = self.stored();
        proofs.quarantined.fetch_add(1, Ordering::Relaxed);
        error!(
            target: "larder_fuse::quarantine",
            index = %self.id(), layer = %self.blob(), diff_id = %self.diff_id(), reason,
            "quarantined: the index does not describe the layer. There are no new mounts of it; \
             remove the image, and tell whoever converted it"
        );
        let context = self.0.fetcher.context();
        context.counts.quarantine();
        context
            .observer
            .quarantined(self.id(), self.blob(), &reason);
        let kept = proofs.keep(|| {
            let remembered = proofs.lies.remember(&self.id().0, &reason);
            // In memory it counts from here on, whatever the disk does.
            let written = match stored.set_proof(Proof::Quarantined(reason)) {
                Err(_) if self.0.fetcher.is_removed() => Ok(()),
                written => written,
            };
            remembered.map_err(|error| LayerStoreError::Io {
                path: stored.directory(),
                error,
            })?;
            written
        });
        proofs.bar(&self.0.fetcher);
        if let Err(error) = kept {
            error!(index = %self.id(), %error, "the quarantine cannot be written down");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StdDisk;

    /// An image that is unmounted while it is proved ends without a warning.
    #[test]
    fn a_proof_that_comes_too_late_is_not_kept_and_no_failure() {
        let root = tempfile::tempdir().unwrap();
        let lies = Lies::new(root.path(), Arc::new(StdDisk));
        let proofs = Proofs::new(lies, Quarantine::Refuse);
        assert!(matches!(proofs.keep(|| Ok(())), Ok(true)));
        proofs.close();
        let kept = proofs.keep(|| panic!("written after the end"));
        assert!(matches!(kept, Ok(false)));
    }
}
