//! Layers in files, mounted by the kernel: each by itself under overlayfs, or all as one merged image.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use larder_proto::erofs::{Image, merge};
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::kernel::xattrs;
use crate::layer::Layer;

/// Layers, the lowest first, with their images and tars in files and what is mounted of them.
pub(crate) struct Stacked {
    directory: tempfile::TempDir,
    /// The merged image.
    pub(crate) merged: Vec<u8>,
    pub(crate) tar_lens: Vec<u64>,
    mounted: Vec<PathBuf>,
}

impl Stacked {
    pub(crate) fn new(layers: &[Layer]) -> Self {
        let directory = tempfile::Builder::new().prefix("stack-").tempdir().unwrap();
        let bytes: Vec<_> = layers.iter().map(Layer::write).collect();
        let images = bytes.iter().zip(layers);
        let images: Vec<_> = images
            .map(|(bytes, layer)| Image::open(&bytes[..], layer.tar_len()).unwrap())
            .collect();
        let merged = merge(&images.iter().collect::<Vec<_>>()).unwrap();
        let stacked = Self {
            directory,
            merged,
            tar_lens: layers.iter().map(Layer::tar_len).collect(),
            mounted: Vec::new(),
        };
        fs::write(stacked.path("merged"), &stacked.merged).unwrap();
        for (i, (layer, image)) in layers.iter().zip(&images).enumerate() {
            fs::write(stacked.path(&format!("meta-{i}")), &bytes[i]).unwrap();
            let mut tar = layer.tar.clone();
            tar.resize(usize::try_from(image.device_len()).unwrap(), 0);
            fs::write(stacked.path(&format!("tar-{i}")), tar).unwrap();
        }
        stacked
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn tars(&self) -> Vec<PathBuf> {
        let tar = |i| self.path(&format!("tar-{i}"));
        (0..self.tar_lens.len()).map(tar).collect()
    }

    /// What the kernel's overlayfs makes of the layers.
    pub(crate) fn mount_stack(&mut self) -> PathBuf {
        let tars = self.tars();
        let mut options = Vec::new();
        for (i, tar) in tars.iter().enumerate().rev() {
            let target = self.path(&format!("layer-{i}"));
            let devices = [("device", tar.clone())];
            self.mount("erofs", &self.path(&format!("meta-{i}")), &devices, &target);
            options.push(("lowerdir+", target));
        }
        let target = self.path("stack");
        self.mount("overlay", Path::new("stack"), &options, &target);
        target
    }

    /// What it makes of the merged image.
    pub(crate) fn mount_merged(&mut self) -> PathBuf {
        let devices: Vec<_> = self.tars().into_iter().map(|tar| ("device", tar)).collect();
        let target = self.path("one");
        self.mount("erofs", &self.path("merged"), &devices, &target);
        target
    }

    fn mount(&mut self, kind: &str, source: &Path, options: &[(&str, PathBuf)], target: &Path) {
        fs::create_dir(target).unwrap();
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        fsconfig_set_string(&context, "source", source).unwrap();
        for (name, value) in options {
            fsconfig_set_string(&context, *name, value).unwrap();
        }
        fsconfig_set_flag(&context, "ro").unwrap();
        fsconfig_create(&context).unwrap();
        let mount = fsmount(
            &context,
            FsMountFlags::FSMOUNT_CLOEXEC,
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        );
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(mount.unwrap(), "", CWD, target, flags).unwrap();
        self.mounted.push(target.to_owned());
    }
}

impl Drop for Stacked {
    fn drop(&mut self) {
        for target in self.mounted.iter().rev() {
            let _ = unmount(target, UnmountFlags::empty());
        }
    }
}

/// What anybody can see of a file. Of directories neither size nor number of links: overlayfs makes them up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    rdev: u64,
    links: Option<u64>,
    /// The first path, in their order, that leads to the same file.
    first: Vec<u8>,
    /// A file's bytes, or a symlink's target.
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// All files below `root`, by path. A name that is listed, but leads nowhere, is how overlayfs shows a whiteout
/// in a directory that only one layer has; it counts as absent where `whiteouts` allows it.
pub(crate) fn see(root: &Path, whiteouts: bool) -> BTreeMap<Vec<u8>, Seen> {
    let mut paths = vec![root.to_owned()];
    let mut at = 0;
    while let Some(path) = paths.get(at) {
        if fs::symlink_metadata(path).unwrap().is_dir() {
            let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
            let there = entries.filter(|entry| {
                let there = fs::symlink_metadata(entry.path());
                assert!(there.is_ok() || whiteouts, "{entry:?} is listed: {there:?}");
                let same = |m: fs::Metadata| m.file_type() == entry.file_type().unwrap();
                there.ok().is_some_and(same)
            });
            let found: Vec<_> = there.map(|entry| entry.path()).collect();
            paths.extend(found);
        }
        at += 1;
    }
    paths.sort();
    let mut links = HashMap::new();
    let mut seen = BTreeMap::new();
    for path in paths {
        let relative = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let key = (metadata.dev(), metadata.ino());
        let first = links.entry(key).or_insert_with(|| relative.to_vec());
        seen.insert(relative.to_vec(), look(&path, &metadata, first.clone()));
    }
    seen
}

fn look(path: &Path, metadata: &fs::Metadata, first: Vec<u8>) -> Seen {
    let file_type = metadata.file_type();
    let (kind, content) = match () {
        () if file_type.is_dir() => ("directory", Vec::new()),
        () if file_type.is_file() => ("file", fs::read(path).unwrap()),
        () if file_type.is_symlink() => {
            let target = fs::read_link(path).unwrap();
            ("symlink", target.as_os_str().as_bytes().to_vec())
        }
        () if file_type.is_char_device() => ("character device", Vec::new()),
        () if file_type.is_block_device() => ("block device", Vec::new()),
        () if file_type.is_fifo() => ("pipe", Vec::new()),
        () => ("socket", Vec::new()),
    };
    Seen {
        kind,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        rdev: metadata.rdev(),
        links: (!file_type.is_dir()).then_some(metadata.nlink()),
        first,
        content,
        xattrs: xattrs(path),
    }
}

/// Asserts that the merged image shows what the stack shows; returns how many files that are.
pub(crate) fn assert_merged_is_the_stack(name: &str, layers: &[Layer]) -> usize {
    let mut stacked = Stacked::new(layers);
    let (stack, one) = (stacked.mount_stack(), stacked.mount_merged());
    let (mut stack, one) = (see(&stack, true), see(&one, false));
    let count = stack.len();
    for (path, merged) in one {
        let shown = path.escape_ascii().to_string();
        let expected = stack.remove(&path);
        assert_eq!(expected, Some(merged), "{name}: /{shown}");
    }
    assert_eq!(stack, BTreeMap::new(), "{name}: the stack shows more");
    count
}
