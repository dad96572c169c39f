//! The kernel's own reading of our images: mounted from a file, with the tar as device.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use larder_proto::erofs::{Image, write};
use larder_proto::limits;
use larder_proto::tree::{DeviceNumber, Extent, Kind, Mtime, Node, NodeId, ROOT, Tree, difference};
use larder_test_support::on_erofs_blocking;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::layer::Layer;
use crate::samples;

/// A mounted layer; unmounted when dropped.
pub(crate) struct Mounted {
    directory: tempfile::TempDir,
}

impl Mounted {
    pub(crate) fn new(layer: &Layer) -> Self {
        Self::with_device(&layer.write(), layer.tar_len(), |device| {
            device.write_all_at(&layer.tar, 0).unwrap();
        })
    }

    /// Mounts `image`; `fill` writes into the device, which is as long as the image wants it.
    fn with_device(image: &[u8], tar_len: u64, fill: impl FnOnce(&fs::File)) -> Self {
        let directory = tempfile::Builder::new().prefix("erofs-").tempdir().unwrap();
        let path = |name| directory.path().join(name);
        fs::write(path("meta"), image).unwrap();
        let device = fs::File::create(path("tar")).unwrap();
        let device_len = Image::open(image, tar_len).unwrap().device_len();
        device.set_len(device_len).unwrap();
        fill(&device);
        fs::create_dir(path("root")).unwrap();
        let options = CString::new(format!("device={}", path("tar").display())).unwrap();
        let (meta, root) = (path("meta"), path("root"));
        mount(meta, root, "erofs", MountFlags::RDONLY, &*options).unwrap();
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

pub(crate) fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])
            .unwrap_or_else(|error| panic!("{}: {error}", name.escape_ascii()));
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

fn the_kernel_shows_every_sample_as_its_tree() {
    for (name, layer) in samples::all() {
        let mounted = Mounted::new(&layer);
        assert_directory_agrees(name, &layer, &mounted.root());
    }
}

/// A tar need not end at a block; the device does, and the last file's end is read with it.
fn a_tar_that_ends_within_a_block_reads_to_its_last_byte() {
    let mut layer = Layer::new();
    layer.file(ROOT, "last", &[7; 5000]);
    layer.tar.truncate(1024 + 5000);
    let mounted = Mounted::new(&layer);
    assert_directory_agrees("odd end", &layer, &mounted.root());
}

/// Addresses hold to the end of the largest tar, sizes beyond 4 GiB, holes beyond the tar's length.
fn the_largest_tar_reads_right_at_both_ends_of_its_files() {
    const GIB: u64 = 1 << 30;
    let tar_len = limits::TAR_BYTES_MAX;
    let mut layer = Layer::new();
    let regular = |size, extents: &[(u64, u64, u64)]| {
        let extent = |&(file_offset, tar_offset, len)| Extent {
            file_offset,
            tar_offset,
            len,
        };
        let extents = extents.iter().map(extent).collect();
        Kind::Regular { size, extents }
    };
    let end = tar_len - 512;
    layer.add(ROOT, "five-gib", regular(5 * GIB, &[(0, 1024, 5 * GIB)]));
    layer.add(ROOT, "last", regular(300, &[(0, end, 300)]));
    let holes = [(0, 1024, GIB), (6 * GIB, tar_len - GIB, GIB)];
    layer.add(ROOT, "holes", regular(3000 * GIB, &holes));
    let image = write(&layer.tree, tar_len).unwrap();
    let mounted = Mounted::with_device(&image, tar_len, |device| {
        for (offset, byte) in [(1024, 1), (1023 + 5 * GIB, 2), (tar_len - GIB, 3), (end, 4)] {
            device.write_all_at(&[byte], offset).unwrap();
        }
    });
    let byte = |name: &str, offset| {
        let file = fs::File::open(mounted.root().join(name)).unwrap();
        let mut byte = [0xFF];
        file.read_exact_at(&mut byte, offset).unwrap();
        byte[0]
    };
    assert_eq!((byte("five-gib", 0), byte("five-gib", 5 * GIB - 1)), (1, 2));
    assert_eq!((byte("last", 0), byte("last", 299)), (4, 0));
    assert_eq!((byte("holes", 0), byte("holes", 6 * GIB)), (1, 3));
    assert_eq!(byte("holes", 7 * GIB - 512), 4);
    assert_eq!((byte("holes", GIB), byte("holes", 7 * GIB)), (0, 0));
    assert_eq!(byte("holes", 3000 * GIB - 1), 0);
    let metadata = fs::metadata(mounted.root().join("holes")).unwrap();
    assert_eq!(metadata.len(), 3000 * GIB);
}

/// 100,000 entries in one directory are listed and found.
fn a_directory_of_100_000_entries_works() {
    let mut layer = Layer::new();
    let wide = layer.directory(ROOT, "wide");
    for i in 0..100_000 {
        layer.file(wide, format!("file-{i}"), b"");
    }
    let mounted = Mounted::new(&layer);
    let wide = mounted.root().join("wide");
    assert_eq!(fs::read_dir(&wide).unwrap().count(), 100_000);
    for i in (0..100_000).step_by(997) {
        assert!(wide.join(format!("file-{i}")).exists());
        assert!(!wide.join(format!("file-{i}x")).exists());
    }
}

on_erofs_blocking!(
    the_kernel_shows_every_sample_as_its_tree,
    a_tar_that_ends_within_a_block_reads_to_its_last_byte,
    the_largest_tar_reads_right_at_both_ends_of_its_files,
    a_directory_of_100_000_entries_works,
);
