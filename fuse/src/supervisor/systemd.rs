//! systemd: readiness, its store of descriptors, and sockets it listens on for us.

use std::collections::VecDeque;
use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};

use super::ITEMS_MAX;
use crate::stderr;
use crate::sys::inherited;

/// The first descriptor systemd hands over.
const FIRST: i32 = 3;

/// Descriptors taken from it: twice what a supervisor holds, since a socket unit may have some, too.
const COUNT_MAX: i32 = 128;

/// What a socket is called that systemd listens on for us, whatever its unit calls it.
pub(super) const ACTIVATED: &str = "activated";

/// Messages that systemd is owed while it does not listen: everything that is held, taken out and put in, and as
/// much again of other words.
const OWED_MAX: usize = 4 * ITEMS_MAX;

/// How soon it is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// How long that goes on at the end of the supervisor.
const SETTLE_MAX: Duration = Duration::from_secs(1);

/// The socket systemd hears us on. Nobody waits for it: what it does not take now is sent later.
#[derive(Debug)]
pub(super) struct Systemd {
    socket: Option<OsString>,
    owed: VecDeque<(String, Option<OwnedFd>)>,
}

impl Systemd {
    /// By the environment; without systemd nothing is told.
    pub(super) fn find() -> Self {
        Self::at(env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()))
    }

    fn at(socket: Option<OsString>) -> Self {
        Self {
            socket,
            owed: VecDeque::new(),
        }
    }

    /// Tells `state`, such as `READY=1`.
    pub(super) fn tell(&mut self, state: &str) {
        self.send(state, None);
    }

    /// Puts a descriptor into the store, in place of one of the same name.
    pub(super) fn store(&mut self, name: &str, descriptor: BorrowedFd<'_>) {
        self.remove(name);
        self.send(&format!("FDSTORE=1\nFDNAME={name}"), Some(descriptor));
    }

    /// Takes what has this name out of the store.
    pub(super) fn remove(&mut self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }

    fn send(&mut self, state: &str, descriptor: Option<BorrowedFd<'_>>) {
        let Some(socket) = &self.socket else { return };
        // What came before must be heard before.
        if self.owed.is_empty() {
            match send(socket, state, descriptor) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return told(state, done),
            }
        }
        let copy = descriptor.map(|descriptor| descriptor.try_clone_to_owned());
        match copy.transpose() {
            Ok(copy) if self.owed.len() < OWED_MAX => self.owed.push_back((state.to_owned(), copy)),
            Ok(_) => told(state, Err(io::ErrorKind::WouldBlock.into())),
            Err(error) => told(state, Err(error)),
        }
    }

    /// Sends what it did not take before; when to try again.
    pub(super) fn pay(&mut self) -> Option<Instant> {
        let socket = self.socket.as_ref()?;
        while let Some((state, descriptor)) = self.owed.front() {
            match send(socket, state, descriptor.as_ref().map(AsFd::as_fd)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Some(Instant::now() + AGAIN);
                }
                done => told(state, done),
            }
            self.owed.pop_front();
        }
        None
    }

    /// The same before the end, when nobody waits for anything else: what is left in its store would be taken for
    /// mounts at the next start.
    pub(super) fn settle(&mut self) {
        let until = Instant::now() + SETTLE_MAX;
        while self.pay().is_some() && Instant::now() < until {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn told(state: &str, done: io::Result<()>) {
    if let Err(error) = done {
        let first = state.lines().next().unwrap_or_default();
        stderr::say(&format!("cannot tell systemd {first}: {error}"));
    }
}

/// Has a program that is started not take itself for the service.
pub(super) fn hide_from(command: &mut Command) {
    for name in [
        "NOTIFY_SOCKET",
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
    ] {
        command.env_remove(name);
    }
}

fn send(socket: &OsStr, state: &str, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let address = match socket.as_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let from = UnixDatagram::unbound()?;
    from.connect_addr(&address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let text = [IoSlice::new(state.as_bytes())];
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(from.as_fd(), &text, &mut control, flags)?;
    Ok(())
}

/// What systemd kept of a supervisor before this one, by name, and the sockets it listens on.
///
/// Called once, before anything else is opened.
pub(super) fn kept() -> Vec<(String, OwnedFd)> {
    let number = |name: &str| env::var(name).ok()?.parse::<i32>().ok();
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, COUNT_MAX);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut kept = Vec::new();
    for raw in FIRST..FIRST + count {
        let name = names.next().unwrap_or_default().to_owned();
        match inherited(raw) {
            Ok(descriptor) => kept.push((named(name, &descriptor), descriptor)),
            Err(error) => stderr::say(&format!("descriptor {raw} of systemd: {error}")),
        }
    }
    kept
}

/// A listening socket that is not one of ours comes from a socket unit.
fn named(name: String, descriptor: &OwnedFd) -> String {
    let listens = sockopt::socket_acceptconn(descriptor).unwrap_or(false);
    let ours = matches!(&*name, "grpc" | "control");
    if listens && !ours {
        ACTIVATED.to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_reaches_a_path_and_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("larder-notify-test-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (receiver, target) in [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (
                UnixDatagram::bind_addr(&abstract_name).unwrap(),
                format!("@{name}").into(),
            ),
        ] {
            Systemd::at(Some(target)).tell("READY=1");
            let mut message = [0; 16];
            let len = receiver.recv(&mut message).unwrap();
            assert_eq!(&message[..len], b"READY=1");
        }
    }

    /// Promise: a systemd that does not listen keeps nobody waiting, and hears everything in order once it does.
    #[test]
    fn a_systemd_that_does_not_listen_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let mut systemd = Systemd::at(Some(path.into_os_string()));
        let file = tempfile::tempfile().unwrap();
        // Its queue is as long as net.unix.max_dgram_qlen, which is 512 with systemd.
        let mut sent = Vec::new();
        while systemd.owed.len() < 3 {
            let state = format!("STATUS={}", sent.len());
            systemd.tell(&state);
            sent.push(state);
        }
        systemd.store("lock", file.as_fd());
        sent.extend(["FDSTOREREMOVE=1\nFDNAME=lock", "FDSTORE=1\nFDNAME=lock"].map(String::from));
        assert!(systemd.pay().is_some());
        let (mut heard, mut into) = (Vec::new(), [0; 64]);
        while heard.len() < sent.len() {
            match receiver.recv(&mut into) {
                Ok(length) => heard.push(String::from_utf8_lossy(&into[..length]).into_owned()),
                Err(_) => drop(systemd.pay()),
            }
        }
        assert_eq!(heard, sent);
        assert!(systemd.pay().is_none() && systemd.owed.is_empty());
    }

    #[test]
    fn sockets_of_a_unit_are_known_by_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let listener = OwnedFd::from(listener);
        assert_eq!(
            named("larder-snapshotter.socket".into(), &listener),
            ACTIVATED
        );
        assert_eq!(named("grpc".into(), &listener), "grpc");
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        assert_eq!(named("counts".into(), &file), "counts");
    }
}
