//! The other layers of an image: their indexes are fetched while the first one is prepared.
//!
//! containerd prepares one layer after the other, and each index is at least a round trip away. The manifest
//! names all of them, and is in containerd's content store before the first layer is asked for.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};

use futures_util::{StreamExt as _, stream};
use larder_proto::annotation;
use larder_proto::digest::Digest;

use super::Lazy;
use super::locate::{IMAGE_REF, MANIFEST_DIGEST};
use crate::containerd::{Image, Key};
use crate::plane::{Wanted, start_list, with_port};
use crate::snapshots::Labels;
use crate::store::Origin;

/// Indexes that are fetched at a time: the requests of one layer of an image and its next ones, on a link
/// that has nothing else to do yet.
const AT_A_TIME: usize = 8;

/// Layers whose indexes are being fetched for an image that is pulled now.
#[derive(Debug, Default)]
pub(super) struct Siblings(std::sync::Mutex<HashSet<Digest>>);

impl Siblings {
    /// Those of `layers` that nobody fetches yet, which are the caller's from now on.
    fn take(&self, layers: impl Iterator<Item = Digest>) -> HashSet<Digest> {
        let mut fetched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        layers.filter(|layer| fetched.insert(*layer)).collect()
    }

    fn give_back(&self, layers: &HashSet<Digest>) {
        let mut fetched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.retain(|layer| !layers.contains(layer));
    }

    fn has(&self, layer: &Digest) -> bool {
        let fetched = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fetched.contains(layer)
    }
}

impl Lazy {
    /// Begins to fetch the indexes of the layers that some image of the namespace has beside `wanted`, and what is
    /// attached to it. What comes of it is seen when those layers are prepared; a layer that never is goes as
    /// unused.
    pub(super) fn begin_siblings(self: &Arc<Self>, wanted: &Wanted, labels: &Labels) {
        let is_known = self.plane.diff_id(&wanted.index.digest).is_some();
        if is_known || self.siblings.has(&wanted.blob) {
            return;
        }
        let name = labels.get(IMAGE_REF).cloned().unwrap_or_default();
        let manifest = labels.get(MANIFEST_DIGEST);
        let manifest = manifest.and_then(|text| text.parse::<Digest>().ok());
        let (lazy, wanted) = (Arc::clone(self), wanted.clone());
        tokio::spawn(async move {
            let key = Key::Layer(&wanted.blob);
            let found = lazy
                .lookup
                .pulled(&wanted.namespace, key, manifest.as_ref());
            let Ok(Some((image, origins))) = found.await else {
                return;
            };
            let is_pulled = manifest.is_none_or(|manifest| manifest == image.manifest);
            let attached = async {
                if is_pulled {
                    lazy.use_attached(&image, &wanted, &name).await;
                }
            };
            tokio::join!(lazy.add_siblings(&image, origins, &wanted, &name), attached);
        });
    }

    async fn add_siblings(
        &self,
        pulled: &Image,
        origins: Vec<Origin>,
        wanted: &Wanted,
        name: &str,
    ) {
        let origins: Vec<Origin> = origins
            .into_iter()
            .map(|origin| with_port(origin, &wanted.origins))
            .collect();
        let layers = pulled.layers.iter().map(|(_, layer)| layer);
        let unknown = layers.filter_map(|layer| {
            let index = layer.annotations.get(annotation::INDEX)?.parse().ok()?;
            let start = layer.annotations.get(annotation::START).map(String::as_str);
            Some(Wanted {
                blob: layer.digest,
                index,
                origins: origins.clone(),
                namespace: wanted.namespace.clone(),
                start: start_list(&layer.digest, start),
            })
        });
        let mut unknown: Vec<Wanted> = unknown
            .filter(|layer| self.plane.diff_id(&layer.index.digest).is_none())
            .collect();
        let mine = self.siblings.take(unknown.iter().map(|layer| layer.blob));
        // Who prepares it adds it, by what its own labels say.
        unknown.retain(|layer| mine.contains(&layer.blob) && layer.blob != wanted.blob);
        let _gate = self.gate.read().await;
        let adding = stream::iter(unknown).map(|layer| async move {
            match self.plane.add(&layer).await {
                Ok(()) => self.profiles.layer_added(&layer, name),
                Err(error) => {
                    tracing::debug!(layer = %layer.blob, %error, "an index was not fetched ahead");
                }
            }
        });
        adding.buffer_unordered(AT_A_TIME).collect::<()>().await;
        self.siblings.give_back(&mine);
    }
}
