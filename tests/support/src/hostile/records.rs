//! Sizes, PAX records, GNU headers, attributes and sparse maps that lie or have no end.

use super::Answer::{Broken, BrokenToUs, Copied, CopiedByUs, SameTree};
use super::Table;
use crate::tar::{Entry, TarBuilder, records, set_checksum};

pub(super) fn fill(table: &mut Table) {
    smuggled(table);
    sizes(table);
    endless(table);
    attributes(table);
    sparse(table);
}

/// Entries that one reader sees and another one does not (CVE-2025-62518).
fn smuggled(table: &mut Table) {
    let inner = TarBuilder::new()
        .entry(Entry::file("etc/smuggled", "x"))
        .entry(Entry::symlink("etc/link", "/etc/shadow"))
        .finish();
    let len = inner.len().to_string();
    // The header says 0; who overlooks the record reads the payload as headers.
    table.add(
        "tar-behind-a-size-of-zero",
        SameTree,
        [
            Entry::file("outer", &inner).size(0).record("size", &len),
            Entry::file("after", "x"),
        ],
    );
    table.add(
        "size-that-contradicts-its-record",
        Broken("contradicts"),
        [
            Entry::file("outer", &inner).record("size", "512"),
            Entry::file("after", "x"),
        ],
    );
    table.add(
        "two-size-records",
        SameTree,
        [Entry::file("outer", &inner)
            .size(0)
            .record("size", "1")
            .record("size", &len)],
    );
    // Types without payload, whatever their size says: the next block is a header.
    let directory = Entry::directory("d").size(inner.len() as u64);
    table.add(
        "directory-with-a-size",
        SameTree,
        [directory, Entry::file("after", "x")],
    );
    let global = Entry {
        data: records(&[
            (b"size".to_vec(), b"512".to_vec()),
            (b"path".to_vec(), b"../../etc/passwd".to_vec()),
            (b"linkpath".to_vec(), b"/etc/shadow".to_vec()),
        ]),
        ..Entry::new(b'g', "global")
    };
    table.add(
        "global-records-for-everything",
        SameTree,
        [global, Entry::file("f", "x"), Entry::symlink("l", "f")],
    );
    let after = TarBuilder::new()
        .entry(Entry::file("f", "x"))
        .raw(&[0; 1024])
        .entry(Entry::file("hidden", "x"));
    table.raw("entries-after-the-end", SameTree, after.finish());
    let half = TarBuilder::new()
        .entry(Entry::file("f", "x"))
        .raw(&[0; 512])
        .entry(Entry::file("hidden", "x"));
    table.raw("entries-after-half-an-end", Broken(""), half.finish());
}

fn sizes(table: &mut Table) {
    for (name, size) in [
        ("size-2-62", 1_u64 << 62),
        ("size-2-63-less-one", i64::MAX as u64),
    ] {
        table.add(
            name,
            Copied("2 TiB"),
            [Entry::file("f", "").gnu().size(size)],
        );
    }
    table.raw(
        "size-2-63",
        Broken(""),
        with_size([0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]),
    );
    table.raw("size-2-95", Broken(""), with_size([0xbf; 12]));
    table.raw("size-negative", Broken(""), with_size([0xff; 12]));
    table.raw("size-no-number", Broken(""), with_size(*b"99999999999\0"));
    for (name, size) in [
        ("size-record-2-64", "18446744073709551616"),
        ("size-record-2-63", "9223372036854775808"),
        ("size-record-negative", "-1"),
        ("size-record-empty-digits", "0x10"),
    ] {
        table.add(
            name,
            Broken(""),
            [Entry::file("f", "").record("size", size)],
        );
    }
    table.add(
        "size-record-2-63-less-one",
        Copied("2 TiB"),
        [Entry::file("f", "").record("size", "9223372036854775807")],
    );
    // Rounded up to a block, this is past the last 64-bit number of a reader that adds first.
    table.add(
        "size-that-wraps-when-padded",
        Copied("2 TiB"),
        [Entry::file("f", "").record("size", "9223372036854775297")],
    );
}

/// A file's header with these bytes in its size field.
fn with_size(field: [u8; 12]) -> Vec<u8> {
    let mut tar = TarBuilder::new().entry(Entry::file("f", "")).finish();
    tar[124..136].copy_from_slice(&field);
    let (head, _) = tar.split_first_chunk_mut::<512>().expect("a header");
    set_checksum(head);
    tar
}

