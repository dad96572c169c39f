//! What the merged view promises: what overlayfs would show.

use std::collections::BTreeMap;

use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;

use super::*;

fn file(size: u64) -> Kind {
    Kind::Regular {
        size,
        extents: Vec::new(),
    }
}

/// A layer of these paths; parents are made as they are needed.
fn layer(entries: &[(&str, Kind)]) -> ViewedLayer {
    let mut tree = Tree::new();
    for (path, kind) in entries {
        let mut at = ROOT;
        let parts: Vec<_> = path.split('/').collect();
        for (depth, part) in parts.iter().enumerate() {
            let last = depth + 1 == parts.len();
            at = tree.child(at, part.as_bytes()).unwrap_or_else(|| {
                let kind = if last {
                    kind.clone()
                } else {
                    Kind::Directory(BTreeMap::new())
                };
                let child = tree.add(Node {
                    kind,
                    ..Node::directory()
                });
                if let Kind::Directory(entries) = &mut tree.node_mut(at).kind {
                    entries.insert(part.as_bytes().to_vec(), child);
                }
                child
            });
        }
    }
    let descriptor = Descriptor::new("layer", Digest::of(b""), 0);
    ViewedLayer::new(descriptor, tree, HashSet::new(), PlainOrLarder::Plain)
}

fn whiteout() -> Kind {
    Kind::CharDevice(DeviceNumber::default())
}

fn link(target: &str) -> Kind {
    Kind::Symlink(target.into())
}

fn names(view: &View, path: &str) -> Vec<String> {
    let directory = view.find(path.as_bytes(), true).unwrap();
    let list = view.list(&directory);
    list.into_iter()
        .map(|(name, _)| String::from_utf8(name).unwrap())
        .collect()
}

fn size(view: &View, path: &str) -> Option<u64> {
    match view.node(&view.find(path.as_bytes(), true).ok()?).kind {
        Kind::Regular { size, .. } => Some(size),
        _ => None,
    }
}

#[test]
fn upper_layers_hide_and_whiteouts_remove() {
    let bottom = layer(&[
        ("etc/a", file(1)),
        ("etc/b", file(1)),
        ("bin/x", file(1)),
        ("d/e", file(1)),
    ]);
    let top = layer(&[
        ("etc/a", file(2)),
        ("etc/b", whiteout()),
        ("etc/c", file(2)),
        ("bin", link("etc")),
        ("d", whiteout()),
    ]);
    let view = View::new(vec![top, bottom]);
    assert_eq!(names(&view, "/"), ["bin", "etc"]);
    assert_eq!(names(&view, "/etc"), ["a", "c"]);
    assert_eq!(
        names(&view, "/bin"),
        ["a", "c"],
        "a symlink hides the directory below it"
    );
    assert_eq!(size(&view, "/etc/a"), Some(2));
    assert_eq!(
        view.find(b"/etc/b", true),
        Err(PathError::NotFound("/etc/b".into()))
    );
}

#[test]
fn an_opaque_directory_and_one_above_a_file_hide_all_below() {
    let mut opaque = layer(&[("etc/new", file(1))]);
    let etc = opaque.tree.find(b"etc").unwrap();
    opaque
        .tree
        .node_mut(etc)
        .xattrs
        .insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
    let view = View::new(vec![
        layer(&[("f/x", file(1))]),
        opaque,
        layer(&[("f", file(1))]),
        layer(&[("etc/old", file(1)), ("f/old", file(1))]),
    ]);
    assert_eq!(names(&view, "etc"), ["new"]);
    assert_eq!(names(&view, "f"), ["x"]);
}

#[test]
fn an_image_without_layers_has_an_empty_root() {
    let view = View::new(Vec::new());
    assert!(names(&view, "").is_empty());
    let root = view.find(b"/", true).unwrap();
    assert!(matches!(view.node(&root).kind, Kind::Directory(_)));
    assert_eq!(view.links(&root), 1);
    let missing = view.find(b"/bin", true);
    assert_eq!(missing, Err(PathError::NotFound("/bin".into())));
}

#[test]
fn symlinks_stay_within_the_image_and_circles_end() {
    let view = View::new(vec![layer(&[
        ("a/up", link("../../../../b/file")),
        ("b/file", file(7)),
        ("absolute", link("/b/./file")),
        ("loop", link("loop")),
        ("dir", link("b/")),
    ])]);
    for path in [
        "/a/up",
        "absolute",
        "dir/file",
        "dir/../absolute",
        "/../b/file",
    ] {
        assert_eq!(size(&view, path), Some(7), "{path}");
    }
    assert_eq!(
        view.find(b"loop", true),
        Err(PathError::Loop("loop".into()))
    );
    assert_eq!(
        view.find(b"b/file/x", true),
        Err(PathError::NotADirectory("b/file/x".into()))
    );
    assert_eq!(
        view.find(b"b/file/", true),
        Err(PathError::NotADirectory("b/file/".into()))
    );
    let link = view.find(b"loop", false).unwrap();
    assert!(matches!(view.node(&link).kind, Kind::Symlink(_)));
}

#[test]
fn an_implied_directory_has_the_attributes_of_the_one_below() {
    let mut top = layer(&[("etc/a", file(1))]);
    top.implied.insert(b"etc".to_vec());
    let mut bottom = layer(&[("etc/b", file(1))]);
    let etc = bottom.tree.find(b"etc").unwrap();
    bottom.tree.node_mut(etc).mode = 0o700;
    let view = View::new(vec![top, bottom]);
    let etc = view.find(b"etc", true).unwrap();
    assert_eq!(view.node(&etc).mode, 0o700);
}
