//! Merged images against the kernel's overlayfs, erofs-utils and their own promises.

use larder_proto::erofs::{Image, MergeError, merge, write};
use larder_proto::limits;
use larder_proto::tree::{Kind, NodeId, ROOT, Tree, difference};
use larder_test_support::on_erofs_blocking;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::erofs_utils::tool;
use crate::layer::Layer;
use crate::samples;
use crate::stacked::{Stacked, assert_merged_is_the_stack};

/// One step of building a layer whose names are few, so that layers meet.
#[derive(Debug, Clone)]
struct Step {
    parent: Index,
    name: u8,
    what: What,
    mode: u16,
    owner: u32,
    seconds: i64,
    xattr: Option<(u8, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum What {
    Directory { opaque: bool },
    File(Vec<u8>),
    Sparse(u8),
    Symlink(u8),
    Device(u32),
    Pipe,
    Link(Index),
    Whiteout,
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        8 => prop::bool::weighted(0.25).prop_map(|opaque| What::Directory { opaque }),
        4 => vec(any::<u8>(), 0..1500).prop_map(What::File),
        1 => any::<u8>().prop_map(What::Sparse),
        1 => any::<u8>().prop_map(What::Symlink),
        1 => (1..3_u32).prop_map(What::Device),
        1 => Just(What::Pipe),
        3 => any::<Index>().prop_map(What::Link),
        4 => Just(What::Whiteout),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let xattr = prop::option::weighted(0.2, (b'a'..b'd', vec(any::<u8>(), 0..20)));
    let attributes = (0..0o10000_u16, 0..100_000_u32, 0..2_000_000_000_i64, xattr);
    let place = (any::<Index>(), b'a'..b'f', what());
    (place, attributes).prop_map(
        |((parent, name, what), (mode, owner, seconds, xattr))| Step {
            parent,
            name,
            what,
            mode,
            owner,
            seconds,
            xattr,
        },
    )
}

/// Layers that are all over each other, the lowest first.
fn layers(most: usize) -> impl Strategy<Value = Vec<Layer>> {
    let layer = (vec(step(), 0..40), prop::bool::weighted(0.1));
    let layer = layer.prop_map(|(steps, opaque_root)| {
        let mut layer = build(&steps);
        if opaque_root {
            layer.xattr(ROOT, "trusted.overlay.opaque", "y");
        }
        layer
    });
    vec(layer, 2..most)
}

fn build(steps: &[Step]) -> Layer {
    let mut layer = Layer::new();
    let (mut directories, mut files) = (vec![ROOT], Vec::new());
    for step in steps {
        let parent = *step.parent.get(&directories);
        if layer.tree.child(parent, &[step.name]).is_some() {
            continue;
        }
        let Some(id) = add(&mut layer, parent, step, &files) else {
            continue;
        };
        let node = layer.tree.node_mut(id);
        node.mode = step.mode;
        (node.uid, node.gid) = (step.owner, step.owner / 7);
        node.mtime.seconds = step.seconds;
        let has_user = matches!(node.kind, Kind::Directory(_) | Kind::Regular { .. });
        if let (Some((name, value)), true) = (&step.xattr, has_user) {
            layer.xattr(id, &format!("user.{name}"), value);
        }
        match layer.tree.node(id).kind {
            Kind::Directory(_) => directories.push(id),
            _ => files.push(id),
        }
    }
    layer
}

fn add(layer: &mut Layer, parent: NodeId, step: &Step, files: &[NodeId]) -> Option<NodeId> {
    let name = [step.name];
    Some(match &step.what {
        What::Directory { opaque } => {
            let id = layer.directory(parent, name);
            if *opaque {
                layer.xattr(id, "trusted.overlay.opaque", "y");
            }
            id
        }
        What::File(content) => layer.file(parent, name, content),
        What::Sparse(byte) => {
            let piece = [*byte; 512];
            layer.sparse(parent, name, 5000, &[(512, &piece), (2048, &piece)])
        }
        What::Symlink(byte) => layer.symlink(parent, name, format!("to-{byte}").as_bytes()),
        What::Device(minor) => layer.device(parent, str::from_utf8(&name).unwrap(), 1, *minor),
        What::Pipe => layer.add(parent, name, Kind::Fifo),
        What::Link(to) => {
            if !files.is_empty() {
                layer.link(parent, name, *to.get(files));
            }
            return None;
        }
        What::Whiteout => {
            let name = str::from_utf8(&name).unwrap();
            layer.device(parent, name, 0, 0);
            return None;
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Promise: whatever layers hide, replace and add, the merged image shows what overlayfs shows of them.
    fn the_merged_image_shows_what_overlayfs_shows(layers in layers(7)) {
        assert_merged_is_the_stack("random", &layers);
    }
}

/// Promise: the samples show through layers above them as they do under overlayfs, and more layers than
/// mount(2) could take devices for are one mount.
fn samples_and_127_layers_show_as_under_overlayfs() {
    let (names, mut layers): (Vec<_>, Vec<_>) = samples::all().into_iter().unzip();
    let few = assert_merged_is_the_stack("samples", &layers);
    assert!(few > names.len(), "{few}");
    for i in layers.len()..127 {
        let mut layer = Layer::new();
        let directory = layer.directory(ROOT, format!("directory-{}", i % 7));
        layer.file(directory, format!("file-{i}"), format!("{i}").as_bytes());
        layers.push(layer);
    }
    assert!(assert_merged_is_the_stack("127 layers", &layers) > few);
}

on_erofs_blocking!(
    the_merged_image_shows_what_overlayfs_shows,
    samples_and_127_layers_show_as_under_overlayfs,
);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Promise: a merged image passes the gate for its own tars alone, says the same each time, and no file
    /// of it reaches from one tar into another, whatever is done to its bytes.
    #[test]
    fn a_merged_image_passes_the_gate_and_a_damaged_one_is_refused_or_harmless(
        layers in layers(5),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let bytes: Vec<_> = layers.iter().map(Layer::write).collect();
        let images = bytes.iter().zip(&layers);
        let images = images.map(|(bytes, layer)| Image::open(&bytes[..], layer.tar_len()).unwrap());
        let images: Vec<_> = images.collect();
        let images: Vec<_> = images.iter().collect();
        let lens: Vec<_> = layers.iter().map(Layer::tar_len).collect();
        let mut merged = merge(&images).unwrap();
        prop_assert!(merge(&images).unwrap() == merged);
        let image = Image::open_merged(&merged[..], &lens).unwrap();
        assert_apart(&image, &lens);
        prop_assert!(Image::open_merged(&merged[..], &lens[1..]).is_err());
        let mut longer = lens.clone();
        longer[0] += 512;
        prop_assert!(Image::open_merged(&merged[..], &longer).is_err());
        prop_assert!(Image::open(&merged[..], image.tar_len()).is_err());
        let len = merged.len() - 1024;
        for (at, value) in damage {
            merged[1024 + at.index(len)] = value;
        }
        if let Ok(image) = Image::open_merged(&merged[..], &lens) {
            assert_apart(&image, &lens);
        }
    }
}

/// Asserts that every extent lies within one tar.
fn assert_apart(image: &Image<&[u8]>, lens: &[u64]) {
    let tree = image.to_tree();
    for node in &tree.nodes {
        let Kind::Regular { extents, .. } = &node.kind else {
            continue;
        };
        for extent in extents {
            let mut start = 0;
            let holds = lens.iter().any(|len| {
                let tar = start..start + len;
                start += len.next_multiple_of(512);
                tar.contains(&extent.tar_offset) && extent.tar_offset + extent.len <= tar.end
            });
            assert!(holds, "{extent:?} in {lens:?}");
        }
    }
}

/// Promise: the merged image of one layer is that layer's.
#[test]
fn one_layer_merged_is_itself() {
    for (name, mut layer) in samples::all() {
        for node in &mut layer.tree.nodes {
            node.xattrs.remove(&b"trusted.overlay.opaque"[..]);
            // A whiteout over nothing is nothing.
            if let Kind::CharDevice(device) = &mut node.kind {
                device.major += u32::from(device.major == 0 && device.minor == 0);
            }
        }
        let bytes = layer.write();
        let image = Image::open(&bytes[..], layer.tar_len()).unwrap();
        let merged = merge(&[&image]).unwrap();
        assert!(merged == bytes, "{name}");
        let again = Image::open(&merged[..], layer.tar_len()).unwrap();
        assert_eq!(difference(&layer.tree, &again.to_tree()), None, "{name}");
    }
}

/// Promise: `fsck.erofs` finds nothing wrong with a merged image and its tars, and `dump.erofs` finds them all.
#[test]
fn fsck_finds_nothing_wrong_with_a_merged_image() {
    let layers: Vec<_> = samples::all().into_iter().map(|(_, layer)| layer).collect();
    let stacked = Stacked::new(&layers);
    let tars = stacked.tars();
    let devices = tars.iter().map(|tar| format!("--device={}", tar.display()));
    let mut arguments: Vec<_> = devices.chain(["--xattrs".to_owned()]).collect();
    arguments.push(stacked.path("merged").display().to_string());
    assert_eq!(tool("fsck.erofs", &arguments), "");
    arguments.retain(|argument| argument != "--xattrs");
    arguments.insert(0, "-s".to_owned());
    let printed = tool("dump.erofs", &arguments);
    let image = Image::open_merged(&stacked.merged[..], &stacked.tar_lens).unwrap();
    let inodes = image.inode_count().to_string();
    assert!(printed.contains("device_table"), "{printed}");
    let counted = printed.lines().find(|line| line.contains("inode count"));
    assert!(
        counted.is_some_and(|line| line.ends_with(&inodes)),
        "{printed}"
    );
}

/// Promise: what one image cannot hold is refused by name, and nothing is refused that it can.
#[test]
fn too_many_layers_and_too_long_tars_are_refused() {
    let tree = Tree::new();
    let half = limits::TAR_BYTES_MAX / 2;
    let bytes = write(&tree, half).unwrap();
    let image = Image::open(&bytes[..], half).unwrap();
    assert!(merge(&[&image, &image]).is_ok());
    let too_long = merge(&[&image, &image, &image]).unwrap_err();
    assert!(
        matches!(too_long, MergeError::TarsTooLong { .. }),
        "{too_long}"
    );
    let bytes = write(&tree, 1024).unwrap();
    let image = Image::open(&bytes[..], 1024).unwrap();
    let most = vec![&image; limits::MERGED_LAYERS_MAX];
    let lens = vec![1024; most.len()];
    assert!(Image::open_merged(merge(&most).unwrap(), &lens).is_ok());
    let one_more = vec![&image; limits::MERGED_LAYERS_MAX + 1];
    let refused = merge(&one_more).unwrap_err();
    assert_eq!(
        refused,
        MergeError::TooManyLayers {
            layers: one_more.len()
        }
    );
    assert_eq!(merge::<&[u8]>(&[]).unwrap_err(), MergeError::NoLayers);
}
