//! A session, from its mount or its takeover to its end.

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fuser::{BackgroundSession, Session};
use rustix::mount::{MountFlags, UnmountFlags};
use tracing::warn;

use super::ahead::{Ahead, Asked};
use super::filesystem::LarderFs;
use super::greeting::{Exchange, resend};
use super::inode::Node;
use super::journal::{Begun, Entry, Journal};
use super::notices::Notices;
use super::pages::Pages;
use super::reads::READ_BYTES_MAX;
use super::replay::replay;
use super::{Manner, Slots};
use crate::apart::apart;
use crate::mount::SOURCE;

/// A mounted session. Its threads end when the kernel lets go of it.
#[derive(Debug)]
pub(crate) struct FuseMount {
    path: PathBuf,
    slots: Arc<Slots>,
    device: OwnedFd,
    exchange: Exchange,
    manner: Manner,
    journal: Option<Arc<Journal>>,
    /// What a daemon before began.
    left: Mutex<Vec<(Begun, Entry)>>,
    greeted: Mutex<Option<(Session<LarderFs>, Asked)>>,
    serving: OnceLock<(BackgroundSession, Notices)>,
    /// For sessions whose devices EROFS reads.
    pages: OnceLock<Pages>,
}

impl FuseMount {
    /// Mounts at `path` and begins to answer. Enters the session itself: not for FUSE threads.
    pub(crate) fn mount(path: &Path, slots: &Arc<Slots>, manner: Manner) -> io::Result<Self> {
        crate::create_private(path)?;
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
        rustix::mount::mount(SOURCE, path, "fuse", MountFlags::RDONLY, Some(&*options))?;
        let device = OwnedFd::from(device);
        let started = (|| -> io::Result<_> {
            let (ahead, asked) = ahead(manner);
            let mut journal = None;
            let (session, exchange) = Exchange::first(&device, |can_resend| {
                if !(can_resend && manner.resend) {
                    journal = Some(Arc::new(Journal::new()?));
                }
                let journal = journal.clone();
                Ok(LarderFs::new(slots.clone(), manner, ahead, journal))
            })?;
            let mount = Self {
                path: path.to_owned(),
                slots: slots.clone(),
                device,
                exchange,
                manner,
                journal,
                left: Mutex::default(),
                greeted: Mutex::new(Some((session, asked))),
                serving: OnceLock::new(),
                pages: OnceLock::new(),
            };
            mount.serve()?;
            Ok(mount)
        })();
        let mount = started.inspect_err(|_| detach(path))?;
        if let Some(read_ahead_kb) = manner.reads.read_ahead_kb()
            && let Err(error) = mount.set_read_ahead(read_ahead_kb)
        {
            warn!(%error, "cannot set the session's read-ahead; trees are read in smaller pieces");
        }
        Ok(mount)
    }

    /// Goes on with the session that is mounted at `path`, of which another daemon had `device`.
    /// Nothing is answered before [`FuseMount::serve`].
    pub(super) fn take_over(
        path: PathBuf,
        slots: Arc<Slots>,
        manner: Manner,
        device: OwnedFd,
        exchange: Exchange,
        journal: Option<OwnedFd>,
    ) -> io::Result<Self> {
        let journal = match journal {
            Some(journal) => Some(Journal::of(journal)?),
            None if exchange.can_resend() && manner.resend => None,
            None => Some(Journal::new()?),
        };
        let journal = journal.map(Arc::new);
        let left = journal.as_ref().map(Journal::left).unwrap_or_default();
        let (ahead, asked) = ahead(manner);
        let filesystem = LarderFs::new(slots.clone(), manner, ahead, journal.clone());
        let session = exchange.again(filesystem, &device)?;
        Ok(Self {
            path,
            slots,
            device,
            exchange,
            manner,
            journal,
            left: Mutex::new(left),
            greeted: Mutex::new(Some((session, asked))),
            serving: OnceLock::new(),
            pages: OnceLock::new(),
        })
    }

    /// Has the kernel send again what the daemon before had read. Once, before [`FuseMount::serve`].
    pub(super) fn resend(&self) -> io::Result<()> {
        match self.journal {
            None => resend(&self.device),
            Some(_) => Ok(()),
        }
    }

    /// Begins to answer.
    pub(super) fn serve(&self) -> io::Result<()> {
        let mut greeted = self.greeted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((session, asked)) = greeted.take() {
            let session = session.spawn()?;
            let notices = Notices::to(self.device.try_clone()?)?;
            asked.serve(&self.path, self.slots.clone(), notices.clone())?;
            let _ = self.serving.set((session, notices));
            if !self.manner.without_opens {
                let _ = self.pages.set(Pages::of(self.device.try_clone()?)?);
            }
            let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
            let left = std::mem::take(&mut *left);
            let filesystem = LarderFs::new(self.slots.clone(), self.manner, None, None);
            replay(left, filesystem, &self.exchange, self.device.try_clone()?)?;
        }
        Ok(())
    }

    /// The device, for the supervisor to keep.
    pub(super) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// The journal, for the supervisor to keep, if there has to be one.
    pub(super) fn journal(&self) -> Option<BorrowedFd<'_>> {
        self.journal.as_ref().map(|journal| journal.as_fd())
    }

    /// What was said at its beginning.
    pub(super) fn exchange(&self) -> &Exchange {
        &self.exchange
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
        let Some((_, notices)) = self.serving.get() else {
            return;
        };
        for directory in [Node::Devices, Node::Trees] {
            notices.forget(directory.number(), slot.to_string());
        }
    }

    /// Asks the kernel to give back pages of the device in a slot, if it is one of those that EROFS reads.
    pub(crate) fn give_back_pages(&self, slot: u32, ranges: Vec<Range<u64>>) {
        if let Some(pages) = self.pages.get() {
            pages.give_back(slot, ranges);
        }
    }

    /// Copied into a file when it is opened, hence before any EROFS mount.
    fn set_read_ahead(&self, kib: u32) -> io::Result<()> {
        let device = apart(|| std::fs::metadata(&self.path).map(|found| found.dev()))?;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        std::fs::write(path, kib.to_string())
    }
}

fn ahead(manner: Manner) -> (Option<Ahead>, Asked) {
    let (ahead, asked) = Ahead::new();
    // Without mounted trees there is nothing to read ahead, and the threads end at once.
    (Some(ahead).filter(|_| manner.without_opens), asked)
}

fn detach(path: &Path) {
    if let Err(error) = rustix::mount::unmount(path, UnmountFlags::DETACH) {
        warn!(path = %path.display(), %error, "cannot unmount the session");
    }
}
