//! Where the attributes of implied directories come from.

use std::os::unix::fs::{PermissionsExt, chown, symlink};

use super::*;
use crate::lazy::tests::FakePlane;

fn directory(path: &Path, mode: u32, uid: u32) {
    fs::create_dir_all(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chown(path, Some(uid), Some(uid)).unwrap();
}

fn of(paths: &[&str], parents: &[Parent]) -> Vec<(String, u16, u32)> {
    let plane = FakePlane::default();
    let paths: Vec<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    let entries = implied(&plane, &paths, parents).unwrap();
    let text = |entry: ImpliedEntry| {
        (
            String::from_utf8(entry.path).unwrap(),
            entry.mode,
            entry.owner.uid,
        )
    };
    entries.into_iter().map(text).collect()
}

/// Promise: an implied directory looks as containerd's unpack would make it.
#[test]
fn the_topmost_parent_that_has_the_path_decides() {
    let dir = tempfile::tempdir().unwrap();
    let (top, low) = (dir.path().join("top"), dir.path().join("low"));
    directory(&top.join("both"), 0o1777, 7);
    directory(&low.join("both"), 0o700, 8);
    directory(&low.join("deep/er"), 0o750, 9);
    directory(&low.join("hidden"), 0o700, 10);
    fs::write(top.join("hidden"), "a file hides the directory below").unwrap();
    let parents = [Parent::Directory(top), Parent::Directory(low)];
    assert_eq!(
        of(
            &["both", "deep/er", "hidden", "hidden/below", "nowhere"],
            &parents
        ),
        [
            ("both".to_owned(), 0o1777, 7),
            ("deep/er".to_owned(), 0o750, 9)
        ]
    );
}

#[test]
fn symbolic_links_resolve_inside_the_layer() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("layer");
    directory(&root.join("usr/lib"), 0o711, 3);
    symlink("usr/lib", root.join("lib")).unwrap();
    symlink("/usr/../../../usr/lib", root.join("absolute")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("/etc", root.join("outside")).unwrap();
    let parents = [Parent::Directory(root)];
    assert_eq!(
        of(
            &["lib", "absolute", "loop", "outside", "loop/below"],
            &parents
        ),
        [
            ("lib".to_owned(), 0o711, 3),
            ("absolute".to_owned(), 0o711, 3)
        ]
    );
}

#[test]
fn extended_attributes_are_copied_but_not_the_trusted_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d");
    fs::create_dir(&path).unwrap();
    for name in ["user.kept", "trusted.dropped"] {
        rustix::fs::lsetxattr(&path, name, b"v", rustix::fs::XattrFlags::empty()).unwrap();
    }
    let parents = [Parent::Directory(dir.path().to_owned())];
    let entries = implied(&FakePlane::default(), &[b"d".to_vec()], &parents).unwrap();
    assert_eq!(entries[0].xattrs, [(b"user.kept".to_vec(), b"v".to_vec())]);
}

#[test]
fn a_lazy_parent_shows_what_it_inherited_itself() {
    let plane = FakePlane::default();
    let index = Digest::of(b"parent");
    plane.add_directory(index, b"inherited", 0o755);
    plane.add_directory(index, b"own", 0o700);
    let inherited = ImpliedEntry {
        path: b"inherited".to_vec(),
        mode: 0o2775,
        owner: Owner { uid: 5, gid: 6 },
        xattrs: Vec::new(),
    };
    let parents = [Parent::Layer {
        index,
        implied: vec![inherited],
    }];
    let paths = [b"inherited".to_vec(), b"own".to_vec()];
    let entries = implied(&plane, &paths, &parents).unwrap();
    assert_eq!((entries[0].mode, entries[0].owner.uid), (0o2775, 5));
    assert_eq!((entries[1].mode, entries[1].owner.uid), (0o700, 0));
}
