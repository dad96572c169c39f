//! Answering what a daemon before began, from its journal.
//!
//! The requests are put together again and given to a session of their own, at the other end of a
//! socket pair; its replies are passed on to the device. The kernel does not mind who writes them, and
//! refuses replies to what was answered after all.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use super::filesystem::LarderFs;
use super::greeting::Exchange;
use super::journal::{Begun, Entry};
use super::reads::READ_BYTES_MAX;

/// Operations by their numbers in the protocol.
pub(super) mod operation {
    pub(in super::super) const LOOKUP: u32 = 1;
    pub(in super::super) const GETATTR: u32 = 3;
    pub(in super::super) const READLINK: u32 = 5;
    pub(in super::super) const OPEN: u32 = 14;
    pub(in super::super) const READ: u32 = 15;
    pub(in super::super) const STATFS: u32 = 17;
    pub(in super::super) const RELEASE: u32 = 18;
    pub(in super::super) const GETXATTR: u32 = 22;
    pub(in super::super) const LISTXATTR: u32 = 23;
    pub(in super::super) const FLUSH: u32 = 25;
    pub(in super::super) const OPENDIR: u32 = 27;
    pub(in super::super) const READDIR: u32 = 28;
    pub(in super::super) const READDIRPLUS: u32 = 44;
}

/// Longest read answered where the socket's buffer cannot be raised: what the kernel reads ahead by
/// default.
const READ_UNPRIVILEGED_MAX: u64 = 128 << 10;

/// Longest reply, bytes: the longest read, and a header.
const REPLY_MAX: usize = (1 << 20) + 4096;
const _: () = assert!(REPLY_MAX as u64 == READ_BYTES_MAX + 4096);

/// Answers `left` on `device`, on a thread that ends with the last of them.
pub(super) fn replay(
    left: Vec<(Begun, Entry)>,
    filesystem: LarderFs,
    exchange: &Exchange,
    device: OwnedFd,
) -> io::Result<()> {
    if left.is_empty() {
        return Ok(());
    }
    tracing::info!(
        requests = left.len(),
        "answering what the daemon before had begun"
    );
    let (session, ours) = exchange.aside(filesystem)?;
    // Half of what is set is for the kernel's own books.
    let read_max = match sockopt::set_socket_send_buffer_size_force(&session, 4 * REPLY_MAX) {
        Ok(()) => READ_BYTES_MAX,
        // Without CAP_NET_ADMIN, what the system gives everybody has to do.
        Err(_) => READ_UNPRIVILEGED_MAX,
    };
    let session = session.spawn()?;
    let thread = std::thread::Builder::new().name("larder-replay".into());
    thread.spawn(move || {
        if let Err(error) = pass_on(left, read_max, &ours, &device) {
            tracing::error!(%error, "what the daemon before had begun is not answered: readers hang");
        }
        // Without its other end, the session ends.
        drop((ours, session));
    })?;
    Ok(())
}

fn pass_on(
    mut left: Vec<(Begun, Entry)>,
    read_max: u64,
    session: &OwnedFd,
    device: &OwnedFd,
) -> io::Result<()> {
    left.retain(|(begun, _)| {
        let fits = begun.operation != operation::READ || u64::from(begun.len) <= read_max;
        if !fits {
            refuse(begun, device);
        }
        fits
    });
    let mut entries = HashMap::new();
    let mut buffer = vec![0; REPLY_MAX];
    let mut left = left.into_iter().peekable();
    while left.peek().is_some() || !entries.is_empty() {
        // As many questions as the socket takes, then answers.
        while let Some((begun, _)) = left.peek() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(session, &put_together(begun), flags) {
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) if !entries.is_empty() => break,
                Err(error) => return Err(error.into()),
            }
            if let Some((begun, entry)) = left.next() {
                entries.insert(begun.unique, entry);
            }
        }
        let (len, _) = recv(session, &mut buffer[..], RecvFlags::empty())?;
        let reply = &buffer[..len];
        let Some(Ok(unique)) = reply.get(8..16).map(<[u8; 8]>::try_from) else {
            return Err(io::Error::other("the session ended"));
        };
        match rustix::io::write(device, reply) {
            // Answered before the daemon died, or nobody waits any more.
            Ok(_) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        entries.remove(&u64::from_ne_bytes(unique));
    }
    Ok(())
}

/// Answers with an error what cannot be answered otherwise: better than no answer.
fn refuse(begun: &Begun, device: &OwnedFd) {
    let mut reply = 16u32.to_ne_bytes().to_vec();
    reply.extend((-rustix::io::Errno::IO.raw_os_error()).to_ne_bytes());
    reply.extend(begun.unique.to_ne_bytes());
    if let Err(error) = rustix::io::write(device, &reply) {
        tracing::debug!(%error, "a request of the daemon before was answered already");
    }
}

/// The request as the kernel had sent it, as far as it matters here.
fn put_together(begun: &Begun) -> Vec<u8> {
    let mut body = Vec::new();
    let mut name = begun.name.clone();
    name.push(0);
    match begun.operation {
        operation::LOOKUP => body = name,
        operation::GETATTR => body.resize(16, 0),
        operation::OPEN | operation::OPENDIR => body.resize(8, 0),
        operation::READ | operation::READDIR | operation::READDIRPLUS => {
            body.resize(8, 0);
            body.extend(begun.offset.to_ne_bytes());
            body.extend(begun.len.to_ne_bytes());
            body.resize(40, 0);
        }
        operation::RELEASE | operation::FLUSH => body.resize(24, 0),
        operation::GETXATTR | operation::LISTXATTR => {
            body.extend(begun.len.to_ne_bytes());
            body.resize(8, 0);
            if begun.operation == operation::GETXATTR {
                body.extend(name);
            }
        }
        _ => {}
    }
    let len = u32::try_from(40 + body.len()).unwrap_or(u32::MAX);
    let mut request = len.to_ne_bytes().to_vec();
    request.extend(begun.operation.to_ne_bytes());
    request.extend(begun.unique.to_ne_bytes());
    request.extend(begun.inode.to_ne_bytes());
    request.resize(40, 0);
    request.extend(body);
    request
}
