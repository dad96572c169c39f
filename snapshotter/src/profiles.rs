//! The node learns: what a first start read is fetched before the next one reads it.
//!
//! ```text
//! a layer is added        ─▶ a kept profile has it ─▶ replay: streams before the container starts
//! a container is prepared ─▶ record what it reads, until that settles
//!                              no profile yet ─▶ keep one
//!                              a profile      ─▶ compare: hit rate; keep the new one if they differ much
//! ```
//!
//! A recording hears what the kernel asks for. Of a layer that was read before, the kernel has much in its
//! cache: only the first start on it can be compared, and a layer that other images' starts had read
//! is completed from their profiles.

mod attached;
mod compare;
mod kept;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use larder_fuse::{Count, Recorded, Recording, Settling};
use larder_proto::digest::Digest;
use larder_proto::profile::{LAYERS_MAX, Profile, ProfileError, key};
use tokio::task::spawn_blocking;

use crate::plane::{Plane, Wanted};
pub use attached::{LookUps, Unfit};
pub use compare::Start;
pub use kept::Kept;
use kept::KeptProfiles;

/// The directory of profiles below the root.
const DIRECTORY: &str = "profiles";

/// Starts that are recorded at once; what starts beside them is recorded another time. Each takes a bit per
/// chunk of its layers, and 16 bytes per chunk that is read, 2 MiB at most.
const RECORDINGS_MAX: usize = 16;

/// A profile that was not kept, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum ProfilesError {
    /// There is none.
    #[error("no profile of {0} is kept on this node; `profile list` shows those that are")]
    Missing(String),
    /// What was handed in is none.
    #[error("this is no profile: {0}")]
    Bad(#[from] ProfileError),
    /// The disk refused.
    #[error("keep or remove a profile in {directory}: {error}")]
    Io {
        /// Where they are.
        directory: String,
        /// What the system said.
        error: std::io::Error,
    },
}

/// What came of starts since the process began.
#[derive(Debug, Default)]
pub struct StartCounts {
    /// Starts without a profile that were recorded.
    pub recorded: Count,
    /// Starts that their profile fitted.
    pub matched: Count,
    /// Starts whose profile was replaced by what they read.
    pub replaced: Count,
    /// Chunks of profiles that were read.
    pub hit: Count,
    /// Chunks of profiles that were not.
    pub idle: Count,
    /// Chunks that were read and were in no profile.
    pub missed: Count,
    /// Looks for profiles that are attached to images.
    pub look_ups: LookUps,
}

#[derive(Debug, Default)]
struct State {
    /// Images whose start is being recorded.
    recorded: BTreeSet<Digest>,
    /// Layers of which a start has read: the kernel may have that in its cache.
    warm: HashSet<Digest>,
    /// Layers of which everything was asked for that a start is known to read.
    asked: HashSet<Digest>,
    /// The latest start of an image that could be compared.
    latest: BTreeMap<Digest, Start>,
}

/// The profiles of a node, and the starts that are recorded.
#[derive(Debug)]
pub struct Profiles {
    plane: Arc<dyn Plane>,
    kept: KeptProfiles,
    is_enabled: bool,
    settling: Settling,
    state: Mutex<State>,
    counts: StartCounts,
}

/// The start of an image.
struct Starting {
    key: Digest,
    image: String,
    /// Layers that no start had read before.
    cold: BTreeSet<Digest>,
    recording: Recording,
}

impl Profiles {
    /// Those below `root`. Unless enabled, nothing is recorded or fetched by them.
    pub fn new(plane: Arc<dyn Plane>, root: &Path, is_enabled: bool) -> Arc<Self> {
        Arc::new(Self {
            plane,
            kept: KeptProfiles::at(root.join(DIRECTORY)),
            is_enabled,
            settling: Settling::default(),
            state: Mutex::default(),
            counts: StartCounts::default(),
        })
    }

    /// What came of starts.
    pub fn counts(&self) -> &StartCounts {
        &self.counts
    }

