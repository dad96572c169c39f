//! Whether the kernel's EROFS tells when its device fails.
//!
//! Some kernels turn a device read that ends early into zeros (CVE-2026-31514), and programs would
//! run on them. So a tiny file is read whose one page lies half in readable bytes of a device and
//! half in bytes that fail: only an error is a right answer.

use std::path::Path;

use larder_proto::erofs;
use larder_proto::tree::{Extent, Kind, Node, ROOT, Tree};

use crate::mount::{Erofs, Unmount, mount_erofs, unmount};
use crate::session::Faulty;

/// The unit in which FUSE reads a device, hence fails, bytes.
const PAGE: u64 = 4096;

/// Where the test's file begins on the device: its first page ends in the device's second.
const FILE_OFFSET: u64 = 512;

const NAME: &[u8] = b"half";

/// The parts of the test.
#[derive(Debug)]
pub(crate) struct SelfTest {
    image: Vec<u8>,
}

impl SelfTest {
    pub(crate) fn new() -> Result<Self, String> {
        let mut tree = Tree::new();
        let file = tree.add(Node {
            kind: Kind::Regular {
                size: PAGE,
                extents: vec![Extent {
                    file_offset: 0,
                    tar_offset: FILE_OFFSET,
                    len: PAGE,
                }],
            },
            ..Node::directory()
        });
        if let Kind::Directory(entries) = &mut tree.node_mut(ROOT).kind {
            entries.insert(NAME.to_vec(), file);
        }
        let image = erofs::write(&tree, 2 * PAGE).map_err(|error| error.to_string())?;
        Ok(Self { image })
    }

    /// The device to serve.
    pub(crate) fn device() -> Faulty {
        Faulty {
            len: 2 * PAGE,
            fails: PAGE..2 * PAGE,
        }
    }
}

/// Mounts the test's image, with the faulty device at `device`, in the empty directory `scratch`,
/// and reads. `Err` says what makes EROFS unusable here.
pub(crate) fn kernel_is_safe(test: &SelfTest, device: &Path, scratch: &Path) -> Result<(), String> {
    let (image, target) = (scratch.join("image"), scratch.join("mount"));
    let prepared = std::fs::create_dir_all(&target)
        .and_then(|()| std::fs::write(&image, &test.image))
        .map_err(|error| {
            format!(
                "the self-test cannot write to {}: {error}",
                scratch.display()
            )
        });
    let read = prepared.and_then(|()| {
        let erofs = Erofs {
            image: &image,
            device,
        };
        mount_erofs(erofs, &target).map_err(|error| format!("EROFS does not work: {error}"))?;
        let name = target.join(String::from_utf8_lossy(NAME).as_ref());
        let read = std::fs::read(name);
        let _ = unmount(&target, Unmount::Lazy);
        Ok(read)
    });
    let _ = std::fs::remove_dir_all(scratch);
    match read? {
        Err(_) => Ok(()),
        Ok(_) => Err("the kernel's EROFS turns failed device reads into zeros; upgrade it".into()),
    }
}
