//! Layers are used where their image's config puts them, and nowhere else.

use std::sync::atomic::Ordering;

use super::plane::FakePlane;
use super::world::{World, chain, labels, layer, location, plain};
use crate::plane::{Plane, Wanted};
use crate::snapshots::Labels;
use crate::store::{Content, LayerFacts, Owner, REF_LABEL};

/// Promise: what containerd itself unpacked is shared with every namespace.
#[tokio::test(flavor = "multi_thread")]
async fn an_unpacked_layer_serves_a_second_namespace_at_once() {
    let world = World::new(FakePlane::default()).await;
    assert!(!world.prepare("a/1/x", "", plain("c1")).await);
    let commit =
        world
            .snapshots
            .commit("a/2/c1".into(), "a/1/x".into(), plain("c1"), String::new());
    commit.await.unwrap();
    assert!(world.prepare("b/1/x", "", plain("c1")).await);
    assert_eq!(world.adoptable("c1", ""), ["a/2/c1"]);
}

/// What is proved of a layer is proved of the tar its index names: under the chain of another tar, as
/// a lying config has it, the index is not used, however honest it is.
#[tokio::test(flavor = "multi_thread")]
async fn an_honest_index_under_the_chain_of_another_tar_is_not_used() {
    let world = World::new(FakePlane::default()).await;
    world.plane.proven.store(true, Ordering::Relaxed);
    let under = |tars: &str, mut labels: Labels| {
        labels.insert(REF_LABEL.to_owned(), chain(tars));
        labels
    };
    let foreign = under("harmless", labels("c1", "i1"));
    assert!(!world.prepare("n/1/x", "", foreign.clone()).await);
    world.commit("n/2/x", "n/1/x", foreign).await;
    let told = world.eager();
    for part in [layer("c1").to_string(), chain("harmless")] {
        assert!(told[0].1.contains(&part), "{told:?}");
    }
    // The right tar, on the wrong parent.
    assert!(world.prepare("n/3/x", "", labels("c1", "i1")).await);
    let base = world.adoptable("c1", "").remove(0);
    let foreign = under("harmless/c2", labels("c1/c2", "i2"));
    assert!(!world.prepare("n/4/x", &base, foreign).await);
    assert!(!world.prepare("n/5/x", "", labels("c1/c2", "i2")).await);
    assert!(world.prepare("n/6/x", &base, labels("c1/c2", "i2")).await);
    assert_eq!(world.mounted(), 2);
}

/// A layer may lie on one that was unpacked without a label; on one of which nothing is known, it is
/// unpacked, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_lazy_only_where_the_chain_below_it_is_known() {
    let world = World::new(FakePlane::default()).await;
    let (key, c1) = (format!("n/1/extract-1 {}", chain("c1")), "n/2/c1");
    assert!(!world.prepare(&key, "", Labels::new()).await);
    world.commit(c1, &key, Labels::new()).await;
    assert!(world.prepare("n/3/x", c1, labels("c1/c2", "i2")).await);
    assert!(!world.prepare("n/4/x", "", Labels::new()).await);
    world.commit("n/5/odd", "n/4/x", Labels::new()).await;
    let on_it = labels("c1/c2", "i2");
    assert!(!world.prepare("n/6/x", "n/5/odd", on_it).await);
}

/// A record of an earlier build that took a foreign index for the chain's is not shared, and not
/// mounted again.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_of_an_earlier_build_is_neither_shared_nor_mounted_again() {
    let world = World::new(FakePlane::default()).await;
    world.plane.proven.store(true, Ordering::Relaxed);
    let store = world.snapshots.store();
    let wanted = Wanted {
        blob: layer("c1"),
        index: location("i1"),
        origins: Vec::new(),
        namespace: "n".to_owned(),
        start: Vec::new(),
    };
    world.plane.add(&wanted).await.unwrap();
    let facts = LayerFacts {
        blob: wanted.blob.to_string(),
        location: wanted.index.to_string(),
        origins: Vec::new(),
        namespace: "n".to_owned(),
        implied: Vec::new(),
    };
    let content = Content::Layer {
        index: wanted.index.digest.to_string(),
        owner: Owner::ROOT,
    };
    let id = store.reserve().unwrap();
    let foreign = plain("harmless");
    let adopted = store.adopt(id, "n/1/lazy", "", foreign.clone(), content, &facts);
    adopted.unwrap();
    assert!(!world.prepare("other/2/x", "", foreign).await);
    let (view, base) = ("n/3/v".to_owned(), "n/1/lazy".to_owned());
    let snapshots = &world.snapshots;
    let viewed = snapshots.view(view.clone(), base, Labels::new()).await;
    assert!(viewed.is_ok());
    let world = world.again().await;
    assert_eq!(world.mounted(), 0);
    let refused = world.snapshots.mounts(view).await.unwrap_err();
    assert!(
        refused.to_string().contains(&chain("harmless")),
        "{refused}"
    );
    world.fetches_nothing(1).await;
}
