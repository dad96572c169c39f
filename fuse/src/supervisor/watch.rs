//! Ends the sessions of a process that was killed and has no supervisor, as that of `mount`.
//!
//! The kernel ends a session when the last who has its device is gone. A thread of a killed process may wait in
//! the kernel for a page that a read of that very session has locked, which nobody answers any more: it cannot die, has
//! the device, and every reader waits with it. Another process tells the kernel to end the session all the same. It
//! has what does that, of these sessions and no others, and a socket that closes when they are to end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::SigSet;
use rustix::fs::{Mode, OFlags, openat};

use super::channel::Channel;
use crate::life::close_with_life;
use crate::mount::{mounts, open_fuse_control};

/// Says that what comes with it ends a session.
const SESSION: &str = "session";

/// Sessions that are watched: a data plane has two at most; as much again for builds to come.
const SESSIONS_MAX: usize = 4;

/// Starts `watcher`, a program that does [`watch`], for the sessions that are mounted at these paths.
pub(crate) fn start(sessions: &[&Path], mut watcher: Command) -> io::Result<Child> {
    let (channel, theirs) = Channel::pair()?;
    for abort in aborts(sessions)? {
        channel.say(SESSION, "", Some(abort.as_fd()))?;
    }
    // A terminal's ^C is for the process that is watched. Nobody's directory is to be busy for the watcher.
    watcher.process_group(0).current_dir("/");
    watcher.stdin(Stdio::from(theirs)).stdout(Stdio::null());
    let watcher = watcher.spawn()?;
    close_with_life(channel.into())?;
    Ok(watcher)
}

/// The files that end sessions when they are written to. One is of its session for ever, whatever has the number of
/// that later.
fn aborts(sessions: &[&Path]) -> io::Result<Vec<OwnedFd>> {
    let control = open_fuse_control().map_err(io::Error::other)?;
    let table = mounts()?;
    let abort = |session: &&Path| -> io::Result<OwnedFd> {
        let mount = table
            .iter()
            .rfind(|mount| mount.kind == "fuse" && mount.target == **session);
        let number = mount.and_then(|mount| mount.device.split_once(':'));
        let (_, minor) = number.ok_or(io::ErrorKind::NotFound)?;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&control, format!("{minor}/abort"), flags, Mode::empty());
        Ok(file?)
    };
    sessions.iter().map(abort).collect()
}

/// Waits for the end of the process that started this one, and then ends its sessions. Those that have ended
/// are none any more, so after an orderly end there is nothing to do.
pub fn watch() -> io::Result<()> {
    // What ends the process that is watched may be sent to this one, too, and must not end it before.
    SigSet::all().thread_block()?;
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    for abort in hear(&Channel::of(socket))? {
        // The kernel takes anything from who has the file.
        let _ = rustix::io::write(abort, b"1");
    }
    Ok(())
}

/// What the process that is watched handed over, once it is gone.
fn hear(channel: &Channel) -> io::Result<Vec<OwnedFd>> {
    let mut aborts = Vec::new();
    while let Some(message) = channel.hear()? {
        if let (SESSION, Some(abort)) = (&*message.word, message.descriptor)
            && aborts.len() < SESSIONS_MAX
        {
            aborts.push(abort);
        }
    }
    Ok(aborts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: what is handed over is kept until the other end is gone, words of a later build are passed over, and
    /// so is more than there can be.
    #[test]
    fn what_ends_sessions_is_heard_until_the_other_end_is_gone() {
        let (channel, theirs) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        channel.say("weather", "", Some(file.as_fd())).unwrap();
        for _ in 0..=SESSIONS_MAX {
            channel.say(SESSION, "", Some(file.as_fd())).unwrap();
        }
        channel.say(SESSION, "", None).unwrap();
        drop(channel);
        assert_eq!(hear(&Channel::of(theirs)).unwrap().len(), SESSIONS_MAX);
    }
}