    /// A layer of `image` was added: fetches what is known to be read of it, or else what the image itself
    /// lists, once. Returns at once.
    pub fn layer_added(self: &Arc<Self>, layer: &Wanted, image: &str) {
        if !self.is_enabled && layer.start.is_empty() {
            return;
        }
        let (profiles, image) = (Arc::clone(self), image.to_owned());
        let (index, listed) = (layer.index.digest, layer.start.clone());
        spawn_blocking(move || {
            let find = || profiles.kept.with_layer(&index, &image);
            let profile = profiles.is_enabled.then(find).flatten();
            let learnt = profile.and_then(|profile| profile.layer(&index).cloned());
            let is_learnt = learnt.is_some();
            let reads = learnt.map_or(listed, |layer| layer.reads);
            // Not again when the layer that was added beside its siblings is prepared itself.
            if reads.is_empty() || !profiles.lock().asked.insert(index) {
                return;
            }
            let chunks = reads.len();
            tracing::info!(%index, image, chunks, is_learnt, "fetching what a start is known to read");
            profiles.plane.replay(&index, &reads);
        });
    }

    /// Something is about to run in an image with these layers, the lowest first. Returns at once, and
    /// hears every read from now on.
    pub fn starting(self: &Arc<Self>, image: &str, layers: &[Digest]) {
        if !self.is_enabled || layers.is_empty() {
            return;
        }
        let mut seen = BTreeSet::new();
        let once = layers.iter().copied().filter(|layer| seen.insert(*layer));
        let layers: Vec<Digest> = once.take(LAYERS_MAX).collect();
        let key = key(&layers);
        let cold = {
            let mut state = self.lock();
            let cold: BTreeSet<_> = layers
                .iter()
                .copied()
                .filter(|layer| state.warm.insert(*layer))
                .collect();
            let is_free = state.recorded.len() < RECORDINGS_MAX;
            if cold.is_empty() || !is_free || !state.recorded.insert(key) {
                return;
            }
            cold
        };
        let Some(recording) = self.plane.record(&layers) else {
            self.lock().recorded.remove(&key);
            return;
        };
        let starting = Starting {
            key,
            image: image.to_owned(),
            cold,
            recording,
        };
        tokio::spawn(Arc::clone(self).learn(starting));
    }

    /// The kernel may have read of these layers what a daemon before answered.
    pub fn were_read(&self, layers: impl IntoIterator<Item = Digest>) {
        self.lock().warm.extend(layers);
    }

    /// A layer was freed; one of the same index is a new one.
    pub fn freed(&self, layer: &Digest) {
        let mut state = self.lock();
        state.warm.remove(layer);
        state.asked.remove(layer);
    }

    async fn learn(self: Arc<Self>, starting: Starting) {
        let Starting {
            key,
            image,
            cold,
            recording,
        } = starting;
        let profiles = Arc::clone(&self);
        let known = spawn_blocking(move || profiles.kept.get(&key));
        let known = known.await.unwrap_or_default();
        // Layers that came with other images were not asked for when they were added.
        for layer in known.iter().flat_map(|profile| &profile.layers) {
            self.plane.replay(&layer.index, &layer.reads);
        }
        let began = Instant::now();
        recording.settled(&self.settling).await;
        let recorded = recording.finish();
        tracing::debug!(image, after = ?began.elapsed(), "a start is over");
        let profiles = Arc::clone(&self);
        let judged = spawn_blocking(move || profiles.judge(key, &image, &cold, known, recorded));
        drop(judged.await);
        self.lock().recorded.remove(&key);
    }

