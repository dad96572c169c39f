//! The mounts of every kind of snapshot.

use std::collections::BTreeMap;

use larder_proto::digest::Digest;

use super::*;
use crate::store::{Content, Owner, Store};

fn record(id: u64, kind: Kind, layer: Option<&[u8]>) -> Record {
    let mut record = Record::new(id, kind, "", BTreeMap::new());
    if let Some(layer) = layer {
        let index = Digest::of(layer).to_string();
        record.content = Content::Layer {
            index,
            owner: Owner::ROOT,
        };
    }
    record
}

fn of(kind: Kind, parents: Vec<Record>) -> Mount {
    of_places(kind, parents, |_| None)
}

fn of_places(
    kind: Kind,
    parents: Vec<Record>,
    instead: impl Fn(&Path) -> Option<PathBuf>,
) -> Mount {
    of_merged(kind, parents, None, instead)
}

fn of_merged(
    kind: Kind,
    parents: Vec<Record>,
    merged: Option<&Path>,
    instead: impl Fn(&Path) -> Option<PathBuf>,
) -> Mount {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let chain = Chain {
        record: record(9, kind, None),
        parents,
    };
    let options = OverlayOptions {
        extra: vec!["index=off".to_owned()],
    };
    let mut mounts = mounts(store.directories(), &chain, &options, merged, instead);
    let root = format!("{}/snapshots/", dir.path().display());
    let mut only = mounts.pop().unwrap();
    assert!(mounts.is_empty());
    only.source = only.source.replace(&root, "");
    for option in &mut only.options {
        *option = option.replace(&root, "");
    }
    only
}

fn ordinary(ids: &[u64]) -> Vec<Record> {
    ids.iter()
        .map(|id| record(*id, Kind::Committed, None))
        .collect()
}

#[test]
fn mounts_are_those_containerd_knows_how_to_shorten() {
    for (kind, parents, source, options) in [
        (Kind::Active, &[][..], "9/fs", "rw,rbind"),
        (Kind::View, &[], "9/fs", "ro,rbind"),
        (Kind::View, &[3], "3/fs", "ro,rbind"),
        (
            Kind::View,
            &[3, 2],
            "overlay",
            "index=off,lowerdir=3/fs:2/fs",
        ),
        (
            Kind::Active,
            &[3],
            "overlay",
            "index=off,workdir=9/work,upperdir=9/fs,lowerdir=3/fs",
        ),
        (
            Kind::Active,
            &[3, 2, 1],
            "overlay",
            "index=off,workdir=9/work,upperdir=9/fs,lowerdir=3/fs:2/fs:1/fs",
        ),
    ] {
        let mount = of(kind, ordinary(parents));
        let fstype = if source == "overlay" {
            "overlay"
        } else {
            "bind"
        };
        assert_eq!(
            (mount.source.as_str(), mount.r#type.as_str()),
            (source, fstype)
        );
        assert_eq!(mount.options.join(","), options);
    }
}

/// Promise: an image that repeats a layer starts; overlayfs would refuse it with ELOOP.
#[test]
fn a_repeated_layer_keeps_its_topmost_place() {
    let parents = vec![
        record(5, Kind::Committed, Some(b"twice")),
        record(4, Kind::Committed, None),
        record(3, Kind::Committed, Some(b"twice")),
        record(2, Kind::Committed, Some(b"once")),
    ];
    let mount = of(Kind::Active, parents.clone());
    assert_eq!(mount.options.last().unwrap(), "lowerdir=5/fs:4/fs:2/fs");
    let only_twice = vec![parents[0].clone(), parents[2].clone()];
    assert_eq!(of(Kind::View, only_twice).source, "5/fs");
}

/// A layer may be mounted from another place, also where it is the only one.
#[test]
fn another_place_is_taken_for_a_layer() {
    let second = |fs: &Path| fs.ends_with("2/fs").then(|| PathBuf::from("/tree/7"));
    let mount = of_places(Kind::Active, ordinary(&[3, 2]), second);
    assert_eq!(mount.options.last().unwrap(), "lowerdir=3/fs:/tree/7");
    let mount = of_places(Kind::View, ordinary(&[2]), second);
    assert_eq!(mount.source, "/tree/7");
}

#[test]
fn options_follow_the_kernels_parameters() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        OverlayOptions::from_parameters(dir.path()),
        OverlayOptions::default()
    );
    for (name, value) in [
        ("index", "N\n"),
        ("metacopy", "N\n"),
        ("redirect_dir", "Y\n"),
    ] {
        std::fs::write(dir.path().join(name), value).unwrap();
    }
    let options = OverlayOptions::from_parameters(dir.path());
    assert_eq!(options.extra, ["index=off", "redirect_dir=off"]);
}
