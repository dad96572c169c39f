//! Links that want to lead out of the layer, or in circles.

use super::Answer::{Copied, SameTree};
use super::{Table, up};
use crate::tar::Entry;

pub(super) fn fill(table: &mut Table, canary: &str) {
    symlinks(table, canary);
    hard_links(table, canary);
}

fn symlinks(table: &mut Table, canary: &str) {
    let up = up();
    // CVE-2021-29136: what comes after would be unpacked where the link leads.
    table.add(
        "symlink-named-dot",
        SameTree,
        [
            Entry::symlink(".", canary),
            Entry::directory("."),
            Entry::file("f", "x"),
        ],
    );
    table.add(
        "symlink-named-dot-slash",
        SameTree,
        [Entry::symlink("./", canary), Entry::file("./f", "x")],
    );
    // CVE-2026-33056: the mode of the directory would go to where the link leads.
    table.add(
        "directory-over-a-symlink",
        SameTree,
        [
            Entry::symlink("a", canary),
            Entry::directory("a").mode(0o777),
            Entry::file("a/f", "x"),
        ],
    );
    table.add(
        "file-below-an-absolute-symlink",
        SameTree,
        [Entry::symlink("l", canary), Entry::file("l/f", "x")],
    );
    table.add(
        "file-below-a-dotted-symlink",
        SameTree,
        [
            Entry::symlink("l", format!("{up}{canary}")),
            Entry::file("l/f", "x"),
            Entry::symlink("l/m", ".."),
            Entry::file("l/m/m/m/f", "x"),
        ],
    );
    table.add(
        "file-over-a-symlink",
        SameTree,
        [
            Entry::symlink("l", format!("{canary}/secret")),
            Entry::file("l", "x"),
        ],
    );
    table.add(
        "symlink-to-itself",
        Copied("symbolic links"),
        [Entry::symlink("a", "a"), Entry::file("a/f", "x")],
    );
    table.add(
        "symlinks-in-a-circle",
        Copied("symbolic links"),
        [
            Entry::symlink("a", "b/x"),
            Entry::symlink("b", "a/x"),
            Entry::file("a/f", "x"),
        ],
    );
    let chain = (0..300).map(|n| Entry::symlink(format!("l{n}"), format!("l{}", n + 1)));
    table.add(
        "symlinks-300-in-a-row",
        Copied("symbolic links"),
        chain.chain([Entry::directory("l300"), Entry::file("l0/f", "x")]),
    );
    table.add(
        "symlink-into-proc",
        SameTree,
        [
            Entry::symlink("p", "/proc/self/root"),
            Entry::file("p/f", "x"),
            Entry::symlink("q", "/proc/1/cwd"),
            Entry::directory("q/d"),
        ],
    );
}

fn hard_links(table: &mut Table, canary: &str) {
    let secret = format!("{canary}/secret");
    let up = up();
    for (name, target) in [
        ("hard-link-to-outside", secret.clone()),
        ("hard-link-to-outside-by-dots", format!("{up}{secret}")),
        ("hard-link-to-proc", "/proc/self/exe".to_owned()),
        ("hard-link-to-passwd", "etc/passwd".to_owned()),
    ] {
        table.add(name, Copied("hard link"), [Entry::hard_link("h", target)]);
    }
    table.add(
        "hard-link-through-a-symlink-out",
        Copied("hard link"),
        [
            Entry::symlink("l", canary),
            Entry::hard_link("h", "l/secret"),
        ],
    );
    table.add(
        "hard-link-to-itself",
        Copied("hard link"),
        [Entry::hard_link("h", "h")],
    );
    table.add(
        "hard-links-in-a-circle",
        Copied("hard link"),
        [Entry::hard_link("a", "b"), Entry::hard_link("b", "a")],
    );
    table.add(
        "hard-link-to-a-directory",
        Copied("hard link"),
        [Entry::directory("d"), Entry::hard_link("h", "d")],
    );
    table.add(
        "hard-link-to-the-root",
        Copied("hard link"),
        [Entry::hard_link("h", ".")],
    );
    table.add(
        "hard-link-before-its-target",
        Copied("hard link"),
        [Entry::hard_link("h", "f"), Entry::file("f", "x")],
    );
    // What is written to the name must not arrive where the link leads.
    table.add(
        "file-over-a-hard-link-to-a-symlink-out",
        SameTree,
        [
            Entry::symlink("s", secret),
            Entry::hard_link("h", "s").mode(0o777).owner(7, 7),
            Entry::file("h", "x"),
        ],
    );
    let many = (0..2_000).map(|n| Entry::hard_link(format!("h{n}"), "f"));
    table.add(
        "two-thousand-hard-links",
        SameTree,
        [Entry::file("f", "x")].into_iter().chain(many),
    );
}
