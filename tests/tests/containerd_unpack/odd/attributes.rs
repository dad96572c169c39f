//! Modes, owners, times, device numbers, extended attributes.

use larder_test_support::tar::Entry;

use super::{add, dir, file};
use crate::Case;
use crate::Expected::{BothRefuse, OnlyWeRefuse, SameTree};

pub(super) fn cases(cases: &mut Vec<Case>) {
    modes_and_owners(cases);
    times(cases);
    xattrs(cases);
    access_lists(cases);
}

fn modes_and_owners(cases: &mut Vec<Case>) {
    let modes = [
        0,
        0o777,
        0o4755,
        0o2755,
        0o1777,
        0o100_644,
        0o7000,
        0o7_777_777,
    ];
    for mode in modes {
        let entries = [
            file("f").mode(mode),
            dir("d").mode(mode),
            Entry::symlink("l", "f").mode(mode),
            Entry::new(b'6', "p").mode(mode),
            Entry::new(b'3', "c").mode(mode).device(1, 3),
            file("d/below").mode(0o600),
        ];
        add(cases, &format!("mode-{mode:o}"), SameTree, entries);
    }
    let ids = [
        1_000,
        2_097_151,
        2_097_152,
        0xffff_fffe,
        0xffff_ffff,
        0x1_0000_0005,
        -1,
        -2,
    ];
    for id in ids {
        let entries = [
            file("f").owner(id, 7),
            file("g").owner(7, id).gnu(),
            dir("d").owner(id, id),
            file("setgid/x"),
            dir("setgid").mode(0o2755).owner(3, 50),
            file("setgid/y").owner(id, id),
            Entry::file(".wh.w", "").owner(id, id),
        ];
        add(cases, &format!("owner-{id}"), SameTree, entries);
    }
    add(
        cases,
        "setgid-parent-of-implied",
        SameTree,
        [
            dir("d").mode(0o2755).owner(3, 50),
            file("d/implied/deeper/f"),
        ],
    );
    for (major, minor) in [
        (0, 0),
        (8, 1),
        (4_095, 1_048_575),
        (4_096, 1),
        (70_000, 0x20_0001),
    ] {
        let entries = [
            Entry::new(b'3', "c").device(major, minor),
            Entry::new(b'4', "b").device(major, minor).gnu(),
        ];
        add(cases, &format!("device-{major}-{minor}"), SameTree, entries);
    }
}

fn times(cases: &mut Vec<Case>) {
    let times = [
        "1.5",
        "1.123456789999",
        "1.",
        "-0.5",
        "-1",
        "-1.25",
        "0",
        "+7",
        "9223372036.854775807",
        "9223372036.854775808",
        "9223372037",
        "9223372036854775807",
        "-9223372036854775808.5",
    ];
    for (i, time) in times.into_iter().enumerate() {
        let entries = [
            file("f").record("mtime", time),
            dir("d").record("mtime", time),
            Entry::symlink("l", "f").record("mtime", time),
            file("d/below"),
        ];
        add(cases, &format!("time-{i}"), SameTree, entries);
    }
    for (i, time) in [".5", "1.x", "x", "1_0", " 1", "99999999999999999999"]
        .into_iter()
        .enumerate()
    {
        add(
            cases,
            &format!("time-bad-{i}"),
            BothRefuse,
            [file("f").record("mtime", time)],
        );
    }
    add(
        cases,
        "time-bad-atime",
        BothRefuse,
        [file("f").record("atime", "noon")],
    );
    add(
        cases,
        "time-empty",
        SameTree,
        [file("f").mtime(9).record("mtime", "")],
    );
    add(
        cases,
        "time-base256",
        SameTree,
        [
            file("f").gnu().mtime(-5),
            file("g").gnu().mtime(1 << 40),
            file("h").gnu().mtime(1 << 33),
        ],
    );
}

fn xattrs(cases: &mut Vec<Case>) {
    let v2 = [&0x0200_0001_u32.to_le_bytes()[..], &[0; 16]].concat();
    let capability = |entry: Entry| entry.xattr("security.capability", &v2);
    add(
        cases,
        "xattrs",
        SameTree,
        [
            file("f")
                .xattr("user.a", "1")
                .xattr("user.empty", "")
                .xattr("security.other", "x"),
            dir("d")
                .xattr("user.a", [0, 255])
                .xattr("system.unknown", "x")
                .xattr("com.apple.x", "x"),
            Entry::symlink("l", "f")
                .xattr("user.a", "dropped")
                .xattr("security.other", "kept"),
            Entry::new(b'6', "p")
                .xattr("user.a", "dropped")
                .xattr("security.other", "kept"),
            capability(file("c")),
            file("t")
                .xattr("trusted.other", "dropped")
                .xattr("plain", "dropped"),
            file("again").xattr("user.a", "1").xattr("user.a", "2"),
            file("foreign")
                .record("LIBARCHIVE.xattr.user.b", "eA")
                .record("SCHILY.acl.access", "u"),
        ],
    );
    add(
        cases,
        "xattrs-of-merged-directory",
        SameTree,
        [
            dir("d").xattr("user.a", "1").xattr("user.b", "1"),
            dir("d").xattr("user.b", "2"),
        ],
    );
    add(
        cases,
        "capability-lost-by-hard-link",
        SameTree,
        [
            capability(file("c")),
            Entry::hard_link("lost", "c"),
            capability(file("k")),
            capability(Entry::hard_link("kept", "k")),
        ],
    );
    add(
        cases,
        "capability-malformed",
        BothRefuse,
        [file("c").xattr("security.capability", "x")],
    );
    let v1 = [&0x0100_0001_u32.to_le_bytes()[..], &[0; 8]].concat();
    add(
        cases,
        "capability-v1",
        BothRefuse,
        [file("c").xattr("security.capability", v1)],
    );
    let v3 = [
        &0x0300_0001_u32.to_le_bytes()[..],
        &[0; 16],
        &[232, 3, 0, 0],
    ]
    .concat();
    add(
        cases,
        "capability-v3",
        SameTree,
        [file("c").xattr("security.capability", v3)],
    );
    add(
        cases,
        "xattr-without-name",
        BothRefuse,
        [file("f").xattr("", "x")],
    );
    add(
        cases,
        "xattr-user-alone",
        BothRefuse,
        [file("f").xattr("user.", "x")],
    );
    let long = format!("user.{}", "n".repeat(251));
    add(
        cases,
        "xattr-name-too-long",
        BothRefuse,
        [file("f").xattr(&long, "x")],
    );
    let big = vec![b'x'; (64 << 10) + 1];
    add(
        cases,
        "xattr-value-too-long",
        BothRefuse,
        [file("f").xattr("user.big", big)],
    );
    add(
        cases,
        "xattr-overlay",
        OnlyWeRefuse,
        [dir("d").xattr("trusted.overlay.opaque", "y")],
    );
    add(
        cases,
        "xattr-user-overlay",
        OnlyWeRefuse,
        [dir("d").xattr("user.overlay.opaque", "y")],
    );
}

