//! `docs/FORMAT.md` is complete: `scripts/read-index.py`, written from it alone, lists and extracts
//! every layer of every test image as the layer's tar says.

#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_proto::scan::{LayerScan, ScanOptions, ScannedLayer};
use larder_proto::tree::{DeviceNumber, Extent, Kind, Node, NodeId, ROOT, Tree};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The repository.
fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Where `scripts/images` puts the test images.
fn images() -> PathBuf {
    let cache = std::env::var_os("LARDER_CACHE").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/larder");
    cache.unwrap_or_else(home).join("images")
}

/// The layer blobs with an index in the layout at `path`.
fn indexed_blobs(path: &Path) -> Vec<PathBuf> {
    let json =
        |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        path.join("blobs").join(digest.replace(':', "/"))
    };
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    let mut pending = array(&json(path.join("index.json"))["manifests"]);
    while let Some(descriptor) = pending.pop() {
        let manifest = json(blob(&descriptor));
        pending.extend(array(&manifest["manifests"]));
        let layers = array(&manifest["layers"]);
        let is_indexed = |layer: &&Value| layer["annotations"][annotation::INDEX].is_string();
        found.extend(layers.iter().filter(is_indexed).map(blob));
    }
    found
}

/// What `scripts/read-index.py` prints.
fn read_index(arguments: &[&OsStr]) -> String {
    let script = top().join("scripts/read-index.py");
    let output = Command::new(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A layer's tar, decompressed by `zstd`, and what our own scan makes of it.
fn scan(blob: &Path) -> (File, ScannedLayer) {
    let mut tar = tempfile::tempfile().unwrap();
    let status = Command::new("zstd")
        .args(["-dcq", "--sparse"])
        .stdin(File::open(blob).unwrap())
        .stdout(Stdio::from(tar.try_clone().unwrap()))
        .status();
    assert!(status.unwrap().success());
    let mut scan = LayerScan::new(ScanOptions::default());
    let (mut cuts, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    std::io::Seek::rewind(&mut tar).unwrap();
    loop {
        match tar.read(&mut buffer).unwrap() {
            0 => break,
            len => scan.feed(&buffer[..len], &mut cuts).unwrap(),
        }
    }
    let scanned = scan.finish(&mut cuts).unwrap();
    (tar, scanned)
}

/// A file as one line, and one for each extended attribute.
struct Entry {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    /// Of all but directories.
    links: Option<u64>,
    /// Device number, or size and digest.
    data: String,
    path: Vec<u8>,
    target: Option<Vec<u8>>,
    /// The first path of the same file.
    first: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Entry {
    fn print(&self, out: &mut Vec<String>) {
        let links = self
            .links
            .map_or_else(String::new, |links| format!(" {links}"));
        let target = self.target.as_deref().map(text);
        let target = target.map_or_else(String::new, |target| format!(" -> {target}"));
        let first = if self.first == self.path {
            String::new()
        } else {
            format!(" = /{}", text(&self.first))
        };
        let Self { mode, data, .. } = self;
        let ((uid, gid), (seconds, nanoseconds)) = (self.owner, self.mtime);
        let path = text(&self.path);
        out.push(format!(
            "{mode:06o} {uid}:{gid} {seconds}.{nanoseconds:09}{links}{data} /{path}{target}{first}"
        ));
        let xattrs = self.xattrs.iter();
        out.extend(xattrs.map(|(name, value)| format!("  {}={}", text(name), text(value))));
    }
}

fn text(name: &[u8]) -> String {
    let plain = |byte: u8| byte > 32 && byte < 127 && byte != b'%';
    name.iter()
        .map(|&byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02x}")
            }
        })
        .collect()
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let separator: &[u8] = if directory.is_empty() { b"" } else { b"/" };
    [directory, separator, name].concat()
}

/// The lines of a tree whose data lies in `tar`.
fn lines_of_tree(tree: &Tree, tar: &File) -> Vec<String> {
    let mut links: HashMap<NodeId, u64> = HashMap::new();
    for node in reachable(tree).iter().map(|(_, id)| tree.node(*id)) {
        if let Kind::Directory(entries) = &node.kind {
            for id in entries.values() {
                *links.entry(*id).or_default() += 1;
            }
        }
    }
    let mut first: HashMap<NodeId, Vec<u8>> = HashMap::new();
    let mut out = Vec::new();
    for (path, id) in reachable(tree) {
        let node = tree.node(id);
        let is_directory = matches!(node.kind, Kind::Directory(_));
        let entry = Entry {
            mode: u32::from(node.mode) | type_bits(&node.kind),
            owner: (node.uid, node.gid),
            mtime: (node.mtime.seconds, node.mtime.nanoseconds.into()),
            links: (!is_directory).then(|| links[&id]),
            data: data_of_node(node, tar),
            first: first.entry(id).or_insert_with(|| path.clone()).clone(),
            path,
            target: match &node.kind {
                Kind::Symlink(target) => Some(target.clone()),
                _ => None,
            },
            xattrs: node.xattrs.clone(),
        };
        entry.print(&mut out);
    }
    out
}

/// Every path of a tree, outer before inner, with its node.
fn reachable(tree: &Tree) -> Vec<(Vec<u8>, NodeId)> {
    let (mut found, mut pending) = (Vec::new(), vec![(Vec::new(), ROOT)]);
    while let Some((path, id)) = pending.pop() {
        if let Kind::Directory(entries) = &tree.node(id).kind {
            let entries = entries.iter().rev();
            pending.extend(entries.map(|(name, &id)| (joined(&path, name), id)));
        }
        found.push((path, id));
    }
    found
}

fn type_bits(kind: &Kind) -> u32 {
    match kind {
        Kind::Directory(_) => 0o040_000,
        Kind::Regular { .. } => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
        Kind::CharDevice(_) => 0o020_000,
        Kind::BlockDevice(_) => 0o060_000,
        Kind::Fifo => 0o010_000,
        Kind::Socket => 0o140_000,
    }
}

fn data_of_node(node: &Node, tar: &File) -> String {
    match &node.kind {
        Kind::Regular { size, extents } => data_of_file(*size, extents, tar),
        Kind::CharDevice(DeviceNumber { major, minor })
        | Kind::BlockDevice(DeviceNumber { major, minor }) => format!(" {major}:{minor}"),
        _ => String::new(),
    }
}

/// Size and digest of a file of `size` bytes, whose pieces lie at `extents` in `source`.
fn data_of_file(size: u64, extents: &[Extent], source: &File) -> String {
    let mut buffer = vec![0; 1 << 20];
    let zeros = vec![0; 1 << 20];
    let step = |left: u64| usize::try_from(left.min(1 << 20)).unwrap();
    let (mut digest, mut at) = (Sha256::new(), 0);
    let end = Extent {
        file_offset: size,
        tar_offset: 0,
        len: 0,
    };
    for extent in extents.iter().chain([&end]) {
        while at < extent.file_offset {
            let len = step(extent.file_offset - at);
            digest.update(&zeros[..len]);
            at += len as u64;
        }
        while at < extent.file_offset + extent.len {
            let len = step(extent.file_offset + extent.len - at);
            let offset = extent.tar_offset + (at - extent.file_offset);
            source.read_exact_at(&mut buffer[..len], offset).unwrap();
            digest.update(&buffer[..len]);
            at += len as u64;
        }
    }
    let digest = Digest::from_bytes(digest.finalize().into());
    format!(" {size} {}", digest.hex())
}

/// The lines of what lies at `root`.
fn lines_of_directory(root: &Path) -> Vec<String> {
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    let (mut out, mut pending) = (Vec::new(), vec![Vec::new()]);
    while let Some(path) = pending.pop() {
        let at = root.join(OsStr::from_bytes(&path));
        let metadata = fs::symlink_metadata(&at).unwrap();
        if metadata.is_dir() {
            let entries = fs::read_dir(&at)
                .unwrap()
                .map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = entries.collect();
            names.sort_unstable();
            let names = names.iter().rev();
            pending.extend(names.map(|name| joined(&path, name.as_bytes())));
        }
        let whole = Extent {
            file_offset: 0,
            tar_offset: 0,
            len: metadata.len(),
        };
        let rdev = metadata.rdev();
        let data = match metadata.mode() & 0o170_000 {
            0o100_000 => data_of_file(metadata.len(), &[whole], &File::open(&at).unwrap()),
            0o020_000 | 0o060_000 => {
                format!(" {}:{}", rustix::fs::major(rdev), rustix::fs::minor(rdev))
            }
            _ => String::new(),
        };
        let target = metadata.is_symlink().then(|| fs::read_link(&at).unwrap());
        let entry = Entry {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            links: (!metadata.is_dir()).then(|| metadata.nlink()),
            data,
            first: first
                .entry(metadata.ino())
                .or_insert_with(|| path.clone())
                .clone(),
            path,
            target: target.map(|target| target.as_os_str().as_bytes().to_vec()),
            xattrs: xattrs(&at),
        };
        entry.print(&mut out);
    }
    out
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(len);
        (name.to_vec(), value)
    };
    names.map(value).collect()
}

