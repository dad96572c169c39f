//! Trees that between them have everything the format can hold.

use larder_proto::tree::{DeviceNumber, Kind, Mtime, ROOT};

use crate::layer::Layer;

/// Every sample, with a name for messages.
pub(crate) fn all() -> Vec<(&'static str, Layer)> {
    vec![
        ("empty", Layer::new()),
        ("types", types()),
        ("names", names()),
        ("symlinks", symlinks()),
        ("attributes", attributes()),
        ("xattrs", xattrs()),
        ("sparse", sparse()),
        ("wide", wide(2_000)),
    ]
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i * 31 + seed * 17).to_le_bytes()[0] ^ (i >> 8).to_le_bytes()[0])
        .collect()
}

/// Every file type, hard links, whiteouts.
pub(crate) fn types() -> Layer {
    let mut layer = Layer::new();
    let etc = layer.directory(ROOT, "etc");
    let deep = layer.directory(etc, "deep");
    for (i, len) in [0, 1, 511, 512, 513, 4095, 4096, 4097, 70_000]
        .into_iter()
        .enumerate()
    {
        layer.file(etc, format!("file-{len}"), &pattern(len, i));
    }
    let linked = layer.file(deep, "linked", b"one file, three names");
    layer.link(ROOT, "linked-too", linked);
    layer.link(deep, "linked-again", linked);
    let link = layer.symlink(ROOT, "symlink", b"etc/deep");
    layer.link(etc, "the-same-symlink", link);
    layer.device(etc, "whiteout", 0, 0);
    layer.device(etc, "null", 1, 3);
    layer.device(etc, "largest", 4095, (1 << 20) - 1);
    let disk = DeviceNumber {
        major: 259,
        minor: 70_000,
    };
    layer.add(etc, "disk", Kind::BlockDevice(disk));
    let pipe = layer.add(etc, "pipe", Kind::Fifo);
    layer.link(ROOT, "pipe", pipe);
    layer.add(etc, "socket", Kind::Socket);
    layer.directory(deep, "empty");
    layer
}

/// Names that sort before "." and after "..", bytes that are not UTF-8, the longest names.
pub(crate) fn names() -> Layer {
    let mut layer = Layer::new();
    for name in [
        &b"!"[..],
        b"-",
        b"+",
        b" ",
        b".a",
        b"..a",
        b"...",
        b"~",
        b"\x01",
        b"\xff",
        b"\xfe\x80",
        b"a",
        b"aa",
        b"ab",
        b"b",
        b"\n",
        b".wh.not-a-whiteout",
        "\u{e4}\u{df}".as_bytes(),
    ] {
        layer.file(ROOT, name, name);
    }
    let long = layer.directory(ROOT, [b'd'; 255]);
    for i in 0..200_u8 {
        let mut name = [b'n'; 255];
        name[0] = i.max(48);
        name[254] = i.max(48);
        layer.file(long, name, &[i]);
    }
    // Directories whose entries end at, just before and just after the end of a block.
    for len in 1..=255 {
        let parent = layer.directory(ROOT, format!("len-{len:03}"));
        layer.file(parent, vec![b'x'; len], b"");
        layer.symlink(parent, vec![b'y'; 256 - len], b"x");
    }
    layer
}

/// Targets of every length around a block, and the longest.
pub(crate) fn symlinks() -> Layer {
    let mut layer = Layer::new();
    for len in (1..=40)
        .chain(380..=520)
        .chain([1023, 1024, 1025, 4094, 4095])
    {
        let target = [b'/', b'a'].repeat(2048);
        let id = layer.symlink(ROOT, format!("{len:04}"), &target[..len]);
        if len % 3 == 0 {
            layer.tree.node_mut(id).uid = 1 << 20;
        }
        if len % 5 == 0 {
            layer.xattr(id, "trusted.of-symlink", pattern(len % 60, len));
        }
    }
    layer
}

