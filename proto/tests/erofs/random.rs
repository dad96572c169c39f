//! Random trees, and images damaged at random.

use larder_proto::erofs::{Image, Nid, write};
use larder_proto::tree::{DeviceNumber, Kind, Mtime, NodeId, ROOT, difference};
use larder_test_support::on_erofs_blocking;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::kernel::{Mounted, assert_directory_agrees};
use crate::layer::Layer;

/// One step of building a layer.
#[derive(Debug, Clone)]
struct Step {
    parent: Index,
    name: Vec<u8>,
    what: What,
    mode: u16,
    owner: (u32, u32),
    mtime: Mtime,
    xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum What {
    Directory,
    File(Vec<u8>),
    Sparse { size: u64, pieces: Vec<(u64, u64)> },
    Symlink(Vec<u8>),
    Device(bool, DeviceNumber),
    Pipe(bool),
    Link(Index),
}

fn what() -> impl Strategy<Value = What> {
    let device = (any::<bool>(), 0..4096_u32, 0..1_u32 << 20);
    prop_oneof![
        4 => Just(What::Directory),
        4 => vec(any::<u8>(), 0..3000).prop_map(What::File),
        1 => (0..100_000_u64, vec((0..50_u64, 1..8_u64), 0..6))
            .prop_map(|(size, pieces)| What::Sparse { size, pieces }),
        2 => vec(1..=255_u8, 1..600).prop_map(What::Symlink),
        1 => device.prop_map(|(block, major, minor)| {
            What::Device(block, DeviceNumber { major, minor })
        }),
        1 => any::<bool>().prop_map(What::Pipe),
        2 => any::<Index>().prop_map(What::Link),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        3 => "[a-z.]{1,12}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 1..256),
    ];
    name.prop_map(|mut name| {
        for byte in &mut name {
            *byte = if matches!(byte, 0 | b'/') { 1 } else { *byte };
        }
        let is_dot = matches!(&name[..], b"." | b"..");
        name.extend(is_dot.then_some(b'x'));
        name
    })
}

fn xattrs() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let value = prop_oneof![
        3 => Just(b"common".to_vec()),
        2 => vec(any::<u8>(), 0..40),
        1 => vec(any::<u8>(), 0..2000),
    ];
    // Names repeat, so that values are shared.
    prop_oneof![
        3 => Just(Vec::new()),
        1 => vec(("(user|trusted|security)\\.[a-d]{1,3}", value), 1..5),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let id = prop_oneof![Just(0_u32), Just(1000), 0..u32::MAX];
    let seconds = prop_oneof![Just(0_i64), Just(1_700_000_000), any::<i64>()];
    let mtime = (seconds, prop_oneof![Just(0_u32), 0..1_000_000_000_u32]);
    (
        (any::<Index>(), name(), what()),
        (0..0o10000_u16, (id.clone(), id), mtime, xattrs()),
    )
        .prop_map(
            |((parent, name, what), (mode, owner, mtime, xattrs))| Step {
                parent,
                name,
                what,
                mode,
                owner,
                mtime: Mtime {
                    seconds: mtime.0,
                    nanoseconds: mtime.1,
                },
                xattrs,
            },
        )
}

fn layer() -> impl Strategy<Value = Layer> {
    vec(step(), 0..60).prop_map(|steps| build(&steps))
}

fn build(steps: &[Step]) -> Layer {
    let mut layer = Layer::new();
    let (mut directories, mut files) = (vec![ROOT], Vec::new());
    for step in steps {
        let parent = *step.parent.get(&directories);
        // A directory that is replaced would leave its entries without a path.
        if layer.tree.child(parent, &step.name).is_some() {
            continue;
        }
        let Some(id) = add(&mut layer, parent, step, &files) else {
            continue;
        };
        let node = layer.tree.node_mut(id);
        match node.kind {
            Kind::Directory(_) => directories.push(id),
            _ => files.push(id),
        }
        node.mode = step.mode;
        (node.uid, node.gid) = step.owner;
        node.mtime = step.mtime;
        // Linux has user.* on regular files and directories only.
        let has_user = matches!(node.kind, Kind::Directory(_) | Kind::Regular { .. });
        for (name, value) in &step.xattrs {
            if has_user || !name.starts_with("user.") {
                layer.xattr(id, name, value);
            }
        }
    }
    layer
}

fn add(layer: &mut Layer, parent: NodeId, step: &Step, files: &[NodeId]) -> Option<NodeId> {
    let name = &step.name;
    Some(match &step.what {
        What::Directory => layer.directory(parent, name),
        What::File(content) => layer.file(parent, name, content),
        What::Sparse { size, pieces } => {
            let bytes = [7; 8 * 512];
            let mut at = 0;
            let mut kept: Vec<(u64, &[u8])> = Vec::new();
            for &(gap, blocks) in pieces {
                let start = at + gap * 512;
                let len = (blocks * 512).min(size.saturating_sub(start));
                if len > 0 {
                    kept.push((start, &bytes[..usize::try_from(len).unwrap()]));
                }
                at = start + len;
            }
            layer.sparse(parent, name, *size, &kept)
        }
        What::Symlink(target) => layer.symlink(parent, name, target),
        What::Device(true, device) => layer.add(parent, name, Kind::BlockDevice(*device)),
        What::Device(false, device) => layer.add(parent, name, Kind::CharDevice(*device)),
        What::Pipe(true) => layer.add(parent, name, Kind::Fifo),
        What::Pipe(false) => layer.add(parent, name, Kind::Socket),
        What::Link(to) => {
            if !files.is_empty() {
                layer.link(parent, name, *to.get(files));
            }
            return None;
        }
    })
}

/// Asks everything there is to ask about `nid`; returns the number of entries it lists.
fn ask_everything(image: &Image<&[u8]>, nid: Nid) -> usize {
    let _ = (image.inode(nid), image.read_link(nid));
    let _ = image.xattr(nid, b"trusted.overlay.opaque");
    for xattr in image.xattrs(nid) {
        let _ = (xattr.name(), xattr.value);
    }
    for extent in image.extents(nid).take(1000) {
        let _ = extent;
    }
    let _ = (image.lookup(nid, b""), image.lookup(nid, &[0xFF; 300]));
    image.read_dir(nid, 0).filter(|e| !e.is_dot()).count()
}

/// Walks an image that was accepted, and asserts that it keeps its promises.
fn assert_in_bounds(image: &Image<&[u8]>, bytes: &[u8]) {
    let mut pending = vec![image.root()];
    let mut met = 0;
    while let Some(nid) = pending.pop() {
        met += 1;
        assert!(met <= bytes.len(), "the walk does not end");
        ask_everything(image, nid);
        for extent in image.extents(nid) {
            assert!(extent.tar_offset + extent.len <= image.tar_len());
        }
        let entries = image.read_dir(nid, 0).filter(|entry| !entry.is_dot());
        for entry in entries {
            assert_eq!(image.lookup(nid, entry.name), Some(entry.nid));
            pending.push(entry.nid);
        }
    }
    // What the reader accepts, the writer can say too.
    let again = write(&image.to_tree(), image.tar_len()).unwrap();
    let again = Image::open(&again[..], image.tar_len()).unwrap();
    assert_eq!(difference(&image.to_tree(), &again.to_tree()), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_random_tree_comes_back_as_it_was(layer in layer()) {
        let bytes = layer.write();
        let image = Image::open(&bytes[..], layer.tar_len()).unwrap();
        let tree = image.to_tree();
        prop_assert_eq!(difference(&layer.tree, &tree), None);
        prop_assert!(write(&tree, layer.tar_len()).unwrap() == bytes);
        assert_in_bounds(&image, &bytes);
    }

    /// Whatever is done to an image, opening it never panics, and what opens stays in bounds.
    #[test]
    fn a_damaged_image_is_refused_or_harmless(
        layer in layer(),
        damage in vec((any::<Index>(), any::<u8>(), any::<bool>()), 1..4),
    ) {
        let mut bytes = layer.write();
        // All but the zeros before the superblock, where every change is refused.
        let len = bytes.len() - 1024;
        for (at, value, small) in damage {
            let byte = &mut bytes[1024 + at.index(len)];
            *byte = if small { byte.wrapping_add(value % 3).wrapping_sub(1) } else { value };
        }
        if let Ok(image) = Image::open(&bytes[..], layer.tar_len()) {
            assert_in_bounds(&image, &bytes);
        }
    }

    /// The kernel hands back numbers of ours, but nothing may hang on that.
    #[test]
    fn any_number_can_be_asked_about(
        layer in layer(),
        nids in vec(prop_oneof![0..4000_u64, any::<u64>()], 50),
        cookie in any::<u64>(),
    ) {
        let bytes = layer.write();
        let image = Image::open(&bytes[..], layer.tar_len()).unwrap();
        for nid in nids {
            prop_assert!(ask_everything(&image, Nid(nid)) <= bytes.len());
            let _ = image.read_dir(Nid(nid), cookie).next();
            let _ = image.read_dir(image.root(), cookie).count();
        }
    }

    #[test]
    fn a_truncated_image_is_refused(layer in layer(), cut in any::<Index>()) {
        let bytes = layer.write();
        let len = cut.index(bytes.len());
        prop_assert!(Image::open(&bytes[..len], layer.tar_len()).is_err());
    }

    #[test]
    fn arbitrary_bytes_are_refused(bytes in vec(any::<u8>(), 0..4096), tar_len in any::<u64>()) {
        prop_assert!(Image::open(&bytes[..], tar_len).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    fn the_kernel_shows_a_random_tree_as_it_is(layer in layer()) {
        let mounted = Mounted::new(&layer);
        assert_directory_agrees("random", &layer, &mounted.root());
    }
}

on_erofs_blocking!(the_kernel_shows_a_random_tree_as_it_is);
