//! How a daemon ended: what is told of it, and as what it is counted.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use super::endings::{self, Takeovers};
use super::keep::ROOM_MAX;

/// A daemon that is no more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Death {
    /// What the system said, if it said it in time.
    pub(super) status: Option<ExitStatus>,
    /// Whether it said that it leaves everything to the next one.
    pub(super) left: bool,
    /// Whether it was killed because it did not make room for the next one when it was asked to.
    pub(super) hung: bool,
    /// How long it ran.
    pub(super) lived: Duration,
    /// How long it had served, if it did.
    pub(super) served: Option<Duration>,
}

impl Death {
    /// Whether it made room for the next one, as for an upgrade.
    pub(super) fn is_orderly(&self) -> bool {
        match self.status {
            _ if self.hung => false,
            Some(status) if status.success() => self.left || self.served.is_some(),
            Some(status) => self.left && !endings::failed(status),
            // The kernel still takes it apart, which for a program whose file was replaced means to
            // free the file, too.
            None => self.left,
        }
    }

    /// Whether it ended by its own fault. Where nobody is to make room yet, an exit code of 0 is one.
    pub(super) fn has_failed(&self) -> bool {
        let failed = |status| endings::failed(status) || status.success();
        self.hung || !self.is_orderly() && self.status.is_some_and(failed)
    }

    /// What the takeover after it is counted as.
    pub(super) fn counted(&self) -> Takeovers {
        let mut one = Takeovers::default();
        let count = match self.status {
            _ if self.is_orderly() => &mut one.replaced,
            _ if self.has_failed() => &mut one.failed,
            None => &mut one.unknown,
            Some(_) => &mut one.killed,
        };
        *count = 1;
        one
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            _ if self.hung => write!(
                f,
                "was asked to make room for the next one, did not within {ROOM_MAX:?}, and was killed"
            )?,
            None if self.left => f.write_str("made room")?,
            status => f.write_str(&came_to(status))?,
        }
        let Some(served) = self.served else {
            let lived = self.lived.as_secs_f64();
            return write!(f, " {lived:.1} s after its start, before it served");
        };
        write!(f, " after it had served for {:.1} s", served.as_secs_f64())
    }
}

/// How a process ended.
pub(super) fn came_to(status: Option<ExitStatus>) -> String {
    match status {
        Some(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => format!("was killed by signal {signal}"),
            (None, code) => format!("ended with exit code {}", code.unwrap_or(0)),
        },
        None => "died".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;

    use super::*;

    // As wait(2) gives it: a signal, or a code in the second byte.
    fn death(raw: Option<i32>, left: bool, served: Option<u64>) -> Death {
        Death {
            status: raw.map(ExitStatus::from_raw),
            left,
            hung: false,
            lived: Duration::from_secs(9),
            served: served.map(Duration::from_secs),
        }
    }

    /// Promise: each end is counted by its cause, over words to another build, too.
    #[test]
    fn ends_are_told_apart() {
        let (killed, crashed) = (Signal::SIGKILL as i32, Signal::SIGSEGV as i32);
        let mut sum = Takeovers::default();
        let rotated = Signal::SIGUSR1 as i32;
        for raw in [
            None,
            Some(0),
            Some(1 << 8),
            Some(killed),
            Some(crashed),
            Some(rotated),
        ] {
            sum.add(death(raw, false, Some(5)).counted());
        }
        let expected = Takeovers {
            killed: 2,
            failed: 2,
            replaced: 1,
            unknown: 1,
        };
        assert_eq!(sum, expected);
        let mut heard = Takeovers::default();
        for words in sum.words() {
            heard.hear(&words);
        }
        for nonsense in ["", "killed", "killed x", "eaten 3"] {
            heard.hear(nonsense);
        }
        assert_eq!(heard, expected);
    }

    /// Regression: the kernel takes its time to free the file of a program that was replaced, and so each
    /// upgrade was told and counted as a death nobody had seen.
    ///
    /// Promise: who says that it leaves is replaced, unless it is known to have crashed after that.
    #[test]
    fn an_upgrade_is_no_death() {
        let replaced = |raw| death(raw, true, Some(3)).counted().replaced;
        assert_eq!(replaced(None), 1);
        assert_eq!(replaced(Some(0)), 1);
        assert_eq!(replaced(Some(Signal::SIGKILL as i32)), 1);
        assert_eq!(replaced(Some(Signal::SIGSEGV as i32)), 0);
        assert_eq!(replaced(Some(1 << 8)), 0);
        let told = death(None, true, Some(3)).to_string();
        assert_eq!(told, "made room after it had served for 3.0 s");
    }

    /// Promise: who did not make room is told as that and counted as failed, whatever was seen of its end.
    #[test]
    fn who_does_not_make_room_has_failed() {
        let killed = Some(Signal::SIGKILL as i32);
        for (raw, left) in [(None, false), (killed, false), (killed, true)] {
            let hung = Death {
                hung: true,
                ..death(raw, left, Some(3))
            };
            assert!(hung.has_failed() && !hung.is_orderly() && hung.counted().failed == 1);
            let told = "was asked to make room for the next one, did not within 10s, and was killed after it \
                        had served for 3.0 s";
            assert_eq!(hung.to_string(), told);
        }
    }

    /// Promise: a program that ends before it serves has failed, with whatever code.
    #[test]
    fn a_start_that_ends_has_failed() {
        for (raw, words) in [
            (0, "ended with exit code 0"),
            (3 << 8, "ended with exit code 3"),
        ] {
            let early = death(Some(raw), false, None);
            assert!(early.has_failed() && early.counted().failed == 1);
            let told = format!("{words} 9.0 s after its start, before it served");
            assert_eq!(early.to_string(), told);
        }
        let killed = death(Some(Signal::SIGKILL as i32), false, None);
        assert!(!killed.has_failed() && killed.counted().killed == 1);
    }
}
