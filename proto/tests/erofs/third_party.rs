//! The crate `erofs-rs` as a reader of our images: it knows devices and 512-byte blocks.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use erofs_rs::backend::SliceImage;
use erofs_rs::types::Inode;
use erofs_rs::{DeviceInfo, EroFS};
use larder_proto::tree::{DeviceNumber, Kind, Mtime, Node, ROOT, Tree, difference};

use crate::layer::Layer;
use crate::samples;

type FileSystem<'a> = EroFS<SliceImage<'a>>;

/// The tree erofs-rs sees.
fn observe(layer: &Layer, file_system: &FileSystem<'_>) -> Tree {
    let mut tree = Tree { nodes: Vec::new() };
    let root = file_system.super_block().root_inode_id();
    let root = file_system.get_inode(root).unwrap();
    tree.add(node(layer, file_system, root, b""));
    let mut seen = HashMap::from([(root.id(), ROOT)]);
    for entry in file_system.walk_dir("/").unwrap() {
        let entry = entry.unwrap();
        let path = entry.dir_entry.path();
        let path = path.as_bytes().strip_prefix(b"/").unwrap();
        let child = *seen
            .entry(entry.inode.id())
            .or_insert_with(|| tree.add(node(layer, file_system, entry.inode, path)));
        let cut = path.iter().rposition(|&b| b == b'/');
        let parent = tree.find(&path[..cut.unwrap_or(0)]).unwrap();
        let name = entry.dir_entry.file_name().to_vec();
        let Kind::Directory(entries) = &mut tree.node_mut(parent).kind else {
            panic!("{} is not a directory", path.escape_ascii());
        };
        assert_eq!(entries.insert(name, child), None);
    }
    tree
}

fn node(layer: &Layer, file_system: &FileSystem<'_>, inode: Inode, path: &[u8]) -> Node {
    let device = inode.device().unwrap_or_default();
    let device = DeviceNumber {
        major: device.0,
        minor: device.1,
    };
    let file_type = inode.file_type();
    let kind = if file_type.is_dir() {
        Kind::Directory(BTreeMap::new())
    } else if file_type.is_symlink() {
        let target = file_system.read_link_inode(inode).unwrap();
        Kind::Symlink(target.as_bytes().to_vec())
    } else if file_type.is_file() {
        regular(layer, file_system, inode, path)
    } else if file_type.is_char_device() {
        Kind::CharDevice(device)
    } else if file_type.is_block_device() {
        Kind::BlockDevice(device)
    } else if file_type.is_fifo() {
        Kind::Fifo
    } else {
        assert!(file_type.is_socket());
        Kind::Socket
    };
    let (seconds, nanoseconds) = inode.modified_unix();
    Node {
        kind,
        mode: u16::try_from(inode.permissions().mode()).unwrap() & 0o7777,
        uid: inode.uid(),
        gid: inode.gid(),
        mtime: Mtime {
            seconds,
            nanoseconds,
        },
        xattrs: file_system
            .xattrs_inode(inode)
            .unwrap()
            .into_iter()
            .collect(),
    }
}

fn regular(layer: &Layer, file_system: &FileSystem<'_>, inode: Inode, path: &[u8]) -> Kind {
    let mut content = Vec::new();
    let mut file = file_system.open_inode_file(inode).unwrap();
    file.read_to_end(&mut content).unwrap();
    let id = layer.tree.find(path).unwrap();
    assert!(content == layer.content(id), "{}", path.escape_ascii());
    layer.tree.node(id).kind.clone()
}

#[test]
fn a_third_party_reader_sees_every_sample_as_its_tree() {
    for (name, layer) in samples::all() {
        let (image, mut tar) = (layer.write(), layer.tar.clone());
        tar.resize(tar.len().next_multiple_of(512), 0);
        let devices = vec![SliceImage::new(&tar)];
        let file_system = EroFS::new_with_devices(SliceImage::new(&image), devices).unwrap();
        let expected = DeviceInfo {
            tag: [0; 64],
            blocks: tar.len() as u64 / 512,
            unified_start_block: image.len() as u64 / 512,
        };
        assert_eq!(file_system.devices(), [expected]);
        if let Some(difference) = difference(&layer.tree, &observe(&layer, &file_system)) {
            panic!("{name}: tree against erofs-rs: {difference}");
        }
    }
}
