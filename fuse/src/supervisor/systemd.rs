//! systemd: readiness, its store of descriptors, and sockets it listens on for us.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};

use super::voice;
use crate::sys::inherited;

/// The first descriptor systemd hands over.
const FIRST: i32 = 3;

/// Descriptors taken from it: twice what a supervisor holds, since a socket unit may have some, too.
const COUNT_MAX: i32 = 128;

/// What a socket is called that systemd listens on for us, whatever its unit calls it.
pub(super) const ACTIVATED: &str = "activated";

/// The socket systemd hears us on.
#[derive(Debug)]
pub(super) struct Systemd(Option<OsString>);

impl Systemd {
    /// By the environment; without systemd nothing is told.
    pub(super) fn find() -> Self {
        Self(env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()))
    }

    /// Tells `state`, such as `READY=1`.
    pub(super) fn tell(&self, state: &str) {
        self.send(state, None);
    }

    /// Puts a descriptor into the store, in place of one of the same name.
    pub(super) fn store(&self, name: &str, descriptor: BorrowedFd<'_>) {
        self.remove(name);
        self.send(&format!("FDSTORE=1\nFDNAME={name}"), Some(descriptor));
    }

    /// Takes what has this name out of the store.
    pub(super) fn remove(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={name}"), None);
    }

    fn send(&self, state: &str, descriptor: Option<BorrowedFd<'_>>) {
        let Some(socket) = &self.0 else { return };
        if let Err(error) = send(socket, state, descriptor) {
            let first = state.lines().next().unwrap_or_default();
            voice::plain(&format!("cannot tell systemd {first}: {error}"));
        }
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
    sendmsg(from.as_fd(), &text, &mut control, SendFlags::NOSIGNAL)?;
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
            Err(error) => voice::plain(&format!("descriptor {raw} of systemd: {error}")),
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
            Systemd(Some(target)).tell("READY=1");
            let mut message = [0; 16];
            let len = receiver.recv(&mut message).unwrap();
            assert_eq!(&message[..len], b"READY=1");
        }
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
