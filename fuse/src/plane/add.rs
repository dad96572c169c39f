//! Adding a layer.

use std::sync::{Arc, PoisonError};

use larder_proto::annotation::IndexLocation;
use larder_proto::digest::Digest;
use larder_proto::index::StoredError;
use tokio::time::timeout;

use super::Plane;
use super::decoding::Decoded;
use super::whole::{self, Frames};
use crate::layer::{Layer, LayerId, LayerSpec};
use crate::source::{Source, ask, no_answer};
use crate::store::{LayerStoreError, NewLayer};

/// How many senders of one source may lie about an index before the next source is asked: a
/// registry and more mirrors than anybody configures.
const SENDERS_MAX: usize = 4;

/// A layer that could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddLayerError {
    /// No source delivered the index.
    #[error("cannot fetch the index of layer {layer}: {reason}")]
    Fetch {
        /// The layer's blob.
        layer: Digest,
        /// What each source said.
        reason: String,
    },
    /// The index is not one this build can use.
    #[error("the index of layer {layer} cannot be used: {error}")]
    Index {
        /// The layer's blob.
        layer: Digest,
        /// Why not.
        error: StoredError,
    },
    /// The store cannot take it, or the index does not validate.
    #[error("cannot store layer {layer}: {error}")]
    Store {
        /// The layer's blob.
        layer: Digest,
        /// Why not.
        error: LayerStoreError,
    },
    /// It was proved on this node that the index lies, and the layer was removed since.
    #[error("the index {index} of layer {layer} does not describe it: {reason}")]
    Quarantined {
        /// The layer's blob.
        layer: Digest,
        /// Its index.
        index: Digest,
        /// In which way.
        reason: String,
    },
    /// The data plane was shut down.
    #[error("the data plane is shutting down")]
    ShutDown,
}

impl AddLayerError {
    /// Whether the disk of this node has no room for it, and so none for unpacking it.
    pub fn is_disk_full(&self) -> bool {
        let full = |error: &LayerStoreError| matches!(error, LayerStoreError::DiskFull { .. });
        matches!(self, Self::Store { error, .. } if full(error))
    }
}

impl Plane {
    pub(super) async fn add(self: Arc<Self>, mut spec: LayerSpec) -> Result<Layer, AddLayerError> {
        let id = LayerId(spec.index.digest);
        let turn = {
            let mut adding = self.adding.lock().unwrap_or_else(PoisonError::into_inner);
            adding.retain(|_, turn| Arc::strong_count(turn) > 1);
            adding.entry(id).or_default().clone()
        };
        let _turn = turn.lock().await;
        if let Some(layer) = self.lock_layers().get(&id) {
            if !spec.sources.is_empty() {
                layer.set_sources(spec.sources);
                layer.set_elsewhere(spec.elsewhere);
            }
            return Ok(layer.clone());
        }
        if let Some(reason) = self.proofs.lie(&id.0) {
            return Err(AddLayerError::Quarantined {
                layer: spec.blob,
                index: id.0,
                reason,
            });
        }
        let (index, frames) = self.fetch_index(&mut spec).await?;
        let plane = self.clone();
        let store = move || plane.store_index(id, spec, &index.bytes, frames);
        let added = tokio::task::spawn_blocking(store).await;
        added.unwrap_or(Err(AddLayerError::ShutDown))
    }

    /// Fetches the index of a layer once more, from where its chunks come, and writes it over what the disk made
    /// of it.
    pub(super) async fn mend_index(&self, layer: &Layer) -> Result<(), AddLayerError> {
        let (stored, sources) = (layer.stored().clone(), layer.0.fetcher.sources());
        let record = stored.record();
        let known = sources.all();
        let mut spec = LayerSpec {
            blob: record.blob,
            index: record.location,
            sources: known.iter().map(|one| one.source.clone()).collect(),
            elsewhere: sources.elsewhere(),
        };
        let (index, _) = self.fetch_index(&mut spec).await?;
        let mended = tokio::task::spawn_blocking(move || stored.mend_index(&index.bytes)).await;
        let mended = mended.map_err(|_| AddLayerError::ShutDown)?;
        mended.map_err(|error| AddLayerError::Store {
            layer: record.blob,
            error,
        })
    }