fn assert_same(what: &str, expected: &[String], found: &[String]) {
    let lines = expected.len().max(found.len());
    if let Some(at) = (0..lines).find(|&at| expected.get(at) != found.get(at)) {
        let (expected, found) = (expected.get(at), found.get(at));
        panic!(
            "{what}: line {}: expected {expected:?}, found {found:?}",
            at + 1
        );
    }
}

/// Converts the image `name` to a layout in `scratch`; returns the blobs with an index.
fn convert(name: &str, scratch: &Path) -> Vec<PathBuf> {
    let layout = scratch.join("layout");
    let from = format!("oci:{}:latest", images().join(name).display());
    let to = format!("oci:{}:latest", layout.display());
    let arguments = ["larder", "convert", &from, &to].map(OsString::from);
    let code = larder::cli::run(arguments);
    assert_eq!(code, ExitCode::SUCCESS, "{name}");
    indexed_blobs(&layout)
}

fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("read-index-").tempdir().unwrap()
}

/// Converts one image and reads each of its layers; returns how many there were.
fn read_every_layer(name: &str) -> usize {
    let scratch = scratch();
    let blobs = convert(name, scratch.path());
    for (i, blob) in blobs.iter().enumerate() {
        let what = format!("{name}, layer {i}");
        let (tar, scanned) = scan(blob);
        let expected = lines_of_tree(&scanned.tree, &tar);
        let listing = read_index(&["sums".as_ref(), blob.as_ref()]);
        let strip = |line: &str| line.strip_suffix(" implied").unwrap_or(line).to_owned();
        let listed: Vec<_> = listing.lines().map(strip).collect();
        assert_same(&what, &expected, &listed);
        let implied = listing.lines().filter(|line| line.ends_with(" implied"));
        assert_eq!(implied.count(), scanned.implied.len(), "{what}");
        let to = scratch.path().join(i.to_string());
        fs::create_dir(&to).unwrap();
        read_index(&["extract".as_ref(), blob.as_ref(), to.as_ref()]);
        assert_same(&what, &expected, &lines_of_directory(&to));
        fs::remove_dir_all(to).unwrap();
    }
    blobs.len()
}

#[test]
fn the_document_alone_is_enough_to_read_every_layer() {
    for name in [
        "tools",
        "tools-user",
        "tools-layers",
        "tools-layers-user",
        "pause",
        "odd",
        "odd-sparse",
        "huge",
        "wide",
        "nginx",
        "python",
        "node",
    ] {
        let layers = read_every_layer(name);
        assert!(layers > 0, "{name} has no layer with an index");
    }
}
