//! Signals to a process that others' files depend on.

use anyhow::Context;
use futures_util::future::select_all;
use nix::sys::signal::Signal;
use tokio::signal::unix::{self, SignalKind};

/// Ask for the end. The last two do not where whoever started the process had it ignore them, as `nohup` does.
const ENDS: [Signal; 4] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

/// Mean nothing here, and would end the process and all that is read through it: what a rotator of logs or a
/// monitor sends, timers, and limits of processor time and of the length of files, which writes report, too.
const PASSED_OVER: [Signal; 10] = [
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGXCPU,
    Signal::SIGXFSZ,
];

/// The signals that end the program.
pub(super) struct Signals(Vec<unix::Signal>);

impl Signals {
    /// From now on, they no longer kill, and neither do those that mean nothing here. They are caught, and so kill
    /// what this process runs as ever.
    pub(super) fn new() -> anyhow::Result<Self> {
        for meaningless in PASSED_OVER {
            // Caught until the end of the process, whoever listens.
            drop(catch(meaningless)?);
        }
        let ends = ENDS.into_iter().filter(|signal| {
            let may_be_ignored = matches!(signal, Signal::SIGHUP | Signal::SIGQUIT);
            !(may_be_ignored && is_ignored(*signal))
        });
        Ok(Self(ends.map(catch).collect::<anyhow::Result<_>>()?))
    }

    /// Waits for one.
    pub(super) async fn received(mut self) {
        let each = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        select_all(each).await;
    }
}

fn catch(signal: Signal) -> anyhow::Result<unix::Signal> {
    let kind = SignalKind::from_raw(signal as i32);
    unix::signal(kind).with_context(|| format!("catch {signal}"))
}

/// Whether this process was started to ignore a signal.
fn is_ignored(signal: Signal) -> bool {
    let own = std::fs::read_to_string("/proc/self/status");
    own.is_ok_and(|status| ignores(&status, signal))
}

/// The same by the account of `/proc/PID/status`: a bit for each signal, the first for the first.
fn ignores(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| (mask >> (signal as i32 - 1)) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_read_from_the_mask() {
        let status = "Name:\tx\nSigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert!(ignores(status, Signal::SIGHUP) && ignores(status, Signal::SIGPIPE));
        for other in [Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGUSR1] {
            assert!(!ignores(status, other), "{other}");
        }
        for odd in ["", "SigIgn:\tx\n"] {
            assert!(!ignores(odd, Signal::SIGHUP));
        }
    }
}