    /// The decoded index, verified against the digest that names the layer. Sources found elsewhere
    /// become the layer's own.
    async fn fetch_index(
        &self,
        spec: &mut LayerSpec,
    ) -> Result<(Decoded, Option<Frames>), AddLayerError> {
        let mut reasons = Vec::new();
        let mut untried = 0;
        let mut looked = spec.elsewhere.is_none();
        loop {
            for source in &spec.sources[untried..] {
                match self.fetch_index_from(source.as_ref(), &spec.index).await {
                    Ok(index) => return Ok(index),
                    Err(reason) => reasons.push(format!("{}: {reason}", source.name())),
                }
            }
            untried = spec.sources.len();
            if looked {
                break;
            }
            looked = true;
            if let Some(elsewhere) = &spec.elsewhere {
                let mut found = elsewhere.find().await;
                found.retain(|new| spec.sources.iter().all(|old| old.name() != new.name()));
                spec.sources.extend(found);
            }
        }
        if reasons.is_empty() {
            reasons.push("no source is known".into());
        }
        Err(AddLayerError::Fetch {
            layer: spec.blob,
            reason: reasons.join("; "),
        })
    }

    async fn fetch_index_from(
        &self,
        source: &dyn Source,
        location: &IndexLocation,
    ) -> Result<(Decoded, Option<Frames>), String> {
        let start = self.asked_from(source, location);
        let range = start..location.offset + location.stored_len;
        // No further than the limit of whole layers, or nothing at all.
        let before = usize::try_from(location.offset - start).unwrap_or(usize::MAX);
        let fetch = async {
            let mut senders = 1;
            loop {
                let delivery = ask(source, range.clone(), &()).await;
                let delivery = delivery.map_err(|failure| failure.reason)?;
                let mut frames = delivery.bytes.clone();
                let stored = frames.split_off(before.min(frames.len()));
                let opened = self.decoding.open(stored, *location).await;
                let wrong = match opened.ok_or("the data plane is shutting down")? {
                    Ok(index) => {
                        let frames = (!frames.is_empty()).then(|| Frames {
                            bytes: frames,
                            source: source.name().to_owned(),
                            host: delivery.origin.as_ref().map(|one| one.host().to_owned()),
                        });
                        return Ok((index, frames));
                    }
                    Err(wrong) => wrong,
                };
                delivery.distrust();
                // Without an origin, the same sender would be asked again.
                if delivery.origin.is_none() || senders == SENDERS_MAX {
                    return Err(wrong.to_string());
                }
                senders += 1;
            }
        };
        let deadline = self.config.read_deadline;
        let late = |_| Err(no_answer(source, deadline));
        timeout(deadline, fetch).await.unwrap_or_else(late)
    }

    fn store_index(
        self: &Arc<Self>,
        id: LayerId,
        spec: LayerSpec,
        index: &[u8],
        frames: Option<Frames>,
    ) -> Result<Layer, AddLayerError> {
        let layer = spec.blob;
        let refused = |error| AddLayerError::Store { layer, error };
        // The decoded index, and the metadata image that is taken out of it.
        let _room = self.room_for(2 * index.len() as u64).map_err(refused)?;
        let slot = self.store.slot_for(&id.0).map_err(|error| {
            refused(LayerStoreError::Io {
                path: self.store.root().to_owned(),
                error,
            })
        })?;
        let new = NewLayer {
            blob: spec.blob,
            location: spec.index,
            index,
            slot,
        };
        let stored = self.store.add(&new).map_err(refused)?;
        // Before anybody can ask for them.
        let kept = frames
            .as_ref()
            .map_or(0, |came| whole::keep(&stored, &came.bytes));
        let layer = self.register(id, stored, spec.sources, spec.elsewhere);
        if let Some(came) = frames {
            let sources = layer.0.fetcher.sources().all();
            if let Some(tracked) = sources.iter().find(|one| one.source.name() == came.source) {
                let host = came.host.as_deref();
                tracked.delivered(host, kept);
                self.context.counts.fetched(&came.source, host, kept);
            }
        }
        Ok(layer)
    }
}
