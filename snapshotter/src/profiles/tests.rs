//! What becomes of starts, on a data plane that only remembers.

use larder_proto::access::Access;
use larder_proto::profile::LayerReads;

use super::*;
use crate::lazy::tests::FakePlane;

const IMAGE: &str = "r.test/app:1";

pub(super) fn layer(name: &str, chunks: &[u32]) -> LayerReads {
    let at = |(micros, chunk): (usize, &u32)| Access {
        micros: micros as u64,
        chunk: *chunk,
    };
    LayerReads {
        index: Digest::of(name.as_bytes()),
        blob: Digest::of(b"blob"),
        diff_id: Digest::of(b"tar"),
        reads: chunks.iter().enumerate().map(at).collect(),
    }
}

struct World {
    profiles: Arc<Profiles>,
    _scratch: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let plane = Arc::new(FakePlane::default());
        Self {
            profiles: Profiles::new(plane, scratch.path(), true),
            _scratch: scratch,
        }
    }

    /// A start that read these chunks; of the layers in `warm`, other starts had read before.
    fn started(&self, layers: &[LayerReads], warm: &[&str]) {
        let key = key(layers.iter().map(|layer| &layer.index));
        let is_warm = |one: &Digest| warm.iter().any(|name| Digest::of(name.as_bytes()) == *one);
        let cold = layers.iter().map(|layer| layer.index);
        let cold = cold.filter(|one| !is_warm(one)).collect();
        let recorded = layers.iter().map(|layer| Recorded {
            layer: layer.clone(),
            chunks: 100,
            is_whole: true,
        });
        let known = self.profiles.kept.get(&key);
        self.profiles
            .judge(key, IMAGE, &cold, known, recorded.collect());
    }

    /// The chunks that are kept of the image's layers.
    fn kept(&self) -> Vec<Vec<u32>> {
        let Ok(profile) = self.profiles.export(IMAGE, &[]) else {
            return Vec::new();
        };
        let layers = profile.layers.iter();
        let chunks = layers.map(|layer| layer.reads.iter().map(|read| read.chunk).collect());
        chunks.collect()
    }

    fn outcomes(&self) -> [u64; 3] {
        let counts = self.profiles.counts();
        [&counts.recorded, &counts.matched, &counts.replaced].map(Count::get)
    }
}

/// Promise: a first start is kept; one that goes by it changes nothing; one that reads other things is kept
/// instead; what never ran says nothing.
#[test]
fn a_profile_follows_its_starts() {
    let world = World::new();
    world.started(&[layer("a", &[])], &[]);
    assert_eq!(world.kept(), Vec::<Vec<u32>>::new());
    world.started(&[layer("a", &[3, 1, 2])], &[]);
    assert_eq!(world.kept(), [[3, 1, 2]]);
    world.started(&[layer("a", &[1, 2, 9])], &[]);
    assert_eq!(world.kept(), [[3, 1, 2]]);
    let [(_, Some(start))] = &world.profiles.list()[..] else {
        panic!("not one start");
    };
    assert_eq!((start.planned, start.read, start.missed), (3, 2, 1));
    world.started(&[layer("a", &[])], &[]);
    assert_eq!(world.outcomes(), [1, 1, 0]);
    world.started(&[layer("a", &[7, 8, 1])], &[]);
    assert_eq!(world.kept(), [[7, 8, 1]]);
    assert_eq!(world.outcomes(), [1, 1, 1]);
}

/// Promise: what another image's start had read of a shared layer is taken from its profile, and a start is
/// not compared by that layer: the kernel had it in its cache.
#[test]
fn a_shared_layer_is_completed_and_not_compared() {
    let world = World::new();
    world.started(&[layer("base", &[1, 2])], &[]);
    world.started(&[layer("base", &[5]), layer("own", &[4])], &["base"]);
    assert_eq!(world.kept(), [vec![5, 1, 2], vec![4]]);
    world.started(&[layer("base", &[]), layer("own", &[4])], &["base"]);
    assert_eq!(world.outcomes(), [2, 1, 0]);
    // Its only other layer is read by the kernel itself: nothing can be said.
    world.started(&[layer("base", &[1])], &["base"]);
    assert_eq!(world.outcomes(), [2, 1, 0]);
}

/// Promise: a layer counts as read once something started on it, until it is freed; a start that nobody can
/// record is not waited for.
#[test]
fn a_layer_is_new_until_something_started_on_it() {
    let world = World::new();
    let layers = [Digest::of(b"a"), Digest::of(b"a"), Digest::of(b"b")];
    world.profiles.starting(IMAGE, &layers);
    assert!(world.profiles.lock().recorded.is_empty());
    assert_eq!(world.profiles.lock().warm.len(), 2);
    world.profiles.freed(&layers[0]);
    world.profiles.were_read([layers[2]]);
    assert_eq!(world.profiles.lock().warm.len(), 1);
}