    /// Keeps what a start read, unless its profile said so before.
    fn judge(
        &self,
        key: Digest,
        image: &str,
        cold: &BTreeSet<Digest>,
        known: Option<Profile>,
        recorded: Vec<Recorded>,
    ) {
        let chunks: usize = recorded.iter().map(|one| one.layer.reads.len()).sum();
        if chunks == 0 {
            // Prepared and never run.
            return;
        }
        let is_whole = |one: &Recorded| one.is_whole && cold.contains(&one.layer.index);
        let counts = &self.counts;
        if let Some(known) = known {
            let whole = recorded.iter().filter(|one| is_whole(one));
            let start = Start::compare(&known, whole.map(|one| &one.layer));
            let Start {
                planned,
                read,
                missed,
            } = start;
            if start == Start::default() {
                // The kernel had all of it, or reads it itself.
                return;
            }
            counts.hit.add(read);
            counts.idle.add(planned - read);
            counts.missed.add(missed);
            self.remember(key, start);
            let (hits, is_far_off) = (start.hit_percent(), start.is_far_off());
            let (count, told) = if is_far_off {
                let told = "a start read other things than its profile says, which is replaced";
                (&counts.replaced, told)
            } else {
                (&counts.matched, "a start went by its profile")
            };
            count.one();
            tracing::info!(image, planned, read, missed, hits, "{told}");
            if !is_far_off {
                return;
            }
        } else {
            counts.recorded.one();
            tracing::info!(
                image,
                chunks,
                "what a start read is kept as the image's profile"
            );
        }
        let recorded = recorded.into_iter().map(|one| Recorded {
            is_whole: is_whole(&one),
            ..one
        });
        let profile = compare::profile(image, recorded.collect(), |index| {
            let before = self.kept.with_layer(index, image)?;
            before.layer(index).cloned()
        });
        if self.plane.caching_stopped().is_some() {
            tracing::info!(image, "its profile is not kept: the disk has no room");
        } else if let Err(error) = self.kept.put(&profile) {
            tracing::warn!(image, %error, "the profile of an image cannot be kept");
        }
    }

    /// The latest start of an image; of images whose profile is gone, none.
    fn remember(&self, key: Digest, start: Start) {
        let kept: BTreeSet<_> = self.kept.list().into_iter().map(|kept| kept.key).collect();
        let mut state = self.lock();
        state.latest.retain(|known, _| kept.contains(known));
        state.latest.insert(key, start);
    }

    /// Those that are kept, the one used last first, with their latest starts. Waits for the disk.
    pub fn list(&self) -> Vec<(Kept, Option<Start>)> {
        let all = self.kept.list();
        let state = self.lock();
        let with_start = all.into_iter().map(|kept| {
            let start = state.latest.get(&kept.key).copied();
            (kept, start)
        });
        with_start.collect()
    }

    /// The profile of the image with this name or key, or with layers of just these blobs. Waits for the
    /// disk.
    pub fn export(&self, image: &str, blobs: &[Digest]) -> Result<Profile, ProfilesError> {
        let key = self.kept.find(image, blobs);
        let found = key.and_then(|key| self.kept.get(&key));
        found.ok_or_else(|| ProfilesError::Missing(image.to_owned()))
    }

    /// Keeps a profile that was made elsewhere, and uses it from the next layer on. Waits for the disk.
    pub fn import(&self, bytes: &[u8]) -> Result<Kept, ProfilesError> {
        let profile = Profile::decode(bytes)?;
        let kept = self.kept.put(&profile).map_err(|error| self.io(error))?;
        self.lock().latest.remove(&kept.key);
        tracing::info!(
            image = kept.image,
            chunks = kept.reads,
            "a profile was imported"
        );
        Ok(kept)
    }

    /// Forgets the profile of an image, named as for [`Profiles::export`]. Waits for the disk.
    pub fn remove(&self, image: &str, blobs: &[Digest]) -> Result<Digest, ProfilesError> {
        let missing = || ProfilesError::Missing(image.to_owned());
        let key = self.kept.find(image, blobs).ok_or_else(missing)?;
        self.kept.remove(&key).map_err(|error| self.io(error))?;
        self.lock().latest.remove(&key);
        Ok(key)
    }

    /// Bytes of the kept profiles. Waits for the disk, the first time.
    pub fn bytes(&self) -> u64 {
        self.kept.list().iter().map(|kept| kept.bytes).sum()
    }

    fn io(&self, error: std::io::Error) -> ProfilesError {
        let directory = self.kept.directory().display().to_string();
        ProfilesError::Io { directory, error }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
