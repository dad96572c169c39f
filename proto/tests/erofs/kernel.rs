//! The kernel's own reading of our images: mounted from a file, with the tar as device.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use larder_proto::tree::{DeviceNumber, Kind, Mtime, Node, NodeId, ROOT, Tree, difference};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::layer::Layer;
use crate::samples;

/// A mounted layer; unmounted when dropped.
pub(crate) struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn new(layer: &Layer) -> Self {
        let directory = tempfile::Builder::new().prefix("erofs-").tempdir().unwrap();
        let path = |name| directory.path().join(name);
        fs::write(path("meta"), layer.write()).unwrap();
        fs::write(path("tar"), &layer.tar).unwrap();
        fs::create_dir(path("root")).unwrap();
        let options = CString::new(format!("device={}", path("tar").display())).unwrap();
        mount(
            path("meta"),
            path("root"),
            "erofs",
            MountFlags::RDONLY,
            &*options,
        )
        .unwrap();
        Self { directory }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.root(), UnmountFlags::empty());
    }
}

/// The tree below `root` as the kernel shows it. Where data lies cannot be seen: extents are taken
/// from the layer after the content was found equal.
fn observe(layer: &Layer, root: &Path) -> Tree {
    let mut tree = Tree { nodes: Vec::new() };
    tree.add(node(root, None, layer));
    let mut links: HashMap<u64, (NodeId, u64)> = HashMap::new();
    let mut pending = vec![(root.to_owned(), ROOT, Some(ROOT))];
    while let Some((path, id, expected)) = pending.pop() {
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().as_bytes().to_vec();
            let metadata = fs::symlink_metadata(entry.path()).unwrap();
            assert_eq!(entry.file_type().unwrap(), metadata.file_type());
            let expected = expected.and_then(|id| layer.tree.child(id, &name));
            let mut new = || {
                let child = tree.add(node(&entry.path(), expected, layer));
                if metadata.is_dir() {
                    pending.push((entry.path(), child, expected));
                }
                (child, metadata.nlink())
            };
            let (child, left) = links.entry(metadata.ino()).or_insert_with(&mut new);
            let child = *child;
            *left -= u64::from(!metadata.is_dir());
            entries.insert(name, child);
        }
        let subdirectories = entries
            .values()
            .filter(|&&id| matches!(tree.node(id).kind, Kind::Directory(_)));
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert_eq!(
            metadata.nlink(),
            2 + subdirectories.count() as u64,
            "{}",
            path.display()
        );
        tree.node_mut(id).kind = Kind::Directory(entries);
    }
    // Every link was met.
    let files = links
        .values()
        .filter(|(id, _)| !matches!(tree.node(*id).kind, Kind::Directory(_)));
    assert!(files.into_iter().all(|&(_, left)| left == 0));
    tree
}

fn node(path: &Path, expected: Option<NodeId>, layer: &Layer) -> Node {
    let metadata = fs::symlink_metadata(path).unwrap();
    let file_type = metadata.file_type();
    let device = DeviceNumber {
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
    };
    let kind = if file_type.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if file_type.is_symlink() {
        let target = fs::read_link(path).unwrap();
        Kind::Symlink(target.as_os_str().as_bytes().to_vec())
    } else if file_type.is_char_device() {
        Kind::CharDevice(device)
    } else if file_type.is_block_device() {
        Kind::BlockDevice(device)
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else if file_type.is_socket() {
        Kind::Socket
    } else {
        regular(path, expected, layer, metadata.len())
    };
    Node {
        kind,
        mode: u16::try_from(metadata.mode() & 0o7777).unwrap(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: Mtime {
            seconds: metadata.mtime(),
            nanoseconds: u32::try_from(metadata.mtime_nsec()).unwrap(),
        },
        xattrs: xattrs(path),
    }
}

fn regular(path: &Path, expected: Option<NodeId>, layer: &Layer, size: u64) -> Kind {
    let same = expected.filter(
        |&id| matches!(layer.tree.node(id).kind, Kind::Regular { size: s, .. } if s == size),
    );
    let Some(id) = same else {
        return Kind::Regular {
            size,
            extents: Vec::new(),
        };
    };
    let content = fs::read(path).unwrap();
    assert!(
        content == layer.content(id),
        "{}: content differs",
        path.display()
    );
    layer.tree.node(id).kind.clone()
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(len);
        (name.to_vec(), value)
    };
    names[..len]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(value)
        .collect()
}

/// Asserts that what lies at `root` is the layer's tree.
pub(crate) fn assert_directory_agrees(name: &str, layer: &Layer, root: &Path) {
    let observed = observe(layer, root);
    if let Some(difference) = difference(&layer.tree, &observed) {
        panic!("{name}: tree against {}: {difference}", root.display());
    }
}

#[test]
fn the_kernel_shows_every_sample_as_its_tree() {
    for (name, layer) in samples::all() {
        let mounted = Mounted::new(&layer);
        assert_directory_agrees(name, &layer, &mounted.root());
    }
}