/// An access control list as the kernel stores it: version, then tag, permissions, id.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        list.extend_from_slice(&tag.to_le_bytes());
        list.extend_from_slice(&permissions.to_le_bytes());
        list.extend_from_slice(&id.to_le_bytes());
    }
    list
}

fn access_lists(cases: &mut Vec<Case>) {
    const NONE: u32 = u32::MAX;
    const ACCESS: &str = "system.posix_acl_access";
    const DEFAULT: &str = "system.posix_acl_default";
    let full = list(&[
        (1, 6, NONE),
        (2, 7, 1000),
        (4, 4, NONE),
        (0x10, 7, NONE),
        (0x20, 4, NONE),
    ]);
    let base = list(&[(1, 6, NONE), (4, 4, NONE), (0x20, 4, NONE)]);
    for mode in [0o674, 0o644, 0o755, 0o000, 0o4711] {
        let entries = [
            file("f").mode(mode).xattr(ACCESS, &full),
            file("base").mode(mode).xattr(ACCESS, &base),
            dir("d").mode(mode).xattr(ACCESS, &full),
            Entry::symlink("l", "f").xattr(ACCESS, &full),
            Entry::hard_link("h", "f").mode(0o600),
            Entry::new(b'6', "p").mode(mode).xattr(ACCESS, &full),
        ];
        add(cases, &format!("acl-mode-{mode:o}"), SameTree, entries);
    }
    add(
        cases,
        "acl-merged",
        SameTree,
        [
            dir("d").mode(0o770).xattr(ACCESS, &full),
            dir("d").mode(0o705),
            dir("e").mode(0o770).xattr(ACCESS, &full),
            dir("e").mode(0o705).xattr(ACCESS, &base),
            dir("g").mode(0o770).xattr(ACCESS, &full),
            dir("g").mode(0o705).xattr(ACCESS, ""),
        ],
    );
    add(
        cases,
        "acl-default-without-children",
        SameTree,
        [dir("d").xattr(DEFAULT, &full)],
    );
    add(
        cases,
        "acl-default-removed",
        SameTree,
        [
            dir("d").xattr(DEFAULT, &full),
            dir("d").xattr(DEFAULT, ""),
            file("d/f"),
        ],
    );
    add(
        cases,
        "acl-default-with-children",
        SameTree,
        [
            dir("d").xattr(DEFAULT, &full),
            file("d/f").mode(0o640),
            file("d/implied/deeper/g"),
            dir("d/listed").mode(0o2711),
            Entry::new(b'6', "d/p").mode(0o666),
            Entry::file("d/.wh.hidden", ""),
            file("d/own").mode(0o640).xattr(ACCESS, &base),
            Entry::hard_link("d/link", "d/f").mode(0o7),
        ],
    );
    add(
        cases,
        "acl-default-with-symlink",
        SameTree,
        [dir("d").xattr(DEFAULT, &full), Entry::symlink("d/l", "x")],
    );
    add(
        cases,
        "acl-default-on-file",
        BothRefuse,
        [file("f").xattr(DEFAULT, &full)],
    );
    add(
        cases,
        "acl-version",
        SameTree,
        [file("f").xattr(ACCESS, [1, 0, 0, 0, 0, 0, 0, 0])],
    );
    add(
        cases,
        "acl-short",
        BothRefuse,
        [file("f").xattr(ACCESS, [2, 0, 0, 0, 1])],
    );
    let disorder = list(&[(4, 4, NONE), (1, 6, NONE), (0x20, 4, NONE)]);
    add(
        cases,
        "acl-disorder",
        BothRefuse,
        [file("f").xattr(ACCESS, disorder)],
    );
    let no_mask = list(&[(1, 6, NONE), (2, 7, 1000), (4, 4, NONE), (0x20, 4, NONE)]);
    add(
        cases,
        "acl-without-mask",
        BothRefuse,
        [file("f").xattr(ACCESS, no_mask)],
    );
}
