//! Mounting the session.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{BackgroundSession, Config, INodeNo, Session, SessionACL};
use rustix::mount::{MountFlags, UnmountFlags};
use tracing::warn;

use super::ahead::Ahead;
use super::filesystem::LarderFs;
use super::inode::Node;
use super::reads::READ_BYTES_MAX;
use super::{Manner, Slots};
use crate::config::DeviceReads;
use crate::mount::SOURCE;

/// Threads that read requests. They never wait, so two keep two processors busy; cloned
/// descriptors would lose requests when the daemon dies.
const THREADS: usize = 2;

/// The mounted session. Its threads end when the kernel lets go of it.
#[derive(Debug)]
pub(crate) struct FuseMount {
    path: PathBuf,
    session: BackgroundSession,
}

impl FuseMount {
    /// Mounts at `path` and begins to answer. Enters the session itself: not for FUSE threads.
    pub(crate) fn mount(path: PathBuf, slots: Arc<Slots>, manner: Manner) -> io::Result<Self> {
        crate::create_private(&path)?;
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read={}",
            device.as_raw_fd(),
            READ_BYTES_MAX
        );
        let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
        // Devices and setuid files are part of images: neither nodev nor nosuid.
        rustix::mount::mount(SOURCE, &path, "fuse", MountFlags::RDONLY, Some(&*options))?;
        let started = (|| -> io::Result<_> {
            let mut config = Config::default();
            config.acl = SessionACL::All;
            config.n_threads = Some(THREADS);
            let (ahead, asked) = Ahead::new();
            // Without mounted trees there is nothing to read ahead, and the threads end at once.
            let ahead = Some(ahead).filter(|_| manner.without_opens);
            let filesystem = LarderFs::new(slots.clone(), manner, ahead);
            let device = OwnedFd::from(device);
            let session = Session::from_fd(filesystem, device, SessionACL::All, config)?.spawn()?;
            asked.serve(&path, slots, session.notifier())?;
            Ok(session)
        })();
        let session = started.inspect_err(|_| detach(&path))?;
        let mount = Self { path, session };
        if let DeviceReads::Buffered { read_ahead_kb } = manner.reads
            && let Err(error) = mount.set_read_ahead(read_ahead_kb)
        {
            warn!(%error, "cannot set the session's read-ahead; trees are read in smaller pieces");
        }
        Ok(mount)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the mount away from the name space; whoever has files open keeps them.
    pub(crate) fn detach(&self) {
        detach(&self.path);
    }

    /// Asks the kernel to forget the names of a slot that goes away. Not for FUSE threads.
    pub(crate) fn forget(&self, slot: u32) {
        let notifier = self.session.notifier();
        for directory in [Node::Devices, Node::Trees] {
            let parent = INodeNo(directory.number());
            // A name the kernel does not know is an error that does not matter.
            let _ = notifier.inval_entry(parent, slot.to_string().as_ref());
        }
    }

    /// Copied into a file when it is opened, hence before any EROFS mount.
    fn set_read_ahead(&self, kib: u32) -> io::Result<()> {
        let device = std::fs::metadata(&self.path)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        std::fs::write(path, kib.to_string())
    }
}

fn detach(path: &Path) {
    if let Err(error) = rustix::mount::unmount(path, UnmountFlags::DETACH) {
        warn!(path = %path.display(), %error, "cannot unmount the session");
    }
}
