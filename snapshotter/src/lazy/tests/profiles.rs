//! What is known of a start, when a layer comes.

use std::sync::Arc;
use std::time::Duration;

use larder_proto::access::Access;
use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_proto::profile::{LayerReads, Profile};

use super::plane::FakePlane;
use super::world::{World, labels, location};
use crate::plane::Wanted;
use crate::snapshots::Labels;

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

/// Promise: what the image itself lists is asked for where no profile is kept; a list that cannot be read counts
/// as none, and the layer is lazy all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_lists_is_asked_for_unless_a_profile_is_kept() {
    let world = World::new(FakePlane::default()).await;
    let profiles = world.snapshots.lazy().unwrap().profiles();
    profiles.import(&profile("i1")).unwrap();
    let list = |list: &str, mut labels: Labels| {
        labels.insert(annotation::START.to_owned(), list.to_owned());
        labels
    };
    // Chunks 7, 8, 2 and 3.
    let sound = "1:AA4BHg0A1gMAAA";
    for (key, tar, index, text) in [
        ("ns/1/a", "c1", "i1", sound),
        ("ns/2/b", "c2", "i2", "1:AAAA="),
        ("ns/3/c", "c3", "i3", sound),
    ] {
        let labels = list(text, labels(tar, index));
        assert!(world.prepare(key, "", labels).await, "{tar}");
    }
    let expected = [("i1", vec![4, 2]), ("i3", vec![7, 8, 2, 3])];
    let expected = expected.map(|(index, chunks)| (location(index).digest, chunks));
    // Once, also where the layer is added again.
    let again = Wanted {
        blob: Digest::of(b"blob"),
        index: location("i3"),
        origins: Vec::new(),
        namespace: String::new(),
        start: vec![Access {
            micros: 0,
            chunk: 9,
        }],
    };
    world
        .settle(|| world.plane.replayed.lock().unwrap().len() == 2)
        .await;
    profiles.layer_added(&again, "");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut asked = world.plane.replayed.lock().unwrap().clone();
    asked.sort_by_key(|(_, chunks)| chunks.clone());
    assert_eq!(asked, expected);
}
