//! Whether the kernel's EROFS tells when its device fails.
//!
//! Some kernels turn a device read that ends early into zeros (CVE-2026-31514), and programs would
//! run on them. So a tiny file is read whose one page lies half in readable bytes of a device and
//! half in bytes that fail: only an error is a right answer.

use std::io;
use std::path::Path;

use larder_proto::erofs;
use larder_proto::tree::{Extent, Kind, Node, ROOT, Tree};
use rustix::io::Errno;

use crate::mount::{Erofs, Unmount, mount_erofs, unmount};
use crate::session::Faulty;
use crate::sys::page_size;

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
            entries.insert(NAME.to_vec(), file);
        }
        let image = erofs::write(&tree, 2 * page).map_err(|error| error.to_string())?;
        Ok(Self { image })
    }

    /// The device to serve. FUSE reads it, hence fails, by pages.
    pub(crate) fn device() -> Faulty {
        let page = page_size();
        Faulty {
            len: 2 * page,
            fails: page..2 * page,
        }
    }
}

/// Mounts the test's image, with the faulty device at `device`, in the empty directory `scratch`,
/// and reads. `Err` says what makes EROFS unusable here.
pub(crate) fn kernel_is_safe(test: &SelfTest, device: &Path, scratch: &Path) -> Result<(), String> {
    let (image, target) = (scratch.join("image"), scratch.join("mount"));
    let prepared = crate::create_private(&target)
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
            devices: &[device.to_owned()],
        };
        mount_erofs(erofs, &target).map_err(|error| format!("EROFS does not work: {error}"))?;
        let name = target.join(String::from_utf8_lossy(NAME).as_ref());
        let read = std::fs::read(name);
        let _ = unmount(&target, Unmount::Lazy);
        Ok(read)
    });
    let _ = std::fs::remove_dir_all(scratch);
    judge(read?)
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
        let device = scratch.path().join("device");
        let test = SelfTest::new().unwrap();
        let at = scratch.path().join("at");
        let missing = kernel_is_safe(&test, &device, &at).unwrap_err();
        assert!(missing.contains("EROFS does not work"), "{missing}");
        let len = usize::try_from(SelfTest::device().len).unwrap();
        std::fs::write(&device, vec![0; len]).unwrap();
        let refused = kernel_is_safe(&test, &device, &at).unwrap_err();
        assert!(refused.contains("zeros"), "{refused}");
        assert!(!at.exists(), "the test leaves nothing");
    }

    on_erofs_blocking!(the_self_test_refuses_what_reads_on);
}
