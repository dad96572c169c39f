//! erofs-utils' reading of our images: `fsck.erofs` checks and extracts them, `dump.erofs` counts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::{fs, str};

use larder_proto::tree::{Kind, Mtime};

use crate::kernel::assert_directory_agrees;
use crate::layer::Layer;
use crate::samples;

/// Where erofs-utils 1.8 is; fetched if need be.
static TOOLS: LazyLock<PathBuf> = LazyLock::new(|| {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/erofs-utils");
    let output = Command::new(&script).output().unwrap();
    assert!(output.status.success(), "{}: {output:?}", script.display());
    PathBuf::from(str::from_utf8(&output.stdout).unwrap().trim_end())
});

/// What a tool prints that succeeds.
pub(crate) fn tool(name: &str, arguments: &[String]) -> String {
    let output = Command::new(TOOLS.join(name))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{name}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A layer's image and tar in files.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(layer: &Layer) -> Self {
        let directory = tempfile::Builder::new().prefix("erofs-").tempdir().unwrap();
        fs::write(directory.path().join("meta"), layer.write()).unwrap();
        fs::write(directory.path().join("one-file"), one_file(layer)).unwrap();
        fs::write(directory.path().join("tar"), &layer.tar).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, name: &str, tool: &str, arguments: &[&str]) -> String {
        let output = Command::new(TOOLS.join(tool))
            .current_dir(self.directory.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {tool}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// The image and its tar as an image without a device: the tar lies behind the image just where
/// it is mapped. erofs-utils up to 1.9.4 find no file data on a device that is only mapped.
fn one_file(layer: &Layer) -> Vec<u8> {
    const SUPERBLOCK: usize = 1024;
    let mut image = layer.write();
    image.extend(&layer.tar);
    image.resize(image.len().next_multiple_of(512), 0);
    let blocks = u32::try_from(image.len() / 512).unwrap();
    image[SUPERBLOCK + 36..][..4].copy_from_slice(&blocks.to_le_bytes());
    image[SUPERBLOCK + 80] &= !0x8; // no device table
    image[SUPERBLOCK + 86..][..4].fill(0); // no devices
    image
}

/// fsck finds nothing wrong.
#[test]
fn fsck_finds_nothing_wrong() {
    for (name, layer) in samples::all() {
        let files = Files::new(&layer);
        let printed = files.run(name, "fsck.erofs", &["--device=tar", "--xattrs", "meta"]);
        assert_eq!(printed, "", "{name}");
    }
}

/// The layer without what fsck 1.8 (empty values) or ext4 (long values, old times) does not bring
/// to disk. The other tests leave nothing out.
fn for_disk(mut layer: Layer) -> Layer {
    for node in &mut layer.tree.nodes {
        node.xattrs.retain(|_, value| !value.is_empty());
        // What fsck creates inherits the one, and its chown(2) takes the other away.
        node.xattrs.remove(&b"system.posix_acl_default"[..]);
        node.xattrs.remove(&b"security.capability"[..]);
        let mut room = 2000;
        node.xattrs.retain(|name, value| {
            let needed = name.len() + value.len() + 16;
            let fits = needed <= room;
            room -= if fits { needed } else { 0 };
            fits
        });
        // It leaves a hole at the end of a file out.
        if let Kind::Regular { size, extents } = &mut node.kind {
            *size = extents.last().map_or(0, |e| e.file_offset + e.len);
        }
        if !(0..1 << 33).contains(&node.mtime.seconds) {
            node.mtime = Mtime::default();
        }
    }
    layer
}

/// What fsck extracts is the tree.
#[test]
fn fsck_extracts_every_sample_as_its_tree() {
    for (name, layer) in samples::all() {
        let layer = for_disk(layer);
        let files = Files::new(&layer);
        let arguments = ["--extract=to", "--preserve", "--xattrs", "one-file"];
        files.run(name, "fsck.erofs", &arguments);
        assert_directory_agrees(name, &layer, &files.path("to"));
    }
}

/// dump reads the superblock as we mean it.
#[test]
fn dump_counts_what_was_written() {
    for (name, layer) in samples::all() {
        let files = Files::new(&layer);
        let printed = files.run(name, "dump.erofs", &["-s", "--device=tar", "meta"]);
        let image = larder_proto::erofs::Image::open(layer.write(), layer.tar_len()).unwrap();
        let field = |key: &str| {
            let line = printed.lines().find(|line| line.contains(key));
            line.and_then(|line| line.split_whitespace().last())
                .unwrap_or_else(|| panic!("{name}: no {key} in {printed}"))
        };
        let inodes = image.inode_count().to_string();
        assert_eq!(field("Filesystem inode count"), inodes, "{name}");
        assert_eq!(field("Filesystem blocksize"), "512", "{name}");
        let root = image.root().0.to_string();
        assert_eq!(field("Filesystem root nid"), root, "{name}");
        assert!(printed.contains("device_table"), "{name}: {printed}");
    }
}
