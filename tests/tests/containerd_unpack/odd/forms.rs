//! Header formats, sizes, sparse files, ends of archives.

use larder_test_support::tar::{Entry, TarBuilder, records};

use super::{add, dir, file, raw};
use crate::Case;
use crate::Expected::{BothRefuse, OnlyWeRefuse, SameTree};

pub(super) fn cases(cases: &mut Vec<Case>) {
    formats(cases);
    types(cases);
    sizes(cases);
    sparse(cases);
    global_records(cases);
    ends(cases);
}

fn formats(cases: &mut Vec<Case>) {
    let long = format!("long/{}/{}/f", "a".repeat(150), "b".repeat(250));
    add(
        cases,
        "formats",
        SameTree,
        [
            Entry::new(0, "v7").v7(),
            Entry::new(0, "v7dir/").v7(),
            Entry::new(b'0', "slash/").mode(0o600),
            Entry::file(format!("{long}-pax"), "pax"),
            Entry::file(format!("{long}-gnu"), "gnu").gnu(),
            Entry::symlink("l-pax", "t".repeat(1_000)),
            Entry::symlink("l-gnu", "t".repeat(1_000)).gnu(),
            Entry::hard_link("h-pax", format!("{long}-pax")),
            Entry::hard_link("h-gnu", format!("{long}-pax")).gnu(),
        ],
    );
    add(
        cases,
        "gnu-name-wins-over-pax",
        SameTree,
        [
            Entry::file("x".repeat(120), "1")
                .gnu()
                .record("path", "pax"),
            file("unused")
                .record("path", "once")
                .record("path", "twice"),
            file("kept").record("path", "again").record("path", ""),
            Entry::symlink("l", "unused").record("linkpath", "used"),
        ],
    );
    for (i, (key, value)) in [
        ("uid", "x"),
        ("gid", "1.5"),
        ("size", "-1"),
        ("size", "one"),
        ("path", "a\0b"),
        ("", "x"),
        ("a\0b", "x"),
    ]
    .into_iter()
    .enumerate()
    {
        add(
            cases,
            &format!("record-bad-{i}"),
            BothRefuse,
            [file("f").record(key, value)],
        );
    }
    for (i, text) in [
        "5 a=b\n", "7 a=bc", "x a=b\n", "6 ab\n\n", "99 a=b\n", "+7 a=b\n", "07 a=b\n",
    ]
    .into_iter()
    .enumerate()
    {
        let records = Entry {
            data: text.into(),
            ..Entry::new(b'x', "p")
        };
        let expected = if i < 5 { BothRefuse } else { SameTree };
        add(
            cases,
            &format!("record-grammar-{i}"),
            expected,
            [records, file("f")],
        );
    }
    let mut tar = TarBuilder::new().entry(file("f")).finish();
    tar[0] = b'g';
    raw(cases, "checksum", BothRefuse, tar);
    raw(cases, "not-a-tar", BothRefuse, b"PK\x03\x04".repeat(300));
}

fn types(cases: &mut Vec<Case>) {
    for flag in *b"7SVMDNAX" {
        let name = format!("type-{}", char::from(flag));
        add(cases, &name, BothRefuse, [Entry::new(flag, "f").gnu()]);
    }
    add(
        cases,
        "type-unknown-whiteout",
        SameTree,
        [Entry::new(b'7', ".wh.f")],
    );
    // These types have no payload, whatever the size says.
    for flag in *b"123456" {
        let entry = Entry {
            link: b"f".to_vec(),
            ..Entry::new(flag, "odd")
        };
        let name = format!("type-{}-with-size", char::from(flag));
        add(
            cases,
            &name,
            SameTree,
            [file("f"), entry.size(5_000), file("after")],
        );
    }
}

fn sizes(cases: &mut Vec<Case>) {
    let data = "d".repeat(700);
    add(
        cases,
        "size-in-records",
        SameTree,
        [
            Entry::file("f", &data).size(0).record("size", "700"),
            Entry::file("g", &data).record("size", "700"),
            file("after"),
        ],
    );
    add(
        cases,
        "size-contradicts",
        OnlyWeRefuse,
        [Entry::file("f", &data).size(100).record("size", "700")],
    );
    add(
        cases,
        "size-contradicts-larger",
        OnlyWeRefuse,
        [Entry::file("f", &data).size(1_024).record("size", "700")],
    );
    add(
        cases,
        "size-beyond-the-end",
        BothRefuse,
        [Entry::file("f", &data).size(5_000)],
    );
    add(
        cases,
        "size-huge",
        BothRefuse,
        [file("f").gnu().size(1 << 62)],
    );
}

