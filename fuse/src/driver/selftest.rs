//! Whether the kernel's EROFS tells when its device fails.
//!
//! Some kernels turn a device read that ends early into zeros (CVE-2026-31514), and programs would
//! run on them. So a tiny file is read whose one page lies half in readable bytes of a device and
//! half in bytes that fail: only an error is a right answer. The session serves both the image and the
//! device, and the mount has no place: the test needs no room on the disk.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use larder_proto::erofs;
use larder_proto::tree::{Extent, Kind, Node, ROOT, Tree};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::mount::{Erofs, open_erofs};
use crate::session::Faulty;
use crate::sys::page_size;

/// Where the test's file begins on the device: its first page ends in the device's second.
const FILE_OFFSET: u64 = 512;

/// Pages of the device: one that can be read, and one that cannot.
const PAGES: usize = 2;

const NAME: &str = "half";

/// The parts of the test.
#[derive(Debug)]
pub(crate) struct SelfTest;

impl SelfTest {
    /// The image to serve.
    pub(crate) fn image() -> Result<Faulty, String> {
        let page = page_size();
        let mut tree = Tree::new();
        let file = tree.add(Node {
            kind: Kind::Regular {
                size: page,
                extents: vec![Extent {
                    file_offset: 0,
                    tar_offset: FILE_OFFSET,
                    len: page,
                }],
            },
            ..Node::directory()
        });
        if let Kind::Directory(entries) = &mut tree.node_mut(ROOT).kind {
            entries.insert(NAME.into(), file);
        }
        let bytes = erofs::write(&tree, 2 * page).map_err(|error| error.to_string())?;
        Ok(Faulty { bytes, fails: 0..0 })
    }

    /// The device to serve. FUSE reads it, hence fails, by pages.
    pub(crate) fn device() -> Faulty {
        let page = page_size();
        Faulty {
            bytes: vec![0; PAGES * usize::try_from(page).unwrap_or_default()],
            fails: page..2 * page,
        }
    }
}

/// Mounts the test's image at `image`, with the faulty device at `device`, where nobody sees it, and
/// reads, past the page cache as well if `direct_too`. `Err` says what makes EROFS unusable here.
pub(crate) fn kernel_is_safe(
    image: &Path,
    device: PathBuf,
    direct_too: bool,
) -> Result<(), String> {
    // As layers are read when they are whole, and before; errors take another way through the kernel in each.
    let devices = [device];
    let mut ways = [false, true].into_iter().take(1 + usize::from(direct_too));
    ways.try_for_each(|direct_reads| {
        is_safe(Erofs {
            image,
            devices: &devices,
            direct_reads,
        })
    })
}

fn is_safe(erofs: Erofs<'_>) -> Result<(), String> {
    let root = open_erofs(erofs).map_err(|error| format!("EROFS does not work: {error}"))?;
    let mut bytes = Vec::new();
    let read = openat(&root, NAME, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|file| File::from(file).read_to_end(&mut bytes));
    judge(read.map(|_| bytes))
}

/// What reading the file says about the kernel. The device fails with EIO: another error comes from
/// elsewhere, and says nothing about what the kernel does with this one.
fn judge(read: io::Result<Vec<u8>>) -> Result<(), String> {
    match read {
        Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(()),
        Err(error) => Err(format!("the test's file cannot be read: {error}")),
        Ok(_) => Err("the kernel's EROFS turns failed device reads into zeros; upgrade it".into()),
    }
}

#[cfg(test)]
mod tests {
    use larder_test_support::on_erofs_blocking;

    use super::*;

    #[test]
    fn only_the_error_of_the_device_passes_the_self_test() {
        let failed = |errno: Errno| Err(io::Error::from(errno));
        assert_eq!(judge(failed(Errno::IO)), Ok(()));
        for other in [Errno::NOENT, Errno::ACCESS, Errno::NXIO, Errno::NOMEM] {
            assert!(judge(failed(other)).is_err(), "{other}");
        }
        assert!(judge(Ok(vec![0; 10])).unwrap_err().contains("zeros"));
    }

    /// Promise: a kernel that shows bytes where the device failed does not pass; a device that does not
    /// fail looks the same.
    fn the_self_test_refuses_what_reads_on() {
        let scratch = tempfile::tempdir().unwrap();
        let [image, device] = ["image", "device"].map(|name| scratch.path().join(name));
        std::fs::write(&image, SelfTest::image().unwrap().bytes).unwrap();
        let missing = kernel_is_safe(&image, device.clone(), true).unwrap_err();
        assert!(missing.contains("EROFS does not work"), "{missing}");
        std::fs::write(&device, SelfTest::device().bytes).unwrap();
        let refused = kernel_is_safe(&image, device, true).unwrap_err();
        assert!(refused.contains("zeros"), "{refused}");
    }

    on_erofs_blocking!(the_self_test_refuses_what_reads_on);
}
