//! The other layers of an image: their indexes are fetched while the first one is prepared.
//!
//! containerd prepares one layer after the other, and each index is at least a round trip away. The manifest
//! names all of them, and is in containerd's content store before the first layer is asked for.

use std::collections::HashSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError};

use futures_util::future::join_all;
use larder_proto::annotation::{self, IndexLocation};
use larder_proto::digest::Digest;

use super::Lazy;
use super::locate::{IMAGE_REF, MANIFEST_DIGEST};
use crate::containerd::{Image, Key};
use crate::plane::{WHOLE_LAYER_MAX, Wanted, start_list, with_port};
use crate::snapshots::Labels;
use crate::store::Origin;
use tokio::sync::Semaphore;

/// Bytes that are asked for at a time: the first layer's index shares the link with them, and is to come within the two seconds that
/// Prepare has.
const BYTES_AT_A_TIME: u64 = 1 << 20;

/// What one index takes of it: of the smallest, 32 come at a time, for which connections are kept; of the largest, eight.
const BYTES_OF_ONE: RangeInclusive<u64> = 32 << 10..=128 << 10;

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
        let room = &Semaphore::new(usize::try_from(BYTES_AT_A_TIME).unwrap_or(usize::MAX));
        let adding = unknown.into_iter().map(|layer| async move {
            // First come, first served: in the order in which they are prepared.
            let _place = room.acquire_many(takes(&layer.index)).await;
            match self.plane.add(&layer).await {
                Ok(()) => self.profiles.layer_added(&layer, name),
                Err(error) => {
                    tracing::debug!(layer = %layer.blob, %error, "an index was not fetched ahead");
                }
            }
        });
        join_all(adding).await;
        self.siblings.give_back(&mine);
    }
}

/// What fetching an index takes of what is asked for at a time.
fn takes(index: &IndexLocation) -> u32 {
    let end = index.offset.saturating_add(index.stored_len);
    let bytes = if end > WHOLE_LAYER_MAX {
        index.stored_len
    } else {
        end
    };
    let bytes = bytes.clamp(*BYTES_OF_ONE.start(), *BYTES_OF_ONE.end());
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: the small indexes of an image of 32 layers come in one round trip; large ones leave the first layer its share.
    #[test]
    fn small_indexes_come_at_once_and_large_ones_leave_room() {
        let index = |offset, stored_len| IndexLocation {
            offset,
            stored_len,
            len: 4 * stored_len.min(1 << 20),
            digest: Digest::of(b"index"),
        };
        let at_a_time =
            |offset, stored_len| BYTES_AT_A_TIME / u64::from(takes(&index(offset, stored_len)));
        assert_eq!(at_a_time(50 << 20, 20_000), 32);
        assert_eq!(at_a_time(100, 300), 32);
        assert_eq!(at_a_time(50 << 20, 4 << 20), 8);
        // May come whole.
        assert_eq!(at_a_time(500_000, 300), 8);
        assert_eq!(at_a_time(u64::MAX, u64::MAX), 8);
    }
}
