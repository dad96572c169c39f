//! What the kernel is told unasked: bytes for its page cache, and names to forget.
//!
//! It may wait meanwhile, for a page that is being read or a directory that is being looked at, hence
//! for an answer of the FUSE threads, and if the daemon is killed then, for the next one's. So a
//! thread of its own tells it, which holds nothing but the device.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::sys::spawn_with_only;

/// Notices under way: the kernel takes one at a time, and who is ahead of it waits.
const WAITING_MAX: usize = 1;

/// Kinds of notices, by the numbers of the protocol.
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
const STORE: i32 = 4;

/// One notice.
#[derive(Debug)]
enum Notice {
    Store { node: u64, bytes: Vec<u8> },
    Forget { directory: u64, name: String },
}

/// Tells the kernel; clones tell it by the same thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Notices(SyncSender<Notice>);

impl Notices {
    /// Starts the thread.
    pub(super) fn to(device: OwnedFd) -> io::Result<Self> {
        let (sender, notices) = sync_channel(WAITING_MAX);
        spawn_with_only("larder-notices", device, move |device| {
            for notice in notices {
                // What the kernel does not know any more is no error.
                if let Err(error) = tell(&device, &notice)
                    && error.kind() != io::ErrorKind::NotFound
                {
                    tracing::debug!(%error, "the kernel refused a notice");
                }
            }
        })?;
        Ok(Self(sender))
    }

    /// Puts `bytes`, the whole of a file, into the page cache. Not for FUSE threads: it may wait.
    pub(super) fn store(&self, node: u64, bytes: Vec<u8>) {
        self.send(Notice::Store { node, bytes });
    }

    /// Has the kernel forget a name. Not for FUSE threads: it may wait.
    pub(super) fn forget(&self, directory: u64, name: String) {
        self.send(Notice::Forget { directory, name });
    }

    fn send(&self, notice: Notice) {
        // The thread ends only with us.
        let _ = self.0.send(notice);
    }
}

fn tell(device: &OwnedFd, notice: &Notice) -> io::Result<()> {
    let device = device.as_fd();
    match notice {
        Notice::Store { node, bytes } => {
            let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            let mut about = node.to_ne_bytes().to_vec();
            about.extend(0u64.to_ne_bytes());
            about.extend(len.to_ne_bytes());
            about.extend(0u32.to_ne_bytes());
            write(device, STORE, &about, bytes)
        }
        Notice::Forget { directory, name } => {
            let len = u32::try_from(name.len()).map_err(io::Error::other)?;
            let mut about = directory.to_ne_bytes().to_vec();
            about.extend(len.to_ne_bytes());
            about.extend(0u32.to_ne_bytes());
            let name = [name.as_bytes(), b"\0"].concat();
            write(device, INVAL_ENTRY, &about, &name)
        }
    }
}

/// Has the kernel give back the pages of a file in `range`. It waits for those that are being read.
pub(super) fn forget_pages(device: &OwnedFd, node: u64, range: &Range<u64>) -> io::Result<()> {
    let mut about = node.to_ne_bytes().to_vec();
    about.extend(range.start.to_ne_bytes());
    about.extend((range.end - range.start).to_ne_bytes());
    write(device.as_fd(), INVAL_INODE, &about, b"")
}

/// A header, in which a kind stands where a reply has its error, and 0 for the request; then the rest.
fn write(device: BorrowedFd<'_>, kind: i32, about: &[u8], rest: &[u8]) -> io::Result<()> {
    let len = u32::try_from(16 + about.len() + rest.len()).map_err(io::Error::other)?;
    let mut header = len.to_ne_bytes().to_vec();
    header.extend(kind.to_ne_bytes());
    header.extend(0u64.to_ne_bytes());
    let parts = [&header, about, rest].map(IoSlice::new);
    rustix::io::writev(device, &parts)?;
    Ok(())
}
