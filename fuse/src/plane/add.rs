//! Adding a layer.

use std::sync::{Arc, PoisonError};

use larder_proto::annotation::IndexLocation;
use larder_proto::index::{StoredError, open_stored};
use tokio::time::timeout;

use super::Plane;
use crate::layer::{Layer, LayerId, LayerSpec};
use crate::source::{Answer, Source};
use crate::store::{LayerStoreError, NewLayer};

/// A layer that could not be added.
#[derive(Debug, thiserror::Error)]
pub enum AddLayerError {
    /// No source delivered the index.
    #[error("cannot fetch the index of layer {layer}: {reason}")]
    Fetch {
        /// The layer.
        layer: LayerId,
        /// What each source said.
        reason: String,
    },
    /// The index is not one this build can use.
    #[error("the index of layer {layer} cannot be used: {error}")]
    Index {
        /// The layer.
        layer: LayerId,
        /// Why not.
        error: StoredError,
    },
    /// The store cannot take it, or the index does not validate.
    #[error("cannot store layer {layer}: {error}")]
    Store {
        /// The layer.
        layer: LayerId,
        /// Why not.
        error: LayerStoreError,
    },
    /// The data plane was shut down.
    #[error("the data plane is shutting down")]
    ShutDown,
}

impl Plane {
    pub(super) async fn add(self: Arc<Self>, spec: LayerSpec) -> Result<Layer, AddLayerError> {
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
            }
            return Ok(layer.clone());
        }
        let stored = self.fetch_index(id, &spec).await?;
        let plane = self.clone();
        let added = tokio::task::spawn_blocking(move || plane.store_index(id, spec, &stored)).await;
        added.unwrap_or(Err(AddLayerError::ShutDown))
    }

    /// The stored index, verified against the digest that names the layer.
    async fn fetch_index(&self, id: LayerId, spec: &LayerSpec) -> Result<Vec<u8>, AddLayerError> {
        let mut reasons = Vec::new();
        for source in &spec.sources {
            match self.fetch_index_from(source.as_ref(), &spec.index).await {
                Ok(index) => return Ok(index),
                Err(reason) => reasons.push(format!("{}: {reason}", source.name())),
            }
        }
        if reasons.is_empty() {
            reasons.push("no source is known".into());
        }
        Err(AddLayerError::Fetch {
            layer: id,
            reason: reasons.join("; "),
        })
    }

    async fn fetch_index_from(
        &self,
        source: &dyn Source,
        location: &IndexLocation,
    ) -> Result<Vec<u8>, String> {
        let range = location.offset..location.offset + location.stored_len;
        let answer = timeout(self.config.read_deadline, source.get(range)).await;
        let bytes = match answer {
            Ok(Answer::Bytes(bytes)) => bytes,
            Ok(Answer::Miss) => return Err("it does not have the blob".into()),
            Ok(Answer::Failed(failure)) => return Err(failure.reason),
            Err(_) => return Err(format!("no answer within {:?}", self.config.read_deadline)),
        };
        open_stored(&bytes, location).map_err(|error| error.to_string())
    }

    fn store_index(
        self: &Arc<Self>,
        id: LayerId,
        spec: LayerSpec,
        index: &[u8],
    ) -> Result<Layer, AddLayerError> {
        let refused = |error| AddLayerError::Store { layer: id, error };
        let slot = self.store.new_slot().map_err(|error| {
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
        Ok(self.register(id, stored, spec.sources))
    }
}