fn sparse(cases: &mut Vec<Case>) {
    let data = [vec![b'1'; 512], vec![b'2'; 1_024]].concat();
    let v1 = |name: &str, map: &str, data: &[u8], size: &str| {
        let mut payload = map.as_bytes().to_vec();
        payload.resize(payload.len().next_multiple_of(512), 0);
        payload.extend_from_slice(data);
        Entry::file("GNUSparseFile.0/x", payload)
            .record("GNU.sparse.major", "1")
            .record("GNU.sparse.minor", "0")
            .record("GNU.sparse.name", name)
            .record("GNU.sparse.realsize", size)
    };
    let v01 = |name: &str, blocks: &str, map: &str, data: &[u8], size: &str| {
        Entry::file("GNUSparseFile.0/x", data)
            .record("GNU.sparse.size", size)
            .record("GNU.sparse.numblocks", blocks)
            .record("GNU.sparse.name", name)
            .record("GNU.sparse.map", map)
    };
    let v00 = Entry::file("v00", &data)
        .record("GNU.sparse.size", "8192")
        .record("GNU.sparse.numblocks", "2")
        .record("GNU.sparse.offset", "512")
        .record("GNU.sparse.numbytes", "512")
        .record("GNU.sparse.offset", "4096")
        .record("GNU.sparse.numbytes", "1024");
    add(
        cases,
        "sparse",
        SameTree,
        [
            v1("v1", "2\n512\n512\n4096\n1024\n", &data, "8192"),
            v01("v01", "2", "512,512,4096,1024", &data, "8192"),
            v00,
            v1(
                "empty-segments",
                "4\n0\n0\n512\n512\n1024\n1024\n8192\n0\n",
                &data,
                "8192",
            ),
            v1("nothing", "0\n", b"", "5000"),
            v1("tail", "2\n0\n512\n3072\n700\n", &data[..1_212], "3772"),
            v01("hole-only", "1", "9000,0", b"", "9000"),
            v1(
                "odd-boundary-joined",
                "2\n0\n100\n100\n412\n",
                &data[..512],
                "2000",
            ),
            file("after"),
        ],
    );
    add(
        cases,
        "sparse-map-of-many-blocks",
        SameTree,
        [
            v1(
                "v1",
                &("300\n".to_owned() + &many(300)),
                &vec![b'x'; 300 * 512],
                "400000",
            ),
            file("after"),
        ],
    );
    for (name, entry) in [
        ("shifted", v1("f", "1\n100\n512\n", &data[..512], "8192")),
        (
            "ragged",
            v1("f", "2\n0\n100\n612\n412\n", &data[..512], "8192"),
        ),
    ] {
        add(cases, &format!("sparse-{name}"), OnlyWeRefuse, [entry]);
    }
    for (name, entry) in [
        ("overlap", v1("f", "2\n0\n1024\n512\n512\n", &data, "8192")),
        ("beyond", v1("f", "1\n8000\n1536\n", &data, "8192")),
        ("too-little", v1("f", "1\n0\n2048\n", &data, "8192")),
        ("too-much", v1("f", "1\n0\n512\n", &data, "8192")),
        ("text", v1("f", "1\nx\n512\n", &data, "8192")),
        ("cut-off", v1("f", "9\n0\n512\n", b"", "8192")),
        ("count", v01("f", "1", "0,512,512,512", &data, "8192")),
        ("no-count", v01("f", "", "0,1536", &data, "8192")),
        ("negative-size", v01("f", "1", "0,1536", &data, "-5")),
    ] {
        add(cases, &format!("sparse-bad-{name}"), BothRefuse, [entry]);
    }
    add(
        cases,
        "sparse-unknown-version",
        SameTree,
        [Entry::file("f", &data)
            .record("GNU.sparse.major", "2")
            .record("GNU.sparse.minor", "0")],
    );
    add(
        cases,
        "sparse-symlink",
        BothRefuse,
        [Entry::symlink("l", "x")
            .record("GNU.sparse.map", "0,0")
            .record("GNU.sparse.numblocks", "1")],
    );
}

fn many(segments: u32) -> String {
    let lines: Vec<String> = (0..segments)
        .map(|i| format!("{}\n512\n", i * 1_024))
        .collect();
    lines.concat()
}

fn global_records(cases: &mut Vec<Case>) {
    let global = |name: &str, list: &[(Vec<u8>, Vec<u8>)]| Entry {
        data: records(list),
        ..Entry::new(b'g', name)
    };
    add(
        cases,
        "global",
        SameTree,
        [
            global("pax_global_header", &[(b"comment".to_vec(), b"c".to_vec())]),
            file("f"),
            global("deep/er/g", &[(b"uid".to_vec(), b"77".to_vec())]),
            file("g"),
            global("f", &[(b"mtime".to_vec(), b"77".to_vec())]),
            global("x", &[(b"path".to_vec(), b"g".to_vec())]),
            global(".wh.hidden", &[]),
        ],
    );
}

fn ends(cases: &mut Vec<Case>) {
    let one = || TarBuilder::new().entry(file("f")).entry(dir("d"));
    raw(cases, "end-empty", SameTree, Vec::new());
    raw(cases, "end-without-zeros", SameTree, one().unfinished());
    raw(
        cases,
        "end-one-zero-block",
        SameTree,
        one().raw(&[0; 512]).unfinished(),
    );
    raw(
        cases,
        "end-zero-block-and-some",
        BothRefuse,
        one().raw(&[0; 600]).unfinished(),
    );
    raw(
        cases,
        "end-zero-block-then-entry",
        BothRefuse,
        one().raw(&[0; 512]).entry(file("g")).finish(),
    );
    raw(
        cases,
        "end-then-junk",
        SameTree,
        one().raw(&[0; 1024]).raw(b"junk").unfinished(),
    );
    raw(
        cases,
        "end-then-entry",
        SameTree,
        one().raw(&[0; 1024]).entry(file("g")).finish(),
    );
    raw(
        cases,
        "end-in-header",
        BothRefuse,
        one().raw(&[1; 100]).unfinished(),
    );
    let mut tar = TarBuilder::new().entry(file("f")).unfinished();
    tar.truncate(513);
    raw(cases, "end-in-padding", SameTree, tar.clone());
    tar.truncate(512);
    raw(cases, "end-in-payload", BothRefuse, tar);
    let lonely = Entry {
        data: records(&[(b"path".to_vec(), b"x".to_vec())]),
        ..Entry::new(b'x', "p")
    };
    raw(
        cases,
        "end-after-records",
        SameTree,
        one().entry(lonely).unfinished(),
    );
}
