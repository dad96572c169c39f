//! What is known of a start, when a layer comes.

use std::sync::Arc;
use std::time::Duration;

use larder_proto::access::Access;
use larder_proto::annotation::{self, StartList};
use larder_proto::digest::Digest;
use larder_proto::profile::{LayerReads, Profile};

use super::plane::FakePlane;
use super::world::{World, labels, location};
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
        // What is not asked for is waited for in vain.
        for _ in 0..if is_asked_for { 3000 } else { 10 } {
            if !asked().is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
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
    for _ in 0..3000 {
        let mut asked = world.plane.replayed.lock().unwrap().clone();
        asked.sort_by_key(|(_, chunks)| chunks.clone());
        if asked == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{:?}", world.plane.replayed.lock().unwrap());
}

/// Promise: what an image lists is fetched also where nothing is to be learnt.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_lists_is_fetched_without_profiles_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::configured(dir, Arc::new(FakePlane::default()), "profiles = false").await;
    let listed = [5, 6, 1].map(|chunk| Access { micros: 0, chunk });
    let mut with_list = labels("c1", "i1");
    with_list.insert(
        annotation::START.to_owned(),
        StartList::of(&listed).to_string(),
    );
    assert!(world.prepare("ns/1/a", "", with_list).await);
    let asked = || world.plane.replayed.lock().unwrap().clone();
    for _ in 0..3000 {
        if !asked().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(asked(), [(location("i1").digest, vec![5, 6, 1])]);
}
