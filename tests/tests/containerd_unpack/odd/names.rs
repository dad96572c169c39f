//! Names that are absolute, unclean, too long, repeated, or leave the layer.

use larder_test_support::tar::Entry;

use super::{add, dir, file};
use crate::Case;
use crate::Expected::{BothRefuse, SameTree};

pub(super) fn cases(cases: &mut Vec<Case>) {
    add(
        cases,
        "root-entries",
        SameTree,
        [
            dir("./").mode(0o700).owner(9, 9),
            dir("/").mode(0o700),
            dir(".").xattr("user.a", "x"),
            dir("..").mode(0o700),
            dir("a/..").mode(0o700),
            Entry::file("", "no name"),
            file("../.."),
            file("f"),
        ],
    );
    add(
        cases,
        "unclean-names",
        SameTree,
        [
            file("/absolute"),
            file("../escape"),
            file("../../../deep/escape"),
            file("/../../slash"),
            file("a//b"),
            file("./c/./d"),
            file("e/../g"),
            file("h/i/../../../j"),
            file("k/"),
            dir("m//"),
            file("...").mode(0o600),
            file(".hidden/..data"),
            file(" space \n\t"),
        ],
    );
    add(
        cases,
        "not-utf8",
        SameTree,
        [
            Entry::file([b'f', 0xff, 0xfe], "x"),
            Entry::symlink([0xc3], [0xe9, 0xff]),
            Entry::file([0xc3; 120], "pax"),
        ],
    );
    add(
        cases,
        "name-255",
        SameTree,
        [
            file(&"n".repeat(255)),
            file(&format!("{}/f", "d".repeat(255))),
        ],
    );
    add(cases, "name-256", BothRefuse, [file(&"n".repeat(256))]);
    add(
        cases,
        "parent-256",
        BothRefuse,
        [file(&format!("{}/f", "d".repeat(256)))],
    );
    add(
        cases,
        "path-too-long",
        BothRefuse,
        [file(&"dir/".repeat(1_100))],
    );
    add(
        cases,
        "sparse-name-with-nul",
        BothRefuse,
        [file("f")
            .record("GNU.sparse.map", "0,1")
            .record("GNU.sparse.numblocks", "1")
            .record("GNU.sparse.name", "a\0b")],
    );
    add(
        cases,
        "implied",
        SameTree,
        [
            file("a/b/c/f"),
            dir("a/b").mode(0o711).owner(1, 1),
            file("x/y/f"),
            file("x"),
            file("p/q/f"),
            dir("p").mode(0o700),
        ],
    );
    add(
        cases,
        "file-as-parent",
        BothRefuse,
        [file("a"), file("a/b")],
    );
    add(
        cases,
        "file-as-grandparent",
        BothRefuse,
        [file("a"), file("a/b/c")],
    );
    for (i, first) in kinds().into_iter().enumerate() {
        for (j, second) in kinds().into_iter().enumerate() {
            let name = format!("repeated-{i}-{j}");
            add(
                cases,
                &name,
                SameTree,
                [file("other"), first.clone(), second.mtime(77)],
            );
        }
    }
}

fn kinds() -> [Entry; 6] {
    [
        file("x").mode(0o601),
        dir("x").mode(0o701).mtime(77),
        Entry::symlink("x", "other"),
        Entry::hard_link("x", "other"),
        Entry::new(b'6', "x"),
        Entry::new(b'3', "x").device(1, 3),
    ]
}
