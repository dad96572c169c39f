//! A profile that was attached to an image by whoever may push to its repository.

use std::collections::HashMap;

use larder_proto::profile::{LAYERS_MAX, LayerReads, Profile, ProfileError, key};

use super::Profiles;

/// An attached profile that is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is none.
    #[error("it is no profile: {0}")]
    Bad(#[from] ProfileError),
    /// It names what the image has not got.
    #[error("it is of another image: there is no layer with index {0} in this one")]
    Foreign(larder_proto::digest::Digest),
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
        let profile = of_image(image, layers, Profile::decode(bytes)?)?;
        if !self.wants(&profile.layers) {
            return Ok(());
        }
        let chunks = profile.reads();
        tracing::info!(
            image,
            chunks,
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
