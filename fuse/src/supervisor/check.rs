//! A look at what is to replace the daemon, before the daemon makes room for it: the program that is there
//! now says whether it could start with the same arguments.
//!
//! The supervisor goes on meanwhile, and reads nothing but the program's last words.

use std::ffi::OsString;
use std::io::{self, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::death::came_to;
use super::{MAIN_PROCESS, systemd};

/// How long a look may take. It reads a few files, a matter of milliseconds, or of seconds on a machine that
/// is busy starting containers. What takes longer lies on a file system that does not answer.
const LOOK_MAX: Duration = Duration::from_secs(20);

/// Bytes of the last words that are told: a sentence with a line of the configuration and a path.
const SAID_MAX: u64 = 2048;

/// How a sentence of the program begins; the supervisor's own begin the same way.
const NAME: &str = "larder-snapshotter: ";

/// A look that is under way.
#[derive(Debug)]
pub(super) struct Check {
    child: Child,
    said: PipeReader,
    flag: &'static str,
    /// When it is to have ended; nothing once it was judged.
    deadline: Option<Instant>,
    /// Another look was asked for since this one began, and may see something else.
    is_stale: bool,
}

impl Check {
    /// Has `program` look at what `arguments` name; `flag`, behind the first of them, asks for no more than that.
    pub(super) fn start(
        program: &Path,
        arguments: &[OsString],
        flag: &'static str,
    ) -> io::Result<Self> {
        let (said, theirs) = io::pipe()?;
        // What the program started and left alone may have the other end for ever.
        rustix::io::ioctl_fionbio(&said, true)?;
        let (command, rest) = arguments.split_at(arguments.len().min(1));
        let mut look = Command::new(program);
        look.args(command).arg(flag).args(rest).process_group(0);
        look.stdin(Stdio::null()).stdout(Stdio::null());
        systemd::hide_from(&mut look);
        look.env(MAIN_PROCESS, std::process::id().to_string());
        let child = look.stderr(theirs).spawn()?;
        Ok(Self {
            child,
            said,
            flag,
            deadline: Some(Instant::now() + LOOK_MAX),
            is_stale: false,
        })
    }

    /// Notes that another look was asked for.
    pub(super) fn outdate(&mut self) {
        self.is_stale = true;
    }

    /// Whether another look was asked for.
    pub(super) fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// When there is a verdict at the latest. The end of a child, before that, is a signal.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether its process is gone.
    pub(super) fn is_over(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Why the next daemon could not start, or that it could: told once, at the end of the look or of its
    /// time.
    pub(super) fn verdict(&mut self, now: Instant) -> Option<Result<(), String>> {
        let deadline = self.deadline?;
        let verdict = match self.child.try_wait() {
            Ok(Some(status)) => judge(status, &self.last_words(), self.flag),
            Ok(None) if now < deadline => return None,
            Ok(None) => {
                drop(self.child.kill());
                Err(format!(
                    "the program that is there now did not end within {LOOK_MAX:?} when it was asked by \
                     {}",
                    self.flag
                ))
            }
            Err(error) => Err(error.to_string()),
        };
        self.deadline = None;
        Some(verdict)
    }

    fn last_words(&mut self) -> String {
        let mut said = Vec::new();
        // Where others still have the other end this fails, once it has read what was there.
        let _ = (&mut self.said).take(SAID_MAX).read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// What an end and last words mean.
fn judge(status: ExitStatus, said: &str, flag: &str) -> Result<(), String> {
    // So say builds that do not have the flag yet. They cannot be asked, and going back to one of them is
    // always possible.
    let is_older = || said.contains(&format!("unexpected argument '{flag}'"));
    if status.success() || is_older() {
        return Ok(());
    }
    let said = said.replace(|c: char| c.is_control() && c != '\n', " ");
    let lines = said
        .lines()
        .map(|line| line.trim().trim_start_matches(NAME));
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        let ended = came_to(Some(status));
        return Err(format!(
            "the program that is there now {ended} when it was asked by {flag}"
        ));
    }
    Err(lines.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAG: &str = "--check-config";

    /// A look by a script that has the arguments of a daemon.
    fn look(script: &str) -> (Check, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), script).unwrap();
        let arguments = [file.path().as_os_str(), "--config".as_ref(), "/x".as_ref()];
        let arguments = arguments.map(OsString::from);
        let check = Check::start(Path::new("/bin/sh"), &arguments, FLAG).unwrap();
        (check, file)
    }

    fn verdict(script: &str) -> Result<(), String> {
        let (mut check, _file) = look(script);
        while !check.is_over() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let verdict = check.verdict(Instant::now()).unwrap();
        assert_eq!(
            (check.verdict(Instant::now()), check.deadline()),
            (None, None)
        );
        verdict
    }

    /// Promise: the program that is there now decides, asked with the daemon's own arguments; its sentence is told,
    /// and a program that ends without a word is told, too. One from before there was the question may start.
    #[test]
    fn the_next_program_says_whether_it_could_start() {
        assert_eq!(verdict("exit 0"), Ok(()));
        let asked = verdict("echo \"$@\" >&2; exit 64").unwrap_err();
        assert_eq!(asked, "--check-config --config /x");
        let wrong = "configuration /x, line 2: rooot = 3: unknown field";
        let told = verdict(&format!("echo 'larder-snapshotter: {wrong}' >&2; exit 64"));
        assert_eq!(told.unwrap_err(), wrong);
        let silent = verdict("exit 3").unwrap_err();
        assert!(silent.contains("ended with exit code 3"), "{silent}");
        let killed = verdict("kill -9 $$").unwrap_err();
        assert!(killed.contains("killed by signal 9"), "{killed}");
        let older = "echo \"error: unexpected argument '$1' found\" >&2; exit 64";
        assert_eq!(verdict(older), Ok(()));
        // Whoever has the other end still does not keep the supervisor waiting.
        let (mut check, _file) = look("sleep 600 & echo $! >&2; exit 1");
        while !check.is_over() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let sleeper = check.verdict(Instant::now()).unwrap().unwrap_err();
        let sleeper = nix::unistd::Pid::from_raw(sleeper.parse().unwrap());
        nix::sys::signal::kill(sleeper, nix::sys::signal::Signal::SIGKILL).unwrap();
    }

    /// Promise: a look that does not end is ended, and counts as a refusal.
    #[test]
    fn a_look_has_an_end() {
        let (mut check, _file) = look("exec sleep 600");
        assert_eq!(check.verdict(Instant::now()), None);
        let late = check.deadline().unwrap();
        let told = check.verdict(late).unwrap().unwrap_err();
        assert!(told.contains("did not end within 20s"), "{told}");
        let until = Instant::now() + Duration::from_mins(1);
        while !check.is_over() {
            assert!(Instant::now() < until, "it goes on");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(check.verdict(Instant::now()), None);
    }
}
