//! Hard links, symlinks, entries below symlinks.

use larder_test_support::tar::Entry;

use super::{add, dir, file};
use crate::Case;
use crate::Expected::{AsContainerd, BothRefuse, SameTree};

pub(super) fn cases(cases: &mut Vec<Case>) {
    hard_links(cases);
    refused_hard_links(cases);
    below_symlinks(cases);
    replaced_directories(cases);
}

fn hard_links(cases: &mut Vec<Case>) {
    add(
        cases,
        "hard-link",
        SameTree,
        [
            file("d/f")
                .mode(0o600)
                .owner(1, 2)
                .mtime(3)
                .xattr("user.a", "old"),
            Entry::hard_link("g", "d/f")
                .mode(0o4711)
                .owner(4, 5)
                .mtime(6)
                .xattr("user.b", "new"),
            Entry::hard_link("h", "./d//../d/f").mode(0o640),
            Entry::hard_link("i", "/d/f"),
            Entry::hard_link("j", "../../d/f"),
        ],
    );
    add(
        cases,
        "hard-link-keeps-the-old-inode",
        SameTree,
        [
            Entry::file("f", "old"),
            Entry::hard_link("g", "f"),
            Entry::file("f", "new"),
            Entry::hard_link("h", "f"),
            dir("g"),
        ],
    );
    add(
        cases,
        "hard-link-to-others",
        SameTree,
        [
            Entry::symlink("l", "nowhere"),
            Entry::hard_link("l2", "l").mode(0o600).owner(3, 4).mtime(5),
            Entry::new(b'6', "p"),
            Entry::hard_link("p2", "p").mode(0o600),
            Entry::file(".wh.w", ""),
            Entry::hard_link("w2", "w").mode(0o640),
        ],
    );
    add(
        cases,
        "hard-link-through-symlink",
        SameTree,
        [
            file("real/f"),
            Entry::symlink("l", "real"),
            Entry::symlink("abs", "/real"),
            Entry::symlink("real/to-f", "f"),
            Entry::hard_link("a", "l/f"),
            Entry::hard_link("b", "abs/f"),
            Entry::hard_link("c", "l/to-f"),
            Entry::hard_link("d", "l/to-f/"),
            Entry::hard_link("e", "real/f/."),
            Entry::hard_link("abs/g", "l/../real/f"),
        ],
    );
}

fn refused_hard_links(cases: &mut Vec<Case>) {
    for (name, target) in [
        ("forward", "later"),
        ("itself", "x"),
        ("directory", "d"),
        ("root", "/"),
        ("dot", "."),
        ("dots", ".."),
        ("none", ""),
        ("below-file", "f/x"),
        ("dots-below", "d/.."),
        ("outside", "../../../../etc/passwd"),
        ("whiteout-name", ".wh.f"),
    ] {
        let entries = [
            file("f"),
            dir("d"),
            file("x"),
            Entry::hard_link("x", target),
            file("later"),
        ];
        add(cases, &format!("hard-link-{name}"), BothRefuse, entries);
    }
    add(
        cases,
        "hard-link-below-what-it-replaces",
        BothRefuse,
        [file("d/f"), Entry::hard_link("d", "d/f")],
    );
}

fn below_symlinks(cases: &mut Vec<Case>) {
    add(
        cases,
        "below-symlinks",
        SameTree,
        [
            dir("usr/lib"),
            Entry::symlink("lib", "usr/lib"),
            Entry::symlink("abs", "/usr/lib"),
            Entry::symlink("up", "../../../usr/lib"),
            Entry::symlink("usr/back", ".."),
            Entry::symlink("dangling", "made/on/demand"),
            file("lib/a"),
            file("abs/b"),
            file("up/c"),
            file("usr/back/d"),
            file("dangling/e"),
            file("lib/new/f"),
            dir("abs/new").mode(0o700),
            file("usr/back/lib/g"),
            Entry::file("lib/.wh.hidden", ""),
            Entry::file("abs/.wh..wh..opq", ""),
        ],
    );
    add(
        cases,
        "symlink-chain-with-dots",
        AsContainerd,
        [
            dir("c/d"),
            Entry::symlink("a", "b"),
            Entry::symlink("b", "c/d"),
            Entry::symlink("c/d/l", "../z"),
            file("a/l/f"),
        ],
    );
    add(
        cases,
        "symlink-chain-absolute",
        AsContainerd,
        [
            Entry::symlink("l1", "l2"),
            Entry::symlink("l2", "/no-such-folder-anywhere"),
            file("l1/x/y"),
        ],
    );
    add(
        cases,
        "symlink-loop",
        BothRefuse,
        [
            Entry::symlink("a", "b"),
            Entry::symlink("b", "a"),
            file("a/f"),
        ],
    );
    add(
        cases,
        "symlink-to-itself",
        BothRefuse,
        [Entry::symlink("a", "a"), file("a/f")],
    );
    add(
        cases,
        "symlink-to-file",
        BothRefuse,
        [file("f"), Entry::symlink("l", "f"), file("l/x")],
    );
    add(
        cases,
        "symlink-to-root",
        SameTree,
        [Entry::symlink("r", "/"), file("r/r/f")],
    );
    add(
        cases,
        "symlink-empty",
        BothRefuse,
        [Entry::symlink("l", "")],
    );
    add(
        cases,
        "symlink-4095",
        SameTree,
        [Entry::symlink("l", "t".repeat(4_095))],
    );
    add(
        cases,
        "symlink-4096",
        BothRefuse,
        [Entry::symlink("l", "t".repeat(4_096))],
    );
}

/// containerd sets the times of directories last, by their names, wherever these lead by then.
fn replaced_directories(cases: &mut Vec<Case>) {
    add(
        cases,
        "directory-becomes-file",
        SameTree,
        [dir("a"), file("a").mtime(5)],
    );
    add(
        cases,
        "directory-becomes-symlink",
        SameTree,
        [
            dir("b").mtime(7),
            dir("a").mtime(9),
            Entry::symlink("a", "b").mtime(5),
        ],
    );
    add(
        cases,
        "directory-becomes-symlink-to-file",
        SameTree,
        [
            file("f").mtime(1),
            dir("a").mtime(9),
            Entry::symlink("a", "f").mtime(5),
        ],
    );
    add(
        cases,
        "directory-and-child-become-file",
        BothRefuse,
        [dir("a"), dir("a/b"), file("a")],
    );
    add(
        cases,
        "directory-becomes-dangling",
        BothRefuse,
        [dir("a"), Entry::symlink("a", "none")],
    );
    add(
        cases,
        "file-becomes-directory",
        SameTree,
        [
            file("a"),
            dir("a"),
            file("a/b"),
            Entry::symlink("s", "a"),
            dir("s").mode(0o711),
            file("s/x"),
        ],
    );
    add(
        cases,
        "directory-removed-and-back",
        SameTree,
        [
            dir("a").mtime(5).xattr("user.a", "x"),
            file("a/gone"),
            file("a"),
            dir("a").mtime(6).mode(0o700),
            file("a/new"),
        ],
    );
}