/// Owners, modes and times at their limits.
pub(crate) fn attributes() -> Layer {
    let mut layer = Layer::new();
    for id in [0, 1, 0xFFFF, 0x1_0000, 1 << 31, u32::MAX - 1] {
        let file = layer.file(ROOT, format!("owner-{id}"), b"x");
        let node = layer.tree.node_mut(file);
        (node.uid, node.gid) = (id, id / 2);
    }
    for mode in [0, 0o777, 0o4755, 0o2755, 0o1777, 0o7777] {
        let file = layer.file(ROOT, format!("mode-{mode:o}"), b"x");
        layer.tree.node_mut(file).mode = mode;
        let directory = layer.directory(ROOT, format!("directory-{mode:o}"));
        layer.tree.node_mut(directory).mode = mode;
    }
    for (seconds, nanoseconds) in [
        (0, 0),
        (0, 1),
        (-1, 999_999_999),
        (i64::from(i32::MAX) + 1, 5),
        (9_223_372_036, 854_775_807),
        (-62_135_596_800, 0),
        (1_700_000_000, 123_456_789),
    ] {
        let file = layer.file(ROOT, format!("mtime-{seconds}.{nanoseconds}"), b"x");
        layer.tree.node_mut(file).mtime = Mtime {
            seconds,
            nanoseconds,
        };
    }
    let many = layer.file(ROOT, "many-links", b"many");
    let links = layer.directory(ROOT, "links");
    for i in 0..300 {
        layer.link(links, format!("{i}"), many);
    }
    layer
}

/// Extended attributes: each prefix, shared and not, empty and long values, many on one file.
pub(crate) fn xattrs() -> Layer {
    let mut layer = Layer::new();
    let acl = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x02\0\x06\0\xe8\x03\0\0\x04\0\x05\0\xff\xff\xff\xff\x10\0\x07\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for i in 0..40 {
        let file = layer.file(ROOT, format!("file-{i}"), b"x");
        layer.xattr(file, "user.same", "the same value on many files");
        layer.xattr(file, "user.own", format!("value {i}"));
        layer.xattr(file, "trusted.empty", "");
        if i % 2 == 0 {
            layer.xattr(file, "security.capability", capability);
        }
        if i % 3 == 0 {
            layer.xattr(file, "system.posix_acl_access", acl);
            // The group bits of a file with an ACL are its mask.
            layer.tree.node_mut(file).mode = 0o775;
        }
    }
    let directory = layer.directory(ROOT, "directory");
    layer.tree.node_mut(directory).mode = 0o775;
    layer.xattr(directory, "trusted.overlay.opaque", "y");
    layer.xattr(directory, "system.posix_acl_default", acl);
    layer.xattr(ROOT, "user.of-root", "root");
    layer.xattr(ROOT, "trusted.overlay.opaque", "y");
    let long = layer.file(directory, "long", b"x");
    layer.xattr(long, "user.long", pattern(65_535, 1));
    layer.xattr(long, &format!("user.{}", "n".repeat(250)), pattern(3000, 2));
    let shared = pattern(40_000, 3);
    let one = layer.file(directory, "one", b"x");
    let two = layer.directory(directory, "two");
    layer.file(two, "in-it", b"x");
    layer.xattr(one, "user.long-shared", &shared);
    layer.xattr(two, "user.long-shared", &shared);
    let (many, as_many) = (
        layer.file(ROOT, "many", b"x"),
        layer.file(ROOT, "as-many", b"x"),
    );
    for i in 0..300 {
        layer.xattr(many, &format!("user.{i:03}"), format!("{i}"));
        layer.xattr(as_many, &format!("user.{i:03}"), format!("{i}"));
    }
    layer
}

/// Holes at the beginning, in the middle, at the end, and nothing but holes.
pub(crate) fn sparse() -> Layer {
    let mut layer = Layer::new();
    let (one, two, odd) = (pattern(512, 1), pattern(8192, 2), pattern(700, 3));
    layer.sparse(ROOT, "begins", 1 << 20, &[(0, &one)]);
    layer.sparse(ROOT, "ends", (1 << 20) + 700, &[(1 << 20, &odd)]);
    layer.sparse(ROOT, "middle", 1 << 20, &[(8192, &two)]);
    layer.sparse(
        ROOT,
        "several",
        100_000,
        &[(512, &one), (4096, &two), (65_536, &one)],
    );
    layer.sparse(
        ROOT,
        "adjacent",
        9216,
        &[(0, &one), (512, &two), (8704, &one)],
    );
    layer.sparse(ROOT, "hole", 3_000_000, &[]);
    layer.sparse(ROOT, "hole-of-a-byte", 1, &[]);
    let with_xattr = layer.sparse(ROOT, "with-xattr", 70_000, &[(4096, &two)]);
    layer.xattr(with_xattr, "user.a", "b");
    layer
}

/// One directory with `count` files.
pub(crate) fn wide(count: usize) -> Layer {
    let mut layer = Layer::new();
    let wide = layer.directory(ROOT, "wide");
    for i in 0..count {
        let id = layer.file(wide, format!("file-{i:07}"), &pattern(i % 700, i));
        layer.tree.node_mut(id).mtime.seconds += i64::from(i % 5 == 0);
    }
    layer
}
