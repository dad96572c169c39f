//! The first words between the kernel and a session, and the same words again for the next daemon.
//!
//! fuser reads them from a socket pair, whoever speaks at its other end: the kernel the first time,
//! and after a takeover what the kernel had said. Then the device takes the socket's place.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use fuser::{Config, Session, SessionACL};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use serde::{Deserialize, Serialize};

use super::filesystem::LarderFs;
use crate::sys::replace;

/// Threads that read requests. They never wait, so two keep two processors busy; cloned
/// descriptors would lose requests when the daemon dies.
const THREADS: usize = 2;

/// Longest request or reply of the exchange, bytes. It takes 104 and 80; the kernel wants readers to
/// have room for 8 KiB at least.
const GREETING_MAX: usize = 64 << 10;

/// Places in INIT: after the headers of 40 and 16 bytes, in both major, minor, read-ahead, flags; then
/// the request's further flags, and the reply's after 16 bytes of limits.
const REQUEST_FLAGS: [usize; 2] = [40 + 12, 40 + 16];
const REPLY_FLAGS: [usize; 2] = [16 + 12, 16 + 32];

/// Place and bit of FUSE_HAS_RESEND in the request's further flags.
const HAS_RESEND: (usize, u32) = (REQUEST_FLAGS[1], 1 << (39 - 32));

/// FUSE_NOTIFY_RESEND: send again what was read and not answered. A header without a body.
const RESEND: i32 = 7;

/// What the kernel said, and what it was answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exchange {
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Exchange {
    /// Greets the kernel behind `device`, for the first time. `filesystem` is made once it is known
    /// whether that can send requests again.
    pub(super) fn first(
        device: &OwnedFd,
        filesystem: impl FnOnce(bool) -> io::Result<LarderFs>,
    ) -> io::Result<(Session<LarderFs>, Self)> {
        let mut kernel = std::fs::File::from(device.try_clone()?);
        let mut request = vec![0; GREETING_MAX];
        let len = kernel.read(&mut request)?;
        request.truncate(len);
        let filesystem = filesystem(can_resend(&request))?;
        let (session, reply, _) = greet(filesystem, &request)?;
        kernel.write_all(&reply)?;
        replace(session.as_fd(), device.as_fd())?;
        Ok((session, Self { request, reply }))
    }

    /// The same for the next daemon: it is offered what is in force, and nothing else.
    pub(super) fn again(
        &self,
        filesystem: LarderFs,
        device: &OwnedFd,
    ) -> io::Result<Session<LarderFs>> {
        let (session, _) = self.aside(filesystem)?;
        replace(session.as_fd(), device.as_fd())?;
        Ok(session)
    }

    /// A session that was greeted in the same way, with the other end of the socket pair it reads.
    pub(super) fn aside(&self, filesystem: LarderFs) -> io::Result<(Session<LarderFs>, OwnedFd)> {
        let mut request = self.request.clone();
        for (to, from) in REQUEST_FLAGS.into_iter().zip(REPLY_FLAGS) {
            let (Some(to), Some(from)) =
                (request.get_mut(to..to + 4), self.reply.get(from..from + 4))
            else {
                return Err(io::Error::other("the recorded greeting is too short"));
            };
            to.copy_from_slice(from);
        }
        let (session, _, other_end) = greet(filesystem, &request)?;
        Ok((session, other_end))
    }

    /// Whether the kernel can send again what a dead daemon had read: since 6.9.
    pub(super) fn can_resend(&self) -> bool {
        can_resend(&self.request)
    }
}

fn can_resend(request: &[u8]) -> bool {
    let (at, bit) = HAS_RESEND;
    let flags = request.get(at..at + 4);
    let flags = flags.and_then(|bytes| bytes.try_into().ok());
    flags.is_some_and(|bytes| u32::from_ne_bytes(bytes) & bit != 0)
}

/// Asks the kernel to send again what was read from `device` and not answered. Before anything is
/// read, so that nothing is answered twice.
pub(super) fn resend(device: &OwnedFd) -> io::Result<()> {
    let mut notice = Vec::with_capacity(16);
    notice.extend(16u32.to_ne_bytes());
    notice.extend(RESEND.to_ne_bytes());
    notice.extend(0u64.to_ne_bytes());
    rustix::io::write(device, &notice)?;
    Ok(())
}

/// Has fuser answer `request`.
fn greet(
    filesystem: LarderFs,
    request: &[u8],
) -> io::Result<(Session<LarderFs>, Vec<u8>, OwnedFd)> {
    let (ours, theirs) = pair()?;
    send(&ours, request, SendFlags::NOSIGNAL)?;
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(THREADS);
    let session = Session::from_fd(filesystem, theirs, SessionACL::All, config)?;
    let mut reply = vec![0; GREETING_MAX];
    let (len, _) = recv(&ours, &mut reply[..], RecvFlags::DONTWAIT)?;
    reply.truncate(len);
    Ok((session, reply, ours))
}

/// Two ends that keep the borders of messages, as the device does.
fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (flags, kind) = (SocketFlags::CLOEXEC, SocketType::SEQPACKET);
    Ok(socketpair(AddressFamily::UNIX, kind, flags, None)?)
}
