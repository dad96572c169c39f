//! Archives of real writers: GNU tar in all its formats, Python's tarfile.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use larder_proto::scan::ScannedLayer;
use larder_proto::tree::{Kind, Node};

use super::scan;

/// A folder with what each format can hold.
fn sample(folder: &Path) {
    let deep = folder
        .join("deep")
        .join("d".repeat(60))
        .join("e".repeat(60));
    std::fs::create_dir_all(&deep).expect("folders");
    std::fs::write(deep.join("file"), vec![7; 70_000]).expect("a file");
    std::fs::write(folder.join("small"), "small").expect("a file");
    std::fs::hard_link(folder.join("small"), folder.join("zlink")).expect("a link");
    symlink("small", folder.join("symlink")).expect("a symlink");
    let sparse = std::fs::File::create(folder.join("sparse")).expect("a file");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 1 << 20).expect("data");
    sparse.set_len(3 << 20).expect("a hole");
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn node<'a>(layer: &'a ScannedLayer, path: &str) -> &'a Node {
    let id = layer.tree.find(path.as_bytes());
    layer.tree.node(id.unwrap_or_else(|| panic!("no {path}")))
}

/// What a reader sees of a file.
fn content(tar: &[u8], node: &Node) -> Vec<u8> {
    let Kind::Regular { size, extents } = &node.kind else {
        panic!("{node:?} is no file");
    };
    let mut bytes = vec![0; usize::try_from(*size).expect("a small file")];
    for extent in extents {
        let [to, from, len] = [extent.file_offset, extent.tar_offset, extent.len]
            .map(|n| usize::try_from(n).expect("a small file"));
        bytes[to..to + len].copy_from_slice(&tar[from..from + len]);
    }
    bytes
}

fn check(tar: &[u8], folder: &Path) -> ScannedLayer {
    let (layer, _) = scan(tar).expect("a tar of a real writer");
    let deep = format!("deep/{}/{}/file", "d".repeat(60), "e".repeat(60));
    for path in [deep.as_str(), "small", "zlink", "sparse"] {
        let expected = std::fs::read(folder.join(path)).expect("the file");
        assert!(
            content(tar, node(&layer, path)) == expected,
            "{path} differs"
        );
    }
    assert_eq!(layer.tree.find(b"small"), layer.tree.find(b"zlink"));
    assert_eq!(
        node(&layer, "symlink").kind,
        Kind::Symlink(b"small".to_vec())
    );
    assert!(layer.implied.is_empty());
    layer
}

/// Promise: what GNU tar writes is read in every format it has.
#[test]
fn archives_of_gnu_tar_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    sample(folder.path());
    for format in ["ustar", "gnu", "oldgnu", "pax", "posix"] {
        let format = format!("--format={format}");
        let tar = run(
            "tar",
            &["--create", "--sort=name", &format, "."],
            folder.path(),
        );
        check(&tar, folder.path());
    }
}

/// Promise: sparse files of GNU tar keep their holes, in each version of the format.
#[test]
fn sparse_files_of_gnu_tar_keep_their_holes() {
    let folder = tempfile::tempdir().expect("a folder");
    sample(folder.path());
    for version in ["0.0", "0.1", "1.0"] {
        let version = format!("--sparse-version={version}");
        let arguments = [
            "--create",
            "--sort=name",
            "--format=pax",
            "--sparse",
            &version,
            ".",
        ];
        let tar = run("tar", &arguments, folder.path());
        let layer = check(&tar, folder.path());
        let Kind::Regular { size, extents } = &node(&layer, "sparse").kind else {
            panic!("not a file");
        };
        assert_eq!(*size, 3 << 20);
        let stored: u64 = extents.iter().map(|extent| extent.len).sum();
        assert!(
            stored < 1 << 17,
            "{stored} bytes of a file with 4 are stored"
        );
        assert!(tar.len() < 1 << 20);
    }
}

/// Promise: what Python's tarfile writes is read, whatever the format.
#[test]
fn archives_of_python_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    sample(folder.path());
    for format in ["GNU", "PAX"] {
        let program = format!(
            "import sys, tarfile\n\
             with tarfile.open(fileobj=sys.stdout.buffer, mode='w|', \
             format=tarfile.{format}_FORMAT) as tar: tar.add('.')"
        );
        let tar = run("python3", &["-c", &program], folder.path());
        let (layer, _) = scan(&tar).expect("a tar of a real writer");
        assert_eq!(layer.tree.find(b"small"), layer.tree.find(b"zlink"));
        assert!(content(&tar, node(&layer, "sparse"))[1 << 20..].starts_with(b"data"));
    }
}
