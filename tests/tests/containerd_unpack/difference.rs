//! Compares a scanned layer with a folder that containerd unpacked.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use larder_proto::scan::ScannedLayer;
use larder_proto::tree::{DeviceNumber, Extent, Kind, Node, NodeId, ROOT};

/// Stack of a comparison, bytes: it goes down as deep as the tree, which paths of 4,095 bytes allow
/// 2,048 levels.
const STACK_BYTES: usize = 64 << 20;

/// The first difference, in words.
pub(crate) fn between(layer: &ScannedLayer, tar: &[u8], unpacked: &Path) -> Option<String> {
    let compare = || compare(layer, tar, unpacked);
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, compare).expect("a thread");
        thread.join().expect("a comparison")
    })
}

fn compare(layer: &ScannedLayer, tar: &[u8], unpacked: &Path) -> Option<String> {
    let mut walk = Walk {
        layer,
        tar,
        inodes: BTreeMap::new(),
        links: BTreeMap::new(),
    };
    let found = walk.directory(ROOT, &mut Vec::new(), unpacked).err();
    found.or_else(|| walk.links().err())
}

struct Walk<'a> {
    layer: &'a ScannedLayer,
    tar: &'a [u8],
    /// Inode number of each node seen, to compare which names are one file.
    inodes: BTreeMap<NodeId, u64>,
    /// Names found and link count of each inode that is not a directory.
    links: BTreeMap<u64, (u64, u64)>,
}

impl Walk<'_> {
    fn directory(&mut self, id: NodeId, path: &mut Vec<u8>, on_disk: &Path) -> Result<(), String> {
        let Kind::Directory(entries) = &self.layer.tree.node(id).kind else {
            return Err(format!("{} is no directory with us", shown(path)));
        };
        let xattrs = xattrs_of(on_disk);
        let ours = &self.layer.tree.node(id).xattrs;
        same(path, "xattrs", &ours.clone(), &xattrs)?;
        let theirs: BTreeSet<Vec<u8>> = std::fs::read_dir(on_disk)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().into_vec())
            .collect();
        same(path, "entries", &entries.keys().cloned().collect(), &theirs)?;
        for (name, &child) in entries {
            let len = path.len();
            if len > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            self.node(child, path, &on_disk.join(OsStr::from_bytes(name)))?;
            path.truncate(len);
        }
        Ok(())
    }

    fn node(&mut self, id: NodeId, path: &mut Vec<u8>, on_disk: &Path) -> Result<(), String> {
        let node = self.layer.tree.node(id);
        let meta = std::fs::symlink_metadata(on_disk).expect("metadata");
        same(path, "mode", &u32::from(node.mode), &(meta.mode() & 0o7777))?;
        same(
            path,
            "owner",
            &(node.uid, node.gid),
            &(meta.uid(), meta.gid()),
        )?;
        let is_implied = self.layer.implied.binary_search(path).is_ok();
        let is_whiteout = node.kind == Kind::CharDevice(DeviceNumber::default()) && node.mode == 0;
        if !is_implied && !is_whiteout {
            let ours = (node.mtime.seconds, i64::from(node.mtime.nanoseconds));
            same(path, "mtime", &ours, &(meta.mtime(), meta.mtime_nsec()))?;
        }
        let inode = *self.inodes.entry(id).or_insert(meta.ino());
        same(path, "inode", &inode, &meta.ino())?;
        if let Kind::Directory(_) = node.kind {
            return if meta.is_dir() {
                self.directory(id, path, on_disk)
            } else {
                Err(format!("{} is no directory with containerd", shown(path)))
            };
        }
        self.links.entry(inode).or_insert((0, meta.nlink())).0 += 1;
        same(path, "xattrs", &node.xattrs.clone(), &xattrs_of(on_disk))?;
        self.content(node, path, on_disk, &meta)
    }

    fn content(
        &self,
        node: &Node,
        path: &[u8],
        on_disk: &Path,
        meta: &std::fs::Metadata,
    ) -> Result<(), String> {
        let kind = meta.file_type();
        let device = |d: &DeviceNumber| rustix::fs::makedev(d.major, d.minor);
        match &node.kind {
            Kind::Regular { size, extents } if kind.is_file() => {
                let ours = self.bytes(*size, extents);
                let theirs = std::fs::read(on_disk).expect("a readable file");
                same(path, "content", &ours, &theirs)
            }
            Kind::Symlink(target) if kind.is_symlink() => {
                let theirs = std::fs::read_link(on_disk).expect("a symlink");
                same(path, "target", target, &theirs.into_os_string().into_vec())
            }
            Kind::CharDevice(d) if kind.is_char_device() => {
                same(path, "device", &device(d), &meta.rdev())
            }
            Kind::BlockDevice(d) if kind.is_block_device() => {
                same(path, "device", &device(d), &meta.rdev())
            }
            Kind::Fifo if kind.is_fifo() => Ok(()),
            _ => Err(format!(
                "{}: {:?} with us, {kind:?} there",
                shown(path),
                node.kind
            )),
        }
    }

    /// What a reader sees of a file: its extents, and zeros between them.
    fn bytes(&self, size: u64, extents: &[Extent]) -> Vec<u8> {
        let index = |n: u64| usize::try_from(n).expect("a small tar");
        let mut bytes = vec![0; index(size)];
        for extent in extents {
            let (to, from) = (index(extent.file_offset), index(extent.tar_offset));
            let len = index(extent.len);
            bytes[to..to + len].copy_from_slice(&self.tar[from..from + len]);
        }
        bytes
    }

    /// Every name of every file was found.
    fn links(&self) -> Result<(), String> {
        let nodes = self.inodes.values().collect::<BTreeSet<_>>().len();
        if nodes != self.inodes.len() {
            return Err("two of our files are one with containerd".to_owned());
        }
        match self.links.values().find(|(names, count)| names != count) {
            Some((names, count)) => Err(format!("{names} names of a file with {count} links")),
            None => Ok(()),
        }
    }
}

fn same<T: PartialEq + std::fmt::Debug>(
    path: &[u8],
    what: &str,
    ours: &T,
    theirs: &T,
) -> Result<(), String> {
    if ours == theirs {
        return Ok(());
    }
    let mut text = format!(
        "{} of {}: {ours:?} with us, {theirs:?} there",
        what,
        shown(path)
    );
    text.truncate(text.floor_char_boundary(600));
    Err(text)
}

fn shown(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, list.as_mut_slice()).expect("a list of attributes");
    let mut xattrs = BTreeMap::new();
    for name in list[..len].split_inclusive(|&b| b == 0) {
        let name = CStr::from_bytes_with_nul(name).expect("a name");
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).expect("an attribute");
        value.truncate(len);
        xattrs.insert(name.to_bytes().to_vec(), value);
    }
    xattrs
}
