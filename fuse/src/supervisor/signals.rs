//! Which signals the supervisor takes in, and what it makes of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// By which a program ends itself when it makes a mistake. Who sends one wants it dead, with a core.
pub(super) const CRASHES: [Signal; 7] = [
    Signal::SIGILL,
    Signal::SIGTRAP,
    Signal::SIGABRT,
    Signal::SIGBUS,
    Signal::SIGFPE,
    Signal::SIGSEGV,
    Signal::SIGSYS,
];

/// By which a terminal has a program pause: it can be continued.
const PAUSES: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// What a signal asks of the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// To stop everything.
    End,
    /// To have the daemon replaced.
    Reload,
    /// A child ended.
    Bury,
}

/// Signals, read instead of suffered: none of those that anybody may send by mistake ends the supervisor, and with it
/// the files of all containers.
///
/// They are blocked, not ignored: a daemon clears its mask when it starts, in every build, but what is ignored
/// would stay so in whatever it runs.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

impl Signals {
    /// From now on, for this thread and those that it starts.
    pub(super) fn take() -> io::Result<Self> {
        let mut mask = SigSet::all();
        for signal in CRASHES.into_iter().chain(PAUSES) {
            mask.remove(signal);
        }
        mask.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&mask, flags)?))
    }

    /// The next thing that is asked for, if any is now. What asks for nothing is passed over: a rotator of logs
    /// sends SIGUSR1, a resized terminal SIGWINCH.
    pub(super) fn next(&self) -> Option<Asked> {
        while let Ok(Some(signal)) = self.0.read_signal() {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT)) => {
                    return Some(Asked::End);
                }
                Ok(Ok(Signal::SIGHUP)) => return Some(Asked::Reload),
                Ok(Ok(Signal::SIGCHLD)) => return Some(Asked::Bury),
                _ => {}
            }
        }
        None
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::raise;

    /// Promise: no signal that somebody may send ends the supervisor; three ask for the end, one for a reload,
    /// and the others for nothing.
    #[test]
    fn what_is_sent_is_read_and_kills_nobody() {
        // Of a thread of its own, as the mask is.
        let thread = std::thread::spawn(|| {
            let signals = Signals::take().unwrap();
            let beyond = [Signal::SIGKILL, Signal::SIGSTOP];
            let left = [&CRASHES[..], &PAUSES, &beyond].concat();
            for signal in Signal::iterator().filter(|signal| !left.contains(signal)) {
                raise(signal).unwrap();
                let expected = match signal {
                    Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => Some(Asked::End),
                    Signal::SIGHUP => Some(Asked::Reload),
                    Signal::SIGCHLD => Some(Asked::Bury),
                    _ => None,
                };
                assert_eq!(signals.next(), expected, "{signal}");
                assert_eq!(signals.next(), None, "{signal}");
            }
        });
        thread.join().unwrap();
    }
}
