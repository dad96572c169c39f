//! What the writer cannot write, and what the reader does not open.

use larder_proto::erofs::{Image, WriteError, write};
use larder_proto::limits;
use larder_proto::tree::{DeviceNumber, Extent, Kind, ROOT};

use crate::layer::Layer;

type Case<'a> = (&'a str, &'a dyn Fn(&mut Layer));

/// Each case makes one file `directory/file` impossible; the error names it and says why.
#[test]
fn what_cannot_be_held_is_named_with_its_reason() {
    let file = |layer: &Layer| layer.tree.find(b"directory/file").unwrap();
    let cases: [Case<'_>; 10] = [
        ("owner 4294967295", &|l| {
            l.tree.node_mut(file(l)).uid = u32::MAX;
        }),
        ("owner 4294967295", &|l| {
            l.tree.node_mut(file(l)).gid = u32::MAX;
        }),
        ("of a kind that EROFS does not have", &|l| {
            l.xattr(file(l), "system.nfs4_acl", "x");
        }),
        ("of a kind that EROFS does not have", &|l| {
            l.xattr(file(l), "user.", "x");
        }),
        ("whose name is longer than 255", &|l| {
            l.xattr(file(l), &format!("user.{}", "x".repeat(251)), "x");
        }),
        ("65536 bytes", &|l| {
            l.xattr(file(l), "user.x", vec![0; 65_536]);
        }),
        ("more than 256 KiB", &|l| {
            for i in 0..5 {
                l.xattr(file(l), &format!("user.{i}"), vec![0; 60_000]);
            }
        }),
        ("trusted.overlay", &|l| {
            l.xattr(file(l), "trusted.overlay.opaque", "y");
        }),
        ("target is longer than 4095", &|l| {
            l.tree.node_mut(file(l)).kind = Kind::Symlink(vec![b'x'; 4096]);
        }),
        ("device number", &|l| {
            l.tree.node_mut(file(l)).kind = Kind::CharDevice(DeviceNumber {
                major: 4096,
                minor: 0,
            });
        }),
    ];
    for (expected, spoil) in cases {
        let mut layer = Layer::new();
        let directory = layer.directory(ROOT, "directory");
        layer.file(directory, "file", b"content");
        spoil(&mut layer);
        match write(&layer.tree, layer.tar_len()) {
            Err(WriteError::Unrepresentable { path, reason }) => {
                assert_eq!(path, b"directory/file", "{expected}");
                assert!(reason.contains(expected), "{reason:?} for {expected:?}");
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn overlay_attributes_of_directories_are_refused_but_for_opaque() {
    let overlay = [
        ("trusted.overlay.redirect", "/etc", false),
        ("trusted.overlay.opaque", "x", false),
        ("trusted.overlay.metacopy", "", false),
        ("user.overlay.opaque", "y", false),
        ("trusted.overlay.opaque", "y", true),
        ("trusted.overlays", "y", true),
    ];
    for (name, value, allowed) in overlay {
        let mut layer = Layer::new();
        layer.xattr(ROOT, name, value);
        let written = write(&layer.tree, layer.tar_len());
        assert_eq!(written.is_ok(), allowed, "{name}={value}");
    }
}

#[test]
fn sparse_pieces_off_the_blocks_are_unrepresentable() {
    let bytes = [7; 1024];
    let pieces: [&[(u64, &[u8])]; 3] = [
        &[(100, &bytes)],
        &[(0, &bytes[..100]), (4096, &bytes)],
        &[(512, &bytes[..700])],
    ];
    for pieces in pieces {
        let mut layer = Layer::new();
        layer.sparse(ROOT, "file", 100_000, pieces);
        let error = write(&layer.tree, layer.tar_len()).unwrap_err();
        assert!(error.to_string().contains("multiples of 512"), "{error}");
    }
    // So many pieces that the map would outgrow the index.
    let mut layer = Layer::new();
    layer.sparse(ROOT, "file", 1 << 50, &[(512, &bytes)]);
    let error = write(&layer.tree, layer.tar_len()).unwrap_err();
    assert!(
        error.to_string().contains("too uneven for its length"),
        "{error}"
    );
}

#[test]
fn a_tree_that_is_none_is_refused() {
    let mut layer = Layer::new();
    let directory = layer.directory(ROOT, "a");
    layer.link(ROOT, "b", directory);
    assert!(write(&layer.tree, 512).is_err(), "two parents");
    let mut layer = Layer::new();
    let directory = layer.directory(ROOT, "a");
    layer.link(directory, "b", ROOT);
    assert!(write(&layer.tree, 512).is_err(), "a cycle");
    for name in [&b"."[..], b"..", b"", b"a/b", b"a\0b", &[b'x'; 256]] {
        let mut layer = Layer::new();
        layer.file(ROOT, name, b"");
        assert!(write(&layer.tree, 1024).is_err(), "{name:?}");
    }
    let extent = |file_offset, tar_offset, len| Extent {
        file_offset,
        tar_offset,
        len,
    };
    for extents in [
        vec![extent(0, 512, 600)],
        vec![extent(0, 512, 100), extent(50, 0, 50)],
        vec![extent(u64::MAX, 0, 10)],
        vec![extent(0, u64::MAX, 10)],
        vec![extent(0, 0, 0)],
    ] {
        let mut layer = Layer::new();
        layer.add(ROOT, "file", Kind::Regular { size: 550, extents });
        assert!(write(&layer.tree, 1024).is_err());
    }
    let too_long = write(&Layer::new().tree, limits::TAR_BYTES_MAX + 1);
    assert!(matches!(too_long, Err(WriteError::TarTooLong { .. })));
}

#[test]
fn paths_end_at_4095_bytes() {
    // 15 components of 255 and their slashes are 3840 bytes.
    for (last, fits) in [(255, true), (256, false)] {
        let mut layer = Layer::new();
        let mut parent = ROOT;
        for _ in 0..15 {
            parent = layer.directory(parent, [b'd'; 255]);
        }
        let parent = layer.directory(parent, [b'd'; 127]);
        let rest = last - 127 - 1;
        layer.file(parent, vec![b'f'; rest], b"");
        let written = write(&layer.tree, layer.tar_len());
        assert_eq!(written.is_ok(), fits);
        if let Ok(bytes) = written {
            assert!(Image::open(bytes, layer.tar_len()).is_ok());
        }
    }
}

/// Replaces the one occurrence of `from` in `bytes`.
fn replace(bytes: &mut [u8], from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let found: Vec<_> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from)
        .map(|(at, _)| at)
        .collect();
    let [at] = found[..] else {
        panic!("{} is there {} times", from.escape_ascii(), found.len());
    };
    bytes[at..at + to.len()].copy_from_slice(to);
}

fn assert_refused(layer: &Layer, bytes: &[u8], expected: &str) {
    let error = Image::open(bytes, layer.tar_len())
        .err()
        .unwrap_or_else(|| panic!("opened, though it {expected}"));
    assert!(
        error.to_string().contains(expected),
        "{error}, not {expected}"
    );
}

#[test]
fn names_and_attributes_a_tar_must_not_bring_are_refused() {
    let mut layer = Layer::new();
    let directory = layer.directory(ROOT, "directory");
    layer.file(directory, "some-name", b"x");
    layer.file(directory, "some-other", b"x");
    layer.xattr(directory, "trusted.overlaY.redirect", "/");
    layer.xattr(directory, "user.overlaZ.opaque", "y");
    let cases: [(&[u8], &[u8], &str); 7] = [
        (b"overlaY.r", b"overlay.r", "trusted.overlay"),
        (b"overlaZ.o", b"overlay.o", "user.overlay"),
        (b"some-name", b"some/name", "bad name"),
        (b"some-name", b"some\0name", "bad name"),
        (b"some-name", b"some-zzzz", "out of order"),
        (b"some-other", b"some-nam\0\0", "out of order"),
        (b"some-other", b"some-other", ""),
    ];
    for (from, to, expected) in cases {
        let mut bytes = layer.write();
        replace(&mut bytes, from, to);
        if from == to {
            assert!(Image::open(bytes, layer.tar_len()).is_ok());
        } else {
            assert_refused(&layer, &bytes, expected);
        }
    }
}

/// The entry `name`'s inode number, in the one block it lies in.
fn entry_at(bytes: &[u8], nid: u64, file_type: u8) -> usize {
    let is_entry = |window: &[u8]| window[..8] == nid.to_le_bytes() && window[10] == file_type;
    bytes.windows(12).position(is_entry).unwrap()
}

#[test]
fn cycles_and_second_parents_are_refused() {
    let mut layer = Layer::new();
    let one = layer.directory(ROOT, "one");
    layer.directory(one, "inner");
    layer.directory(ROOT, "two");
    let bytes = layer.write();
    let image = Image::open(&bytes[..], layer.tar_len()).unwrap();
    let nid = |path: [&[u8]; 2]| {
        let at = |at, name: &&[u8]| image.lookup(at, name).unwrap();
        path.iter()
            .filter(|name| !name.is_empty())
            .fold(image.root(), at)
    };
    let (one, inner, two) = (
        nid([b"one", b""]),
        nid([b"one", b"inner"]),
        nid([b"two", b""]),
    );
    // "inner" leads to the root, to its own parent, to a directory with another parent.
    let place = entry_at(&bytes, inner.0, 2);
    for target in [image.root(), one, two] {
        let mut bytes = bytes.clone();
        bytes[place..place + 8].copy_from_slice(&target.0.to_le_bytes());
        assert_refused(&layer, &bytes, "metadata image");
    }
}

#[test]
fn data_outside_of_the_tar_is_refused() {
    let mut layer = Layer::new();
    layer.file(ROOT, "file", &[1; 1000]);
    let bytes = layer.write();
    let image = Image::open(&bytes[..], layer.tar_len()).unwrap();
    let file = image.lookup(image.root(), b"file").unwrap();
    let address = usize::try_from(file.0).unwrap() * 32 + 16;
    let blocks = u32::try_from(bytes.len() / 512).unwrap();
    for block in [0, blocks - 1, blocks + 3, u32::MAX - 1, u32::MAX] {
        let mut bytes = bytes.clone();
        bytes[address..address + 4].copy_from_slice(&block.to_le_bytes());
        assert_refused(&layer, &bytes, "outside of the tar");
    }
    for tar_len in [0, 512, layer.tar_len() + 512, u64::MAX] {
        assert!(Image::open(&bytes[..], tar_len).is_err(), "{tar_len}");
    }
    let longer = [&bytes[..], &[0; 512]].concat();
    assert_refused(&layer, &longer, "not as long as its superblock says");
}

#[test]
fn bytes_that_belong_to_nothing_are_refused() {
    let layer = crate::samples::types();
    let bytes = layer.write();
    for at in [0, 700, 1023] {
        let mut bytes = bytes.clone();
        bytes[at] = 1;
        assert_refused(&layer, &bytes, "no entry leads to");
    }
    // Any single byte that is zero and means nothing must stay zero: one in twenty is tried.
    for at in (1280..bytes.len()).step_by(19).filter(|&at| bytes[at] == 0) {
        let mut changed = bytes.clone();
        changed[at] = 0x80;
        if let Ok(image) = Image::open(&changed[..], layer.tar_len()) {
            let same = larder_proto::tree::difference(&layer.tree, &image.to_tree());
            assert!(same.is_some(), "byte {at} is not looked at");
        }
    }
}
