//! What counts as a difference between trees.

use super::*;

fn file(size: u64, extents: &[(u64, u64, u64)]) -> Node {
    let extent = |&(file_offset, tar_offset, len)| Extent {
        file_offset,
        tar_offset,
        len,
    };
    Node {
        kind: Kind::Regular {
            size,
            extents: extents.iter().map(extent).collect(),
        },
        ..Node::directory()
    }
}

fn entries(tree: &mut Tree, directory: NodeId) -> &mut BTreeMap<Vec<u8>, NodeId> {
    match &mut tree.node_mut(directory).kind {
        Kind::Directory(entries) => entries,
        other => panic!("{other:?} is not a directory"),
    }
}

/// `/a/file` and `/b` are one file, `/c` is another; `/link` is a symlink, `/null` a device.
fn sample() -> Tree {
    let mut tree = Tree::new();
    let a = tree.add(Node::directory());
    let shared = tree.add(file(700, &[(0, 512, 700)]));
    let other = tree.add(file(700, &[(0, 512, 700)]));
    let link = tree.add(Node {
        kind: Kind::Symlink(b"target".to_vec()),
        ..Node::directory()
    });
    let null = tree.add(Node {
        kind: Kind::CharDevice(DeviceNumber { major: 1, minor: 3 }),
        ..Node::directory()
    });
    let root = entries(&mut tree, ROOT);
    root.insert(b"a".to_vec(), a);
    root.insert(b"b".to_vec(), shared);
    root.insert(b"c".to_vec(), other);
    root.insert(b"link".to_vec(), link);
    root.insert(b"null".to_vec(), null);
    entries(&mut tree, a).insert(b"file".to_vec(), shared);
    tree
}

#[test]
fn numbering_and_unreachable_nodes_do_not_count() {
    let left = sample();
    let mut right = sample();
    // Other numbers: the nodes of `/c` and `/b` change places, and one more is unreachable.
    right.add(Node::directory());
    let (shared, other) = (NodeId(2), NodeId(3));
    entries(&mut right, ROOT).insert(b"b".to_vec(), other);
    entries(&mut right, ROOT).insert(b"c".to_vec(), shared);
    entries(&mut right, NodeId(1)).insert(b"file".to_vec(), other);
    assert_eq!(difference(&left, &right), None);
    assert_eq!(difference(&right, &left), None);
}

#[test]
fn how_a_run_of_bytes_is_cut_does_not_count() {
    let left = sample();
    let mut right = sample();
    right.nodes[2] = file(700, &[(0, 512, 512), (512, 1024, 188)]);
    assert_eq!(difference(&left, &right), None);
}

#[test]
fn everything_a_container_can_see_counts() {
    type Change = fn(&mut Tree);
    let changes: [(Change, &str); 13] = [
        (|t| t.nodes[2].mode = 0o600, "mode: 0755 against 0600"),
        (|t| t.nodes[2].uid = 7, "owner: 0:0 against 7:0"),
        (|t| t.nodes[2].gid = 7, "owner: 0:0 against 0:7"),
        (
            |t| t.nodes[2].mtime.nanoseconds = 1,
            "mtime: 0.000000000 against 0.000000001",
        ),
        (
            |t| _ = t.nodes[2].xattrs.insert(b"user.x".to_vec(), b"\n".to_vec()),
            "extended attribute user.x: absent against \"\\n\"",
        ),
        (
            |t| t.nodes[2] = file(701, &[(0, 512, 700)]),
            "size: 700 against 701",
        ),
        (
            |t| t.nodes[2] = file(700, &[(0, 1024, 700)]),
            "place of the data in the tar: 0+700 at 512 against 0+700 at 1024",
        ),
        (
            |t| t.nodes[2] = file(700, &[]),
            "place of the data in the tar: 0+700 at 512 against nothing more",
        ),
        (
            |t| t.nodes[4].kind = Kind::Symlink(b"other".to_vec()),
            "/link: symlink target: target against other",
        ),
        (
            |t| t.nodes[4].kind = Kind::Fifo,
            "/link: file type: symlink against named pipe",
        ),
        (
            |t| t.nodes[5].kind = Kind::CharDevice(DeviceNumber { major: 1, minor: 5 }),
            "/null: device number: 1:3 against 1:5",
        ),
        (
            |t| _ = entries(t, NodeId(1)).remove(&b"file"[..]),
            "/a/file: presence: there against absent",
        ),
        (
            |t| _ = entries(t, ROOT).insert(b"c".to_vec(), NodeId(2)),
            "hard links: not a link to that file against a link to an earlier file",
        ),
    ];
    for (change, expected) in changes {
        let mut changed = sample();
        change(&mut changed);
        let found = difference(&sample(), &changed).expect(expected).to_string();
        assert!(found.contains(expected), "{found}, not {expected}");
        assert!(difference(&changed, &sample()).is_some());
    }
}
