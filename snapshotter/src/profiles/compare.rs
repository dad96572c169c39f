//! What a start read against what its profile said.

use std::collections::BTreeSet;

use larder_fuse::Recorded;
use larder_proto::access::Access;
use larder_proto::digest::Digest;
use larder_proto::profile::{LayerReads, Profile, READS_MAX};

/// How a start and its profile went together, in chunks of the layers that can be compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Start {
    /// In the profile.
    pub planned: u64,
    /// Of those, read by the start.
    pub read: u64,
    /// Read by the start and not in the profile.
    pub missed: u64,
}

impl Start {
    /// Compares the reads of some layers with what `profile` says of them.
    pub(super) fn compare<'a>(
        profile: &Profile,
        layers: impl IntoIterator<Item = &'a LayerReads>,
    ) -> Self {
        let mut start = Self::default();
        for layer in layers {
            let planned = profile.layer(&layer.index).map(chunks).unwrap_or_default();
            let read = chunks(layer);
            start.planned += planned.len() as u64;
            start.read += planned.intersection(&read).count() as u64;
            start.missed += read.difference(&planned).count() as u64;
        }
        start
    }

    /// Percent of the profile that were read.
    pub fn hit_percent(&self) -> u64 {
        (self.read * 100).checked_div(self.planned).unwrap_or(0)
    }

    /// Whether the profile is of another start than this one: less than half of it was read, or of what was
    /// read, less than half was in it.
    pub(super) const fn is_far_off(&self) -> bool {
        self.read * 2 < self.planned || self.missed > self.read
    }
}

/// The profile of a start, of what was recorded of its layers. Where another image's start had read a layer
/// before, the kernel has that in its cache, and what `before` says of the layer is taken as well.
pub(super) fn profile(
    image: &str,
    recorded: Vec<Recorded>,
    before: impl Fn(&Digest) -> Option<LayerReads>,
) -> Profile {
    let mut room = READS_MAX;
    let mut layers = Vec::new();
    for recorded in recorded {
        let mut layer = recorded.layer;
        if !recorded.is_whole
            && let Some(before) = before(&layer.index)
        {
            let read = chunks(&layer);
            // It may be wrong, and is not compared.
            let is_more =
                |one: &Access| (one.chunk as usize) < recorded.chunks && !read.contains(&one.chunk);
            layer.reads.extend(before.reads.into_iter().filter(is_more));
            layer.reads.sort_by_key(|one| one.micros);
        }
        layer.reads.truncate(room);
        room -= layer.reads.len();
        layers.push(layer);
    }
    Profile {
        image: image.to_owned(),
        layers,
    }
}

fn chunks(layer: &LayerReads) -> BTreeSet<u32> {
    layer.reads.iter().map(|read| read.chunk).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::layer;
    use super::*;

    fn of(layers: Vec<LayerReads>) -> Profile {
        let image = "r.test/app:1".to_owned();
        Profile { image, layers }
    }

    /// Promise: a start is compared by the layers that can be, chunk by chunk, each once.
    #[test]
    fn a_start_is_compared_with_its_profile() {
        let planned = of(vec![layer("a", &[1, 2, 3, 4]), layer("b", &[7, 8])]);
        let compare = |layers: &[LayerReads]| Start::compare(&planned, layers);
        let start = compare(&[layer("a", &[4, 2, 9, 9]), layer("new", &[5])]);
        let expected = Start {
            planned: 4,
            read: 2,
            missed: 2,
        };
        assert_eq!(start, expected);
        assert_eq!(start.hit_percent(), 50);
        assert!(!start.is_far_off());
        assert!(compare(&[layer("a", &[1])]).is_far_off(), "a quarter");
        assert!(
            compare(&[layer("b", &[7, 8, 1, 2, 3])]).is_far_off(),
            "far more"
        );
        assert_eq!(compare(&[]).hit_percent(), 0);
    }

    /// Promise: what the kernel had cached of a shared layer is taken from what was learnt of it before, but for
    /// chunks that the layer has not got.
    #[test]
    fn a_layer_that_was_read_before_is_completed_by_its_earlier_profile() {
        let earlier = |_: &Digest| Some(layer("a", &[5, 6, 10]));
        let kept = |is_whole| {
            let recorded = Recorded {
                layer: layer("a", &[6, 1]),
                chunks: 10,
                is_whole,
            };
            let profile = profile("x", vec![recorded], earlier);
            let reads = profile.layers[0].reads.iter();
            reads.map(|one| one.chunk).collect::<Vec<_>>()
        };
        assert_eq!(kept(true), [6, 1]);
        assert_eq!(kept(false), [6, 5, 1]);
    }
}
