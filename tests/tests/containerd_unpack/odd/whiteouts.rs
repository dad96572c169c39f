//! Whiteouts and opaque directories.

use larder_test_support::tar::Entry;

use super::{add, dir, file};
use crate::Case;
use crate::Expected::{BothRefuse, SameTree};

pub(super) fn cases(cases: &mut Vec<Case>) {
    let hide = |name: &str| Entry::file(name, "").owner(3, 4);
    add(
        cases,
        "whiteouts",
        SameTree,
        [
            hide(".wh.a"),
            dir("d"),
            hide("d/.wh.b"),
            hide("implied/.wh.c"),
            Entry::directory(".wh.as-directory").mode(0o700),
            Entry::symlink(".wh.as-symlink", "x"),
            Entry::hard_link(".wh.as-link", "nowhere"),
            Entry::file(".wh.with-payload", "x".repeat(2_000)),
            hide(".wh..hidden"),
            hide(".wh. "),
            file("after"),
        ],
    );
    add(
        cases,
        "opaque",
        SameTree,
        [
            dir("d"),
            file("d/before"),
            hide("d/.wh..wh..opq"),
            file("d/after"),
            hide("d/.wh..wh..opq"),
            hide("implied/.wh..wh..opq"),
            hide(".wh..wh..opq"),
            dir("e"),
            hide("e/.wh..wh..opq"),
            file("e"),
            dir("e"),
            hide("merged/.wh..wh..opq"),
            dir("merged").mode(0o700),
        ],
    );
    add(
        cases,
        "aufs-metadata",
        SameTree,
        [
            dir(".wh..wh.plnk"),
            file(".wh..wh.plnk/123.456"),
            hide(".wh..wh.aufs"),
            dir("d"),
            hide("d/.wh..wh.orph"),
        ],
    );
    add(
        cases,
        "whiteout-then-entry",
        SameTree,
        [
            hide(".wh.a"),
            file("a"),
            hide(".wh.b"),
            dir("b"),
            file("b/below"),
        ],
    );
    for (name, refused) in [("none", ".wh."), ("dot", ".wh.."), ("dots", ".wh...")] {
        add(
            cases,
            &format!("whiteout-of-{name}"),
            BothRefuse,
            [hide(refused)],
        );
    }
    add(
        cases,
        "whiteout-over-file",
        BothRefuse,
        [file("a"), hide(".wh.a")],
    );
    add(
        cases,
        "whiteout-over-directory",
        BothRefuse,
        [file("a/b"), hide(".wh.a")],
    );
    add(
        cases,
        "whiteout-twice",
        BothRefuse,
        [hide(".wh.a"), hide(".wh.a")],
    );
    add(
        cases,
        "whiteout-then-child",
        BothRefuse,
        [hide(".wh.a"), file("a/b")],
    );
    add(
        cases,
        "whiteout-over-symlinked",
        BothRefuse,
        [file("d/a"), Entry::symlink("l", "d"), hide("l/.wh.a")],
    );
}
