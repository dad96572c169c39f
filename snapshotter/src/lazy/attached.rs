//! What is attached to an image in its registry: looked for when the image is pulled and nothing is known here of
//! what its start reads.
//!
//! It goes on beside Prepare, which never waits for it. Nobody vouches for what is found: it costs bytes at most.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use larder_proto::annotation::{self, IndexLocation};
use larder_proto::digest::Digest;
use larder_proto::profile::LayerReads;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Lazy;
use crate::containerd::Image;
use crate::plane::Wanted;

/// How long an answer stands, also that there is nothing: an image that is pulled again and again, or by many
/// pods at once, is asked about once. Who attaches a profile now can wait as long for nodes that asked before.
const STANDS: Duration = Duration::from_mins(10);

/// Manifests that are remembered, 50 bytes each: more than a node pulls in that time.
const ASKED_MAX: usize = 1024;

/// Profiles that are fetched at a time: each may hold a list, a manifest and a profile of 4 MiB each.
const AT_A_TIME: usize = 4;

/// Time for all of it. Three requests take half a second over the longest links; the start that they were for
/// is over by then.
const TIME_MAX: Duration = Duration::from_secs(10);

/// The manifests that were asked about, and when.
#[derive(Debug)]
pub(super) struct Asked {
    manifests: Mutex<HashMap<Digest, Instant>>,
    places: Semaphore,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            manifests: Mutex::default(),
            places: Semaphore::new(AT_A_TIME),
        }
    }
}

impl Asked {
    /// Whether nobody asked about a manifest lately; then the caller does.
    fn begin(&self, manifest: &Digest, now: Instant) -> bool {
        let mut asked = self
            .manifests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let stands = |when: &Instant| now.saturating_duration_since(*when) < STANDS;
        if asked.get(manifest).is_some_and(stands) {
            return false;
        }
        if asked.len() >= ASKED_MAX {
            asked.retain(|_, when| stands(when));
        }
        if asked.len() >= ASKED_MAX {
            // Being asked again costs two small requests.
            asked.clear();
        }
        asked.insert(*manifest, now);
        true
    }
}

impl Lazy {
    /// Looks for a profile that is attached to `pulled`, whose layer `wanted` is, and uses it; `name` is what
    /// CRI calls the image.
    pub(super) async fn use_attached(&self, pulled: &Image, wanted: &Wanted, name: &str) {
        let layers = Arc::new(layers(pulled));
        let profiles = Arc::clone(self.profiles());
        let wants = spawn_blocking({
            let layers = Arc::clone(&layers);
            move || profiles.wants(&layers)
        });
        let manifest = &pulled.manifest;
        if !wants.await.unwrap_or_default() || !self.asked.begin(manifest, Instant::now()) {
            return;
        }
        let asking = async {
            let _place = self.asked.places.acquire().await;
            let found = self.plane.attached_profile(&wanted.origins, manifest);
            found.await.map_err(|error| error.to_string())
        };
        let asked = timeout(TIME_MAX, asking).await;
        let look_ups = &self.profiles().counts().look_ups;
        let bytes = match asked.unwrap_or_else(|_| Err(format!("no answer in {TIME_MAX:?}"))) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                look_ups.absent.one();
                tracing::debug!(image = name, %manifest, "no profile is attached to it");
                return;
            }
            Err(error) => {
                look_ups.failed.one();
                tracing::debug!(image = name, %manifest, error,
                    "whether a profile is attached to it cannot be told");
                return;
            }
        };
        let (profiles, image) = (Arc::clone(self.profiles()), name.to_owned());
        let using = spawn_blocking(move || profiles.attached(&image, &layers, &bytes));
        if let Ok(Err(error)) = using.await {
            tracing::info!(image = name, %manifest, %error, "the profile that is attached to it is not used");
        }
    }
}

/// The layers of an image that can be loaded lazily, the lowest first, each once, as a profile names them.
fn layers(image: &Image) -> Vec<LayerReads> {
    let mut layers: Vec<LayerReads> = Vec::new();
    for ((_, layer), diff_id) in image.layers.iter().zip(&image.diff_ids) {
        let location = layer.annotations.get(annotation::INDEX);
        let location = location.and_then(|text| text.parse::<IndexLocation>().ok());
        let Some(index) = location.map(|location| location.digest) else {
            continue;
        };
        if layers.iter().all(|known| known.index != index) {
            layers.push(LayerReads {
                index,
                blob: layer.digest,
                diff_id: *diff_id,
                reads: Vec::new(),
            });
        }
    }
    layers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: an image is asked about once in a while, however often it is pulled, and what is remembered of
    /// that is bounded.
    #[test]
    fn an_answer_stands_for_a_while() {
        let asked = Asked::default();
        let (one, began) = (Digest::of(b"one"), Instant::now());
        assert!(asked.begin(&one, began));
        assert!(!asked.begin(&one, began + STANDS / 2));
        assert!(asked.begin(&one, began + STANDS));
        for number in 0..3 * ASKED_MAX {
            let other = Digest::of(&number.to_le_bytes());
            assert!(asked.begin(&other, began + STANDS));
            assert!(asked.manifests.lock().unwrap().len() <= ASKED_MAX);
        }
    }
}
