//! What is known of a start, when a layer comes.

use std::sync::Arc;
use std::time::Duration;

use larder_proto::access::Access;
use larder_proto::annotation::{START, StartList};
use larder_proto::digest::Digest;
use larder_proto::profile::{LayerReads, Profile};

use super::plane::FakePlane;
use super::world::{World, labels, location};

fn profile(index: &str) -> Vec<u8> {
    let reads = [(0, 4), (7, 2)].map(|(micros, chunk)| Access { micros, chunk });
    let layer = LayerReads {
        index: location(index).digest,
        blob: Digest::of(b"blob"),
        diff_id: Digest::of(b"tar"),
        reads: reads.to_vec(),
    };
    let image = "r.test/app:1".to_owned();
    let layers = vec![layer];
    Profile { image, layers }.encode()
}

/// Promise: what a start is known to read is asked for when the layer is added; nothing else is, and nothing
/// without `profiles`.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_to_be_read_is_asked_for_when_the_layer_is_added() {
    for (more, is_asked_for) in [("", true), ("profiles = false", false)] {
        let dir = tempfile::tempdir().unwrap();
        let world = World::configured(dir, Arc::new(FakePlane::default()), more).await;
        let profiles = world.snapshots.lazy().unwrap().profiles();
        profiles.import(&profile("i1")).unwrap();
        assert!(world.prepare("ns/1/a", "", labels("c1", "i1")).await);
        assert!(world.prepare("ns/2/b", "", labels("c2", "i2")).await);
        let asked = || world.plane.replayed.lock().unwrap().clone();
        for _ in 0..100 {
            if !asked().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(if is_asked_for { 20 } else { 2 })).await;
        }
        let expected = (location("i1").digest, vec![4, 2]);
        let expected: Vec<_> = is_asked_for.then_some(expected).into_iter().collect();
        assert_eq!(asked(), expected, "{more}");
    }
}

/// Promise: where nothing was learnt of a layer, what its image lists is fetched, also without `profiles`; a
/// list that cannot be read keeps nothing from being lazy.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_image_lists_is_fetched_where_nothing_was_learnt() {
    for more in ["", "profiles = false"] {
        let dir = tempfile::tempdir().unwrap();
        let world = World::configured(dir, Arc::new(FakePlane::default()), more).await;
        let listed = [5, 6, 1].map(|chunk| Access { micros: 0, chunk });
        let mut with_list = labels("c1", "i1");
        with_list.insert(START.to_owned(), StartList::of(&listed).to_string());
        assert!(world.prepare("ns/1/a", "", with_list).await);
        let mut broken = labels("c2", "i2");
        broken.insert(START.to_owned(), "not a list".to_owned());
        assert!(world.prepare("ns/2/b", "", broken).await);
        let asked = || world.plane.replayed.lock().unwrap().clone();
        for _ in 0..100 {
            if !asked().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(asked(), [(location("i1").digest, vec![5, 6, 1])], "{more}");
    }
}