/// Records and names without an end, before a single entry.
fn endless(table: &mut Table) {
    let record = |text: &str| Entry {
        data: text.into(),
        ..Entry::new(b'x', "p")
    };
    for (name, text) in [
        ("record-longer-than-all", "99999999999999999999 a=b\n"),
        ("record-of-no-length", "0 a=b\n"),
        ("record-of-negative-length", "-6 a=b\n"),
        ("record-without-equals", "6 abc\n"),
        ("record-without-end", "9 a=bcdef"),
    ] {
        table.add(name, Broken(""), [record(text), Entry::file("f", "x")]);
    }
    let two_megabytes = vec![(b"comment".to_vec(), vec![b'x'; 2 << 20])];
    table.add(
        "records-of-two-megabytes",
        Broken(""),
        [Entry {
            data: records(&two_megabytes),
            ..Entry::new(b'x', "p")
        }],
    );
    for (name, flag) in [
        ("gnu-name-of-two-megabytes", b'L'),
        ("gnu-link-of-two-megabytes", b'K'),
    ] {
        let long = Entry {
            data: vec![b'n'; 2 << 20],
            ..Entry::new(flag, "././@LongLink").gnu()
        };
        table.add(name, Broken(""), [long, Entry::file("f", "x").gnu()]);
    }
    let name = |n: u32| Entry {
        data: format!("name-{n}\0").into(),
        ..Entry::new(b'L', "././@LongLink").gnu()
    };
    table.add(
        "thousand-gnu-names-for-one-entry",
        SameTree,
        (0..1_000).map(name).chain([Entry::file("f", "x").gnu()]),
    );
    table.add(
        "hundred-thousand-gnu-names-for-one-entry",
        BrokenToUs("headers and records of one entry"),
        (0..100_000).map(name).chain([Entry::file("f", "x").gnu()]),
    );
}

fn attributes(table: &mut Table) {
    let with = |name: &str, len: usize| [Entry::file("f", "x").xattr(name, vec![b'v'; len])];
    table.add(
        "attribute-of-64-kilobytes",
        Copied(""),
        with("user.big", 70_000),
    );
    table.add(
        "attribute-of-a-megabyte",
        Broken(""),
        with("user.big", 1 << 20),
    );
    table.add(
        "attribute-name-of-300-bytes",
        Copied(""),
        with(&format!("user.{}", "n".repeat(300)), 1),
    );
    for (name, attribute) in [
        ("overlay-opaque", "trusted.overlay.opaque"),
        ("overlay-redirect", "trusted.overlay.redirect"),
        ("overlay-metacopy", "trusted.overlay.metacopy"),
    ] {
        let entry = Entry::directory("d").xattr(attribute, "/../../etc");
        table.add(name, CopiedByUs("overlayfs"), [entry]);
    }
    let user = Entry::directory("d").xattr("user.overlay.redirect", "/../../etc");
    table.add("overlay-of-users", CopiedByUs("overlayfs"), [user]);
}

fn sparse(table: &mut Table) {
    let map = |size: &str, map: &str, data: &[u8]| {
        let mut payload = map.as_bytes().to_vec();
        payload.resize(payload.len().next_multiple_of(512), 0);
        payload.extend_from_slice(data);
        [Entry::file("s", payload)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.realsize", size)]
    };
    let data = [1; 1024];
    table.add(
        "sparse-overlap",
        Broken(""),
        map("8192", "2\n0\n1024\n512\n512\n", &data),
    );
    table.add(
        "sparse-backwards",
        Broken(""),
        map("8192", "2\n4096\n512\n0\n512\n", &data),
    );
    table.add(
        "sparse-beyond-its-size",
        Broken(""),
        map("1024", "1\n4096\n1024\n", &data),
    );
    table.add(
        "sparse-offsets-that-wrap",
        Broken(""),
        map(
            "9223372036854775807",
            "1\n9223372036854775807\n1024\n",
            &data,
        ),
    );
    table.add(
        "sparse-lengths-that-wrap",
        Broken(""),
        map(
            "8192",
            "2\n0\n9223372036854775807\n512\n9223372036854775807\n",
            &data,
        ),
    );
    table.add(
        "sparse-map-of-more-pieces-than-bytes",
        Broken(""),
        map("8192", "4000000000\n0\n512\n", &data),
    );
    table.add(
        "sparse-size-negative",
        Broken(""),
        map("-1", "1\n0\n1024\n", &data),
    );
}
