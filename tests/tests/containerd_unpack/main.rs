//! The tree of a layer's tar equals what containerd's own code unpacks from the same tar.
//!
//! A small Go program, built from Debian's containerd sources, unpacks odd tars and random ones;
//! the scan must give the same tree, or refuse what containerd refuses. Needs root, Go and the
//! package golang-github-containerd-containerd-dev (`scripts/setup tests`).

mod difference;
mod hostile;
mod odd;
mod random;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use larder_proto::scan::{LayerScan, ScanError, ScanOptions, ScannedLayer};

/// What both sides must do with a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Both unpack it, to equal trees.
    SameTree,
    /// Both refuse it.
    BothRefuse,
    /// containerd unpacks it; the scan refuses it on purpose.
    OnlyWeRefuse,
    /// Whatever containerd does.
    AsContainerd,
}

struct Case {
    name: String,
    tar: Vec<u8>,
    expected: Expected,
}

/// Promise: a layer mounted lazily shows the files that containerd would have unpacked, for every
/// kind of entry and order of entries we know of.
#[test]
fn odd_tars_give_the_tree_that_containerd_unpacks() {
    let problems = problems(&odd::cases());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Promise: the same for what nobody thought of. `LARDER_SEED` repeats a run.
#[test]
fn random_tars_give_the_tree_that_containerd_unpacks() {
    let seed = match std::env::var("LARDER_SEED") {
        Ok(seed) => seed.parse().expect("LARDER_SEED is a number"),
        Err(_) => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(1, |since| {
                since.as_secs() ^ u64::from(since.subsec_nanos()) << 32
            }),
    };
    println!("LARDER_SEED={seed}");
    let problems = problems(&random::cases(seed, 600));
    assert!(
        problems.is_empty(),
        "LARDER_SEED={seed}\n{}",
        problems.join("\n")
    );
}

/// Unpacks all tars, scans them, and says where the results differ.
fn problems(cases: &[Case]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for case in cases {
        let path = folder.path().join(format!("{}.tar", case.name));
        std::fs::write(path, &case.tar).expect("the tar can be written");
    }
    let unpacked = unpack_with_containerd(folder.path());
    let mut problems = Vec::new();
    for case in cases {
        let theirs = &unpacked[&case.name];
        let directory = folder.path().join(&case.name);
        if let Some(problem) = compare(case, theirs, &directory) {
            let keep = std::env::temp_dir().join(format!("larder-differs-{}.tar", case.name));
            std::fs::write(&keep, &case.tar).expect("the tar can be kept");
            problems.push(format!(
                "{}: {problem} (kept as {})",
                case.name,
                keep.display()
            ));
        }
    }
    problems
}

fn compare(case: &Case, theirs: &Result<(), String>, directory: &Path) -> Option<String> {
    let ours = scan(&case.tar);
    match (case.expected, theirs, ours) {
        (Expected::SameTree | Expected::AsContainerd, Ok(()), Ok(layer)) => {
            difference::between(&layer, &case.tar, directory)
        }
        (Expected::BothRefuse | Expected::AsContainerd, Err(_), Err(_))
        | (Expected::OnlyWeRefuse, Ok(()), Err(_)) => None,
        (expected, theirs, ours) => Some(format!(
            "expected {expected:?}; containerd: {theirs:?}; we: {:?}",
            ours.map(|layer| format!("{} nodes", layer.tree.nodes.len()))
        )),
    }
}

fn scan(tar: &[u8]) -> Result<ScannedLayer, ScanError> {
    let mut scan = LayerScan::new(ScanOptions::default());
    let mut cuts = Vec::new();
    scan.feed(tar, &mut cuts)?;
    scan.finish(&mut cuts)
}

fn unpack_with_containerd(folder: &Path) -> BTreeMap<String, Result<(), String>> {
    let program = folder.join("unpack");
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/containerd_unpack/unpack.go"
    );
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(source)
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOFLAGS", "")
        .output()
        .expect("go is installed (scripts/setup tests)");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let output = Command::new(&program)
        .arg(folder)
        .output()
        .expect("the program runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, result)| {
            let result = match result {
                "ok" => Ok(()),
                failed => Err(failed.to_owned()),
            };
            (name.to_owned(), result)
        })
        .collect()
}
