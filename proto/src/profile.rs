//! A profile: what a start of an image reads, in order, as a node keeps it and as it is handed on.
//!
//! ```text
//! {"version":1,"image":"r.example/app:1",
//!  "layers":[{"index":"sha256:…","blob":"sha256:…","diff_id":"sha256:…","reads":[[0,12],[153,13],…]},…]}
//! ```
//!
//! Layers stand in the image's order, the lowest first. A read is the microseconds since the read before
//! it in the list, and a row of the layer's chunk table. Nobody vouches for a profile: what it says
//! costs bytes at most, and every number of it has a limit.

mod form;

use std::collections::BTreeSet;

use crate::access::Access;
use crate::digest::Digest;

/// Version of the form. Fields are only ever added; `readable_since` says from which version on a build
/// can read it.
pub const VERSION: u32 = 1;

/// What a profile is called where an image has it as an artifact in its registry: the artifact's type, and
/// that of its only layer.
pub const MEDIA_TYPE: &str = "application/vnd.larder.profile.v1+json";

/// Layers of a profile: overlayfs takes no more lower directories (`OVL_MAX_STACK`), so no image has more.
pub const LAYERS_MAX: usize = 500;

/// Reads of all layers of a profile: of chunks of 256 KiB they are 32 GiB, of which no start waits for
/// every one. In memory they are 2 MiB.
pub const READS_MAX: usize = 128 << 10;

/// Length of a profile, bytes: [`READS_MAX`] reads, each of a day's microseconds and the largest row
/// (`[86400000000,4294967295],`), and the digests of [`LAYERS_MAX`] layers.
pub const PROFILE_BYTES_MAX: usize = 4 << 20;

/// Length of the image's name, bytes: references are shorter.
pub const IMAGE_BYTES_MAX: usize = 1024;

/// What a start of one image reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// A name of the image, for people; empty where nobody told one.
    pub image: String,
    /// Its layers, the lowest first, each once.
    pub layers: Vec<LayerReads>,
}

/// What a start reads of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerReads {
    /// SHA-256 of its stored index, which gives the rows of the chunk table their meaning.
    pub index: Digest,
    /// Digest of its blob.
    pub blob: Digest,
    /// SHA-256 of its tar.
    pub diff_id: Digest,
    /// First reads of chunks, in the order of their time.
    pub reads: Vec<Access>,
}

/// Bytes that are no profile this build can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// It is too long to be looked at.
    #[error("it has {0} bytes, and a profile has at most {PROFILE_BYTES_MAX}")]
    TooLong(usize),
    /// It is not JSON, or not of this form.
    #[error("it is not of a profile's form: {0}")]
    Form(String),
    /// A newer build wrote it.
    #[error("a later build wrote it, in version {0}; this build reads {VERSION}: record it again")]
    Version(u32),
    /// It names nothing that could be fetched.
    #[error("it has no layers")]
    Empty,
    /// No image has so many.
    #[error("it has {0} layers, and an image has at most {LAYERS_MAX}")]
    TooManyLayers(usize),
    /// A layer is there more than once.
    #[error("it has the layer with index {0} twice")]
    Twice(Digest),
    /// No start reads so much.
    #[error("it has {0} reads, and a profile has at most {READS_MAX}")]
    TooManyReads(usize),
    /// The name is none.
    #[error("the image's name is longer than {IMAGE_BYTES_MAX} bytes, or has control characters")]
    Name,
}

impl Profile {
    /// Reads the form that [`Profile::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProfileError> {
        if bytes.len() > PROFILE_BYTES_MAX {
            return Err(ProfileError::TooLong(bytes.len()));
        }
        let profile = form::read(bytes)?;
        profile.check()?;
        Ok(profile)
    }

    /// The form in which it is kept and handed on.
    pub fn encode(&self) -> Vec<u8> {
        form::write(self)
    }

    /// Names the image that it is of: the SHA-256 of the names of its layers.
    pub fn key(&self) -> Digest {
        key(self.layers.iter().map(|layer| &layer.index))
    }

    /// The layer with this index.
    pub fn layer(&self, index: &Digest) -> Option<&LayerReads> {
        self.layers.iter().find(|layer| layer.index == *index)
    }

    /// How many reads it has of all layers.
    pub fn reads(&self) -> usize {
        self.layers.iter().map(|layer| layer.reads.len()).sum()
    }

    fn check(&self) -> Result<(), ProfileError> {
        match self.layers.len() {
            0 => return Err(ProfileError::Empty),
            1..=LAYERS_MAX => {}
            many => return Err(ProfileError::TooManyLayers(many)),
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.layers.iter().find(|layer| !seen.insert(layer.index)) {
            return Err(ProfileError::Twice(twice.index));
        }
        let reads = self.reads();
        if reads > READS_MAX {
            return Err(ProfileError::TooManyReads(reads));
        }
        if self.image.len() > IMAGE_BYTES_MAX || self.image.contains(char::is_control) {
            return Err(ProfileError::Name);
        }
        Ok(())
    }
}

/// Names the image that has these layers, by their indexes, the lowest first.
pub fn key<'a>(indexes: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let names: Vec<_> = indexes.into_iter().map(ToString::to_string).collect();
    Digest::of(names.join("\n").as_bytes())
}

#[cfg(test)]
mod tests;
