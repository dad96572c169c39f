//! Tars that want memory, time, or to be two things at once.

use std::time::{Duration, Instant};

use larder_proto::scan::ScanError;
use larder_test_support::tar::{Entry, TarBuilder};

use super::{scan, tar_of};

fn verdict(tar: &[u8]) -> String {
    match scan(tar) {
        Ok(_) => "accepted".to_owned(),
        Err(error @ ScanError::Malformed { .. }) => format!("malformed: {error}"),
        Err(error @ ScanError::Unrepresentable { .. }) => format!("unrepresentable: {error}"),
    }
}

/// Promise: bad input gets one clear sentence that names the entry.
#[test]
fn refusals_name_the_entry_and_the_reason() {
    let overlay = ("trusted.overlay.opaque", "y");
    let cases = [
        (
            tar_of([Entry::file("etc/x", "abc").size(1).record("size", "3")]),
            "malformed: broken tar, at or after entry \"etc/x\": the PAX size 3 contradicts the size 1",
        ),
        (
            b"\x1f\x8b not a tar".repeat(100),
            "malformed: broken tar, at the first entry: this is not a tar",
        ),
        (
            tar_of([Entry::file("a", ""), Entry::hard_link("b", "later")]),
            "unrepresentable: cannot be mounted lazily, entry \"b\": it is a hard link to \"later\"",
        ),
        (
            tar_of([Entry::directory("d").xattr(overlay.0, overlay.1)]),
            "unrepresentable: cannot be mounted lazily, entry \"d\": it carries the overlayfs attribute",
        ),
        (
            TarBuilder::new()
                .entry(Entry::file("cut", vec![1; 600]).size(5_000))
                .unfinished(),
            "malformed: broken tar, at or after entry \"cut\": the tar is truncated",
        ),
        (
            tar_of([Entry::new(b'S', "old").gnu()]),
            "unrepresentable: cannot be mounted lazily, entry \"old\": it is an old GNU sparse file",
        ),
    ];
    for (tar, expected) in cases {
        let verdict = verdict(&tar);
        assert!(verdict.starts_with(expected), "{verdict}");
    }
}

/// Promise: records that pile up before one entry are bounded, though Go's reader takes them.
#[test]
fn endless_records_before_one_entry_are_refused() {
    let records = Entry {
        data: larder_test_support::tar::records(&[(b"comment".to_vec(), vec![b'x'; 900_000])]),
        ..Entry::new(b'x', "p")
    };
    let tar = tar_of(
        (0..6)
            .map(|_| records.clone())
            .chain([Entry::file("f", "")]),
    );
    assert!(
        verdict(&tar).contains("headers and records of one entry"),
        "{}",
        verdict(&tar)
    );
}

/// Promise: attributes that repeat in every entry cannot fill the memory.
#[test]
fn metadata_beyond_an_index_is_refused() {
    let big = Entry::file("f", "").xattr("user.big", vec![b'x'; 60_000]);
    let mut tar = Vec::new();
    let one = TarBuilder::new().entry(big).unfinished();
    while tar.len() < 140 << 20 {
        tar.extend_from_slice(&one);
    }
    assert!(verdict(&tar).contains("more metadata"), "{}", verdict(&tar));
}

/// Promise: symlinks that lead through each other cost bounded time.
#[test]
fn tangled_symlinks_take_bounded_time() {
    let long = "x/../".repeat(700);
    let mut entries = vec![Entry::directory("x")];
    for i in 0..250 {
        entries.push(Entry::symlink(format!("l{i}"), format!("{long}l{}", i + 1)));
    }
    entries.push(Entry::directory("l250"));
    for i in 0..2_000 {
        entries.push(Entry::file(format!("l0/{i}/f"), ""));
    }
    let begun = Instant::now();
    let verdict = verdict(&tar_of(entries));
    assert!(
        begun.elapsed() < Duration::from_mins(1),
        "{:?}",
        begun.elapsed()
    );
    assert!(
        verdict == "accepted" || verdict.contains("symbolic links"),
        "{verdict}"
    );
}
