//! Names that want out, want to be hidden, or want to be two things.

use super::Answer::{Broken, Copied, SameTree};
use super::{Table, up};
use crate::tar::{Entry, set_checksum};

pub(super) fn fill(table: &mut Table, canary: &str) {
    outward(table, canary);
    strange(table);
    long(table);
    devices(table);
    whiteouts(table, canary);
}

fn outward(table: &mut Table, canary: &str) {
    let up = up();
    table.add(
        "dotted-name",
        SameTree,
        [Entry::file(format!("{up}{canary}/f"), "x")],
    );
    table.add(
        "absolute-name",
        SameTree,
        [Entry::file(format!("{canary}/f"), "x")],
    );
    table.add(
        "dots-inside",
        SameTree,
        [Entry::file(format!("a/../{up}{canary}/f"), "x")],
    );
    table.add(
        "doubled-slashes",
        SameTree,
        [Entry::file(format!("//{canary}//f"), "x")],
    );
    table.add(
        "directory-above",
        SameTree,
        [
            Entry::directory(format!("{up}{canary}")).mode(0o777),
            Entry::directory("..").mode(0o777),
        ],
    );
    table.add(
        "root-by-many-names",
        SameTree,
        [
            Entry::directory("/").mode(0o777),
            Entry::directory("./").mode(0o1777),
            Entry::file("", "x"),
            Entry::file(".", "x"),
            Entry::file("..", "x"),
            Entry::symlink("/", canary),
            Entry::file("after", "x"),
        ],
    );
    table.add(
        "backslashes",
        SameTree,
        [Entry::file("..\\..\\etc\\passwd", "x")],
    );
    // ustar's prefix field is put before the name: it has no say where either leads.
    let mut tar = crate::tar::TarBuilder::new()
        .entry(Entry::file("f", "x"))
        .finish();
    tar[345..348].copy_from_slice(b"../");
    let (head, _) = tar.split_first_chunk_mut::<512>().expect("a header");
    set_checksum(head);
    table.raw("dots-in-the-prefix", SameTree, tar);
}

fn strange(table: &mut Table) {
    table.add(
        "nul-in-a-record",
        Broken("malformed"),
        [Entry::file("f", "x").record("path", "a\0/../../b")],
    );
    table.add(
        "nul-in-a-name",
        SameTree,
        [Entry::file("visible\0/../hidden", "x")],
    );
    table.add(
        "terminal-escapes",
        SameTree,
        [
            Entry::file("\x1b]0;owned\x07", "x"),
            Entry::file("\u{202e}cod.exe", "x"),
            Entry::file("a\nb\rc", "x"),
        ],
    );
    table.add(
        "terminal-escapes-in-a-refusal",
        Broken("truncated"),
        [Entry::file("\x1b]0;owned\x07\u{202e}", "x").size(1 << 30)],
    );
    table.add(
        "not-utf8",
        SameTree,
        [Entry::file([0xff, 0xfe, b'/', 0xc3, 0x28], "x")],
    );
    table.add(
        "one-name-ten-thousand-times",
        SameTree,
        (0..10_000).map(|n| Entry::file("f", n.to_string())),
    );
    table.add(
        "file-and-directory-in-turn",
        SameTree,
        (0..200).map(|n| {
            if n % 2 == 0 {
                Entry::file("x", "x")
            } else {
                Entry::directory("x")
            }
        }),
    );
    table.add(
        "file-as-a-parent",
        Copied("not a directory"),
        [Entry::file("f", "x"), Entry::file("f/g", "x")],
    );
}

fn long(table: &mut Table) {
    let deep = |levels: usize| "d/".repeat(levels) + "f";
    table.add("depth-1000", SameTree, [Entry::file(deep(1_000), "x")]);
    table.add(
        "depth-100000",
        Copied("too long"),
        [Entry::file(deep(100_000), "x")],
    );
    table.add(
        "depth-100000-gnu",
        Copied("too long"),
        [Entry::file(deep(100_000), "x").gnu()],
    );
    table.add(
        "name-256",
        Copied("longer than"),
        [Entry::file("n".repeat(256), "x")],
    );
    // The dots come to nothing, but they have to be read.
    table.add(
        "half-a-megabyte-of-dots",
        SameTree,
        [Entry::file("a/../".repeat(100_000) + "f", "x")],
    );
    table.add(
        "symlink-target-4096",
        Copied("longer than"),
        [Entry::symlink("l", "t".repeat(4_096))],
    );
}

fn devices(table: &mut Table) {
    table.add(
        "devices-and-set-ids",
        SameTree,
        [
            Entry::new(b'4', "sda").device(8, 0).mode(0o666),
            Entry::new(b'3', "mem").device(1, 1).mode(0o666),
            Entry::new(b'6', "pipe").mode(0o666),
            Entry::file("root", "x").mode(0o6777),
            // What overlayfs reads as "removed".
            Entry::new(b'3', "zero").device(0, 0),
        ],
    );
    table.add(
        "device-number-beyond-16-bits",
        SameTree,
        [Entry::new(b'3', "c").gnu().device(0xfff, 0xf_ffff)],
    );
    table.add(
        "owners-at-the-ends",
        SameTree,
        [
            Entry::file("a", "x").owner(0x7fff_ffff, 0x8000_0000),
            Entry::file("b", "x").owner(0xffff_fffe, 0xffff_fffe),
        ],
    );
    table.add(
        "times-at-the-ends",
        SameTree,
        [
            Entry::file("a", "x").mtime(i64::MAX),
            Entry::file("b", "x").mtime(i64::MIN),
            Entry::file("c", "x").mtime(-1),
        ],
    );
}

fn whiteouts(table: &mut Table, canary: &str) {
    table.add(
        "whiteout-of-the-parent",
        Copied("whiteout"),
        [Entry::file("d/.wh...", ""), Entry::file("after", "x")],
    );
    table.add(
        "whiteout-below-a-symlink",
        SameTree,
        [
            Entry::symlink("l", canary),
            Entry::file("l/.wh.secret", ""),
            Entry::file("l/.wh..wh..opq", ""),
        ],
    );
    table.add(
        "whiteout-over-the-same-layer",
        Copied("whiteout"),
        [Entry::file("d/f", "x"), Entry::file(".wh.d", "")],
    );
}
