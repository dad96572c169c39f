//! A profile that was attached to an image by whoever may push to its repository.

use std::collections::HashMap;

use larder_proto::profile::{LAYERS_MAX, LayerReads, Profile, ProfileError, key};

use super::Profiles;
use larder_fuse::Count;
use larder_proto::access::Access;
use larder_proto::digest::Digest;

/// Chunks that an attached profile may have fetched: of chunks of 256 KiB they are 4 GiB, more than the largest
/// images read to their first answer. Who may push to a repository can have a node fetch so much of an image
/// ahead of its time, and keep 0.6 MB for it.
const READS_MAX: usize = 16 << 10;

/// What came of looking for attached profiles.
#[derive(Debug, Default)]
pub struct LookUps {
    /// There was one, and it is used.
    pub used: Count,
    /// There was none.
    pub absent: Count,
    /// There was one of no use.
    pub unfit: Count,
    /// The registry did not tell.
    pub failed: Count,
}

/// An attached profile that is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is none.
    #[error("it is no profile: {0}")]
    Bad(#[from] ProfileError),
    /// It names what the image has not got.
    #[error("it is of another image: there is no layer with index {0} in this one")]
    Foreign(Digest),
    /// It names no chunk.
    #[error("it says of no chunk that a start reads it")]
    Idle,
}

impl Profiles {
    /// Whether a profile of an image with these layers would be used: nothing is kept of it. Waits for the disk.
    pub fn wants(&self, layers: &[LayerReads]) -> bool {
        let indexes = layers.iter().take(LAYERS_MAX).map(|layer| &layer.index);
        self.is_enabled
            && !layers.is_empty()
            && self.plane.caching_stopped().is_none()
            && !self.kept.has(&key(indexes))
    }

    /// Keeps the profile in `bytes` for the image that has these layers, and fetches what it names of those
    /// that are here; of the others it is fetched when they come. What was recorded meanwhile goes before.
    /// Waits for the disk.
    pub fn attached(&self, image: &str, layers: &[LayerReads], bytes: &[u8]) -> Result<(), Unfit> {
        let look_ups = &self.counts.look_ups;
        let decoded = Profile::decode(bytes).map_err(Unfit::from);
        let profile = decoded.and_then(|profile| of_image(image, layers, profile));
        let mut profile = profile.inspect_err(|_| look_ups.unfit.one())?;
        let left_out = trim(&mut profile.layers, READS_MAX);
        if !self.wants(&profile.layers) {
            return Ok(());
        }
        look_ups.used.one();
        let chunks = profile.reads();
        tracing::info!(
            image,
            chunks,
            left_out,
            "a profile that is attached to the image is used"
        );
        if let Err(error) = self.kept.put(&profile) {
            tracing::warn!(image, %error, "the profile of an image cannot be kept");
        }
        for layer in &profile.layers {
            // One that is just being added finds the kept profile itself.
            if self.plane.diff_id(&layer.index).is_some() {
                self.lock().asked.insert(layer.index);
                self.plane.replay(&layer.index, &layer.reads);
            }
        }
        Ok(())
    }
}

/// What `profile` says of the layers of an image, under the name that the image has here.
fn of_image(image: &str, layers: &[LayerReads], profile: Profile) -> Result<Profile, Unfit> {
    let mut reads: HashMap<_, _> = profile
        .layers
        .into_iter()
        .map(|layer| (layer.index, layer.reads))
        .collect();
    let layers = layers.iter().take(LAYERS_MAX).map(|layer| LayerReads {
        reads: reads.remove(&layer.index).unwrap_or_default(),
        ..layer.clone()
    });
    let layers: Vec<LayerReads> = layers.collect();
    if let Some(foreign) = reads.into_keys().next() {
        return Err(Unfit::Foreign(foreign));
    }
    let profile = Profile {
        image: image.to_owned(),
        layers,
    };
    if profile.reads() == 0 {
        return Err(Unfit::Idle);
    }
    Ok(profile)
}

/// Leaves the first `most` reads of all layers together; how many others there were.
fn trim(layers: &mut [LayerReads], most: usize) -> usize {
    let all = layers.iter().enumerate().flat_map(|(place, layer)| {
        let reads = layer.reads.iter();
        reads.map(move |read| (read.micros, place, read.chunk))
    });
    let mut all: Vec<_> = all.collect();
    let left_out = all.len().saturating_sub(most);
    if left_out == 0 {
        return 0;
    }
    all.sort_unstable();
    all.truncate(most);
    for layer in layers.iter_mut() {
        layer.reads.clear();
    }
    for (micros, place, chunk) in all {
        layers[place].reads.push(Access { micros, chunk });
    }
    left_out
}

#[cfg(test)]
mod tests {
    use super::super::tests::layer;
    use super::*;

    /// Promise: of too many reads the earliest stay, of all layers together, in their order.
    #[test]
    fn of_too_many_reads_the_earliest_stay() {
        let layers = || [layer("a", &[9, 3, 7]), layer("b", &[5, 6])];
        for (most, left_out, kept) in [
            (5, 0, [vec![9, 3, 7], vec![5, 6]]),
            (4, 1, [vec![9, 3], vec![5, 6]]),
            (1, 4, [vec![9], vec![]]),
        ] {
            let mut trimmed = layers();
            assert_eq!(trim(&mut trimmed, most), left_out);
            let chunks = |layer: &LayerReads| layer.reads.iter().map(|one| one.chunk).collect();
            let chunks: Vec<Vec<u32>> = trimmed.iter().map(chunks).collect();
            assert_eq!(chunks, kept, "{most}");
        }
    }
}
