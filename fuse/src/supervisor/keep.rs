//! The supervisor's side: one daemon after the other, and what they leave to each other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::channel::{Channel, Message};
use super::check::Check;
use super::death::{Death, came_to};
use super::endings::Takeovers;
use super::priority;
use super::restarts::{Pause, Restarts};
use super::signals::{Asked, Signals};
use super::systemd::{self, Systemd};
use super::voice::Voice;
use super::{ITEMS_MAX, JSON, SUPERVISED, word};
use crate::stderr;

/// How long a daemon may take to unmount everything. systemd waits 30 s by our unit.
const STOP_MAX: Duration = Duration::from_secs(25);

/// How long a daemon may take to make room for the next one. It gives requests under way 3 s, and makes durable what
/// the last ten seconds brought, which a disk that keeps up takes a part of that time for; the rest is for a busy
/// machine. One that goes on after that hangs, and reads hang with it. To kill one that does not is no loss: it
/// is a takeover as after any kill.
pub(super) const ROOM_MAX: Duration = Duration::from_secs(10);

/// How long the end of a daemon may take to be told, once its socket is closed: the kernel does both
/// within a millisecond. Without it only a note for the log is missing.
const REAP_MAX: Duration = Duration::from_millis(5);

/// The same where the exit code matters and no mount waits: before any daemon has served, and after
/// the last one.
const REAP_UNHURRIED: Duration = Duration::from_secs(2);

/// The same for a daemon that never served: no thread of it waits for an answer, and why it ended is what an
/// operator has to know. Builds before this one close their socket before they say it.
const REAP_EARLY: Duration = Duration::from_millis(200);

/// How long threads of a dead daemon may hold its socket open. A thread that waits for an answer in
/// the kernel does until the next daemon gives that answer.
const STUCK_MAX: Duration = Duration::from_millis(200);

/// Notes for the next daemon: while none can be run at all, each attempt leaves one.
const NOTES_MAX: usize = 32;

/// `PIDFD_THREAD`: tells of the end of the first thread, whatever the others do. Since 6.9; later kernels
/// keep it back until the others have ended, too.
const FIRST_THREAD: u32 = 0o200;

/// The program of this process, also after its file was replaced or removed.
const OWN_PROGRAM: &str = "/proc/self/exe";

/// A supervisor that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// A system call failed at the start.
    #[error("cannot supervise: {0}")]
    System(#[from] io::Error),
    /// The daemon cannot be run at all.
    #[error("cannot run {program}: {error}")]
    Spawn {
        /// What was run.
        program: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Runs `program` with `arguments` as the daemon, again and again, until SIGTERM, SIGINT or SIGQUIT. Returns
/// the exit code.
///
/// SIGHUP has the daemon replaced by what is at `program` now, once that has said that it could start: it
/// is asked by the flag `check`, behind the first argument. Other signals are passed over. What is to be told
/// of daemons goes to standard error; `start_json` has what is traced written as JSON objects, and is called once a
/// daemon says that its log is such a one. Called while the process has one thread, before it opens anything.
pub fn supervise(
    program: &Path,
    arguments: &[OsString],
    check: &'static str,
    start_json: fn(),
) -> Result<u8, SuperviseError> {
    // Before anything is opened.
    let kept = systemd::kept();
    let signals = Signals::take()?;
    priority::hurry();
    let mut supervisor = Supervisor {
        program: program.to_owned(),
        arguments: arguments.to_owned(),
        flag: check,
        check: None,
        // A socket that systemd listens on is no mount that waits.
        has_served: kept.iter().any(|(name, _)| name != systemd::ACTIVATED),
        items: kept.into_iter().collect(),
        signals,
        systemd: Systemd::find(),
        restarts: Restarts::default(),
        voice: Voice::new(start_json),
        gone: Vec::new(),
        notes: Vec::new(),
        endings: Takeovers::default(),
        ends_by: None,
    };
    let ended = supervisor.run();
    supervisor.systemd.settle();
    stderr::flush(stderr::LAST_WORDS_MAX);
    ended
}

struct Supervisor {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// Has the program look whether it could start, and no more.
    flag: &'static str,
    /// Such a look, after SIGHUP.
    check: Option<Check>,
    items: BTreeMap<String, OwnedFd>,
    signals: Signals,
    systemd: Systemd,
    restarts: Restarts,
    voice: Voice,
    /// Daemons of which the kernel has not told yet how they ended.
    gone: Vec<Child>,
    /// For the log of the next daemon, each with its word.
    notes: Vec<(&'static str, String)>,
    /// How daemons ended since one last served.
    endings: Takeovers,
    /// Whether any daemon ever did: then there may be mounts that wait for one.
    has_served: bool,
    /// When everything is to have stopped, if that was asked for.
    ends_by: Option<Instant>,
}

/// A daemon.
struct Running {
    child: Child,
    channel: Channel,
    /// Readable once it is being killed, whatever its threads still wait for: the end of its first
    /// thread, or, where the kernel tells that only with the last one's, what the daemon gave for it.
    first_thread: Option<OwnedFd>,
    started: Instant,
    /// Since when it serves.
    serves: Option<Instant>,
    /// It said that it leaves everything to the next one.
    leaves: bool,
    /// When it is to be gone.
    deadline: Option<Instant>,
    /// When it is to have made room for the next one, if it was asked to.
    room: Option<Instant>,
}

impl Running {
    fn send(&self, signal: Signal) {
        let daemon = i32::try_from(self.child.id()).unwrap_or(0);
        let _ = kill(Pid::from_raw(daemon), signal);
    }

    /// Whether it was to have made room and has not.
    fn hangs(&self) -> bool {
        self.room.is_some_and(|end| end <= Instant::now())
    }
}

impl Supervisor {
    fn run(&mut self) -> Result<u8, SuperviseError> {
        loop {
            let mut running = match self.start() {
                Ok(running) => running,
                // Mounts are worth waiting for memory, or for a process that may be had.
                Err(error) if self.has_served && self.ends_by.is_none() => {
                    if self.failed(&error)? {
                        return Ok(0);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            if self.ends_by.is_some() {
                self.stop(&mut running);
            }
            self.attend(&mut running)?;
            let hung = running.hangs();
            let status = self.end(&mut running, hung);
            let now = Instant::now();
            let death = Death {
                status,
                left: running.leaves,
                hung,
                lived: now - running.started,
                served: running.serves.map(|since| now - since),
            };
            if let Some(end) = self.ends_by {
                // It was making room when the end was asked for: its mounts are for the next one to unmount.
                if running.leaves && now < end {
                    continue;
                }
                if !status.is_some_and(|status| status.success()) {
                    let told = format!("the daemon did not stop in order: it {}", came_to(status));
                    self.voice.warn(&told);
                }
                for name in self.items.keys() {
                    self.systemd.remove(name);
                }
                return Ok(code(status));
            }
            // It has told why, and nothing waits for another one.
            if let Some(code) = status.and_then(|status| status.code())
                && !self.has_served
            {
                return Ok(u8::try_from(code).unwrap_or(1));
            }
            let pause = self.restarts.died(now, death.served, death.has_failed());
            self.tell(&death, running.child.id(), pause);
            self.endings.add(death.counted());
            if status.is_none() {
                self.gone.push(running.child);
            }
            if self.sleep(pause.length)? {
                return Ok(0);
            }
        }
    }

    /// Has a daemon that is about to end, or that hangs, do so; how it ended, if that is known in time.
    fn end(&self, running: &mut Running, hung: bool) -> Option<ExitStatus> {
        let (is_early, daemon) = (running.serves.is_none(), &mut running.child);
        if hung {
            drop(daemon.kill());
            // Nothing becomes worse by that.
            return reap(daemon, REAP_EARLY);
        }
        if self.has_served && self.ends_by.is_none() {
            if is_early
                && running.deadline.is_none()
                && let Some(status) = reap(daemon, REAP_EARLY)
            {
                return Some(status);
            }
            // Threads that are left wait for the next daemon's answers, and then die.
            drop(daemon.kill());
            return reap(daemon, REAP_MAX);
        }
        // It has closed its socket and is about to end by itself, and its exit code matters.
        reap(daemon, REAP_UNHURRIED).or_else(|| {
            drop(daemon.kill());
            reap(daemon, REAP_MAX)
        })
    }

    /// Tells that no daemon can be started, and waits until the next attempt; whether the end was asked for
    /// meanwhile.
    fn failed(&mut self, error: &SuperviseError) -> io::Result<bool> {
        let pause = self.restarts.died(Instant::now(), None, true);
        let told = format!(
            "no daemon can be started: {error}; mounts wait; the next attempt is in {} s",
            pause.length.as_secs_f64()
        );
        self.voice.error(&told);
        self.systemd.tell(&format!("STATUS={}", one_line(&told)));
        self.sleep(pause.length)
    }

    /// Keeps a sentence for the log of the next daemon.
    fn note(&mut self, word: &'static str, told: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push((word, told));
        }
    }

    /// Tells how a daemon ended: the next one's log, and unless all went as it should, at once, since
    /// there may be no next one that gets as far.
    fn tell(&mut self, death: &Death, process: u32, pause: Pause) {
        let note = format!("the daemon before {death}");
        if death.is_orderly() {
            self.note(word::ORDERLY, note);
            return;
        }
        self.note(word::NOTE, note);
        let again = if pause.is_loop {
            ", again and again"
        } else {
            ""
        };
        let mounts = if self.has_served { "; mounts wait" } else { "" };
        let next = match pause.length {
            Duration::ZERO => "the next one starts now".to_owned(),
            length => format!("the next attempt is in {} s", length.as_secs_f64()),
        };
        let told = format!("the daemon (process {process}) {death}{again}{mounts}; {next}");
        self.voice.warn(&told);
        if death.served.is_none() {
            self.systemd.tell(&format!("STATUS={}", one_line(&told)));
        }
    }

    /// Tells of daemons whose end was not told in time how they ended.
    fn bury(&mut self) {
        let voice = &self.voice;
        self.gone.retain_mut(|child| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                if !status.success() {
                    let (process, ended) = (child.id(), came_to(Some(status)));
                    voice.warn(&format!("the daemon before (process {process}) {ended}"));
                }
                false
            }
            Err(_) => false,
        });
    }

    /// Starts a daemon, and gives it everything that is held.
    fn start(&mut self) -> Result<Running, SuperviseError> {
        let (channel, theirs) = Channel::pair()?;
        let child = match self.spawn(&self.program, &theirs) {
            Ok(child) => child,
            // Being replaced at this moment, or removed.
            Err(first) => {
                let told = format!(
                    "{} cannot be run: {first}; the program that was there when the supervisor \
                     started goes on",
                    self.program.display()
                );
                self.voice.warn(&told);
                self.note(word::NOTE, told);
                let failed = |error| SuperviseError::Spawn {
                    program: self.program.clone(),
                    error,
                };
                let own = self.spawn(Path::new(OWN_PROGRAM), &theirs);
                own.map_err(failed)?
            }
        };
        drop(theirs);
        // A daemon that is dead already does not listen; its end is told by the channel.
        for (name, descriptor) in &self.items {
            drop(channel.say(word::ITEM, name, Some(descriptor.as_fd())));
        }
        for (word, note) in self.notes.drain(..) {
            drop(channel.say(word, &note, None));
        }
        for ended in self.endings.words() {
            drop(channel.say(word::ENDED, &ended, None));
        }
        drop(channel.say(word::BEGIN, "", None));
        let first_thread = rustix::process::Pid::from_child(&child);
        let flags = PidfdFlags::from_bits_retain(FIRST_THREAD);
        Ok(Running {
            child,
            channel,
            first_thread: pidfd_open(first_thread, flags).ok(),
            started: Instant::now(),
            serves: None,
            leaves: false,
            deadline: None,
            room: None,
        })
    }

    fn spawn(&self, program: &Path, socket: &OwnedFd) -> io::Result<Child> {
        let mut command = Command::new(program);
        command
            .args(&self.arguments)
            .env(SUPERVISED, "1")
            .stdin(Stdio::from(socket.try_clone()?))
            // A terminal's ^C is for the supervisor, which then stops the daemon in order.
            .process_group(0);
        systemd::hide_from(&mut command);
        command.spawn()
    }

    /// Listens to the daemon and to signals until the daemon is gone.
    fn attend(&mut self, running: &mut Running) -> io::Result<()> {
        loop {
            self.replace_if_possible(running);
            let looked = self.check.as_ref().and_then(Check::deadline);
            let looked = looked.into_iter().chain(self.systemd.pay()).min();
            let (said, signalled, ended) = wait(running, looked, &self.signals)?;
            if said && !self.listen(running) {
                running.room = None;
                return Ok(());
            }
            if signalled && self.signalled() {
                self.stop(running);
            }
            if ended {
                running.first_thread = None;
                priority::hasten(rustix::process::Pid::from_child(&running.child));
                running.deadline = Some(Instant::now() + STUCK_MAX);
                running.room = None;
            }
            if running.hangs() || running.deadline.is_some_and(|end| end <= Instant::now()) {
                return Ok(());
            }
        }
    }

    /// Takes in what the daemon says; false once it is gone.
    fn listen(&mut self, running: &mut Running) -> bool {
        loop {
            match running.channel.hear_now() {
                Ok(Some(message)) => self.heard(running, message),
                Ok(None) => return false,
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }

    fn heard(&mut self, running: &mut Running, message: Message) {
        let name = message.argument;
        match (&*message.word, message.descriptor) {
            (word::HOLD, Some(descriptor))
                if self.items.len() < ITEMS_MAX || self.items.contains_key(&name) =>
            {
                self.systemd.store(&name, descriptor.as_fd());
                self.items.insert(name, descriptor);
            }
            (word::DROP, _) => {
                self.systemd.remove(&name);
                self.items.remove(&name);
            }
            (word::ALIVE, Some(descriptor)) => running.first_thread = Some(descriptor),
            (word::SERVING, _) => {
                running.serves.get_or_insert_with(Instant::now);
                // It has counted them.
                self.endings = Takeovers::default();
            }
            (word::READY, _) => {
                running.serves.get_or_insert_with(Instant::now);
                self.has_served = true;
                // Daemons of earlier builds say nothing.
                let status = if name.is_empty() {
                    "serving"
                } else {
                    name.as_str()
                };
                self.systemd
                    .tell(&format!("READY=1\nSTATUS={}", one_line(status)));
            }
            (word::LEAVES, _) => running.leaves = true,
            (word::LOGS, _) if name == JSON => self.voice.turn_json(),
            // A word of a daemon from a later build.
            _ => {}
        }
    }

    /// Takes in signals; whether one of them asks for the end.
    fn signalled(&mut self) -> bool {
        let mut ends = false;
        while let Some(asked) = self.signals.next() {
            match asked {
                Asked::End => ends = true,
                Asked::Reload if self.ends_by.is_none() => self.look(),
                Asked::Reload => {}
                Asked::Bury => self.bury(),
            }
        }
        ends
    }

    /// Begins to look whether the next daemon could start, or has the look under way repeated.
    fn look(&mut self) {
        if let Some(check) = &mut self.check {
            check.outdate();
            return;
        }
        let start = |program: &Path| Check::start(program, &self.arguments, self.flag);
        // As for the daemon itself: what cannot be run is passed over.
        match start(&self.program).or_else(|_| start(Path::new(OWN_PROGRAM))) {
            Ok(check) => self.check = Some(check),
            Err(error) => self.refuse(&format!(
                "{} cannot be run: {error}",
                self.program.display()
            )),
        }
    }

    /// Has the daemon make room for the next one, if a look found that this could start.
    fn replace_if_possible(&mut self, running: &mut Running) {
        let Some(check) = &mut self.check else { return };
        let (is_over, is_stale) = (check.is_over(), check.is_stale());
        let verdict = check.verdict(Instant::now());
        if is_over {
            self.check = None;
        }
        match verdict {
            _ if is_over && is_stale => self.look(),
            Some(Ok(())) if self.ends_by.is_none() => {
                running.send(Signal::SIGTERM);
                running.room.get_or_insert(Instant::now() + ROOM_MAX);
            }
            Some(Err(reason)) => self.refuse(&reason),
            Some(Ok(())) | None => {}
        }
    }

    /// Tells that everything stays as it is.
    fn refuse(&mut self, reason: &str) {
        let told = format!("not reloaded, the daemon that was there goes on: {reason}");
        self.voice.error(&told);
        self.systemd.tell(&format!("STATUS={}", one_line(&told)));
    }

    fn stop(&mut self, running: &mut Running) {
        if self.ends_by.is_none() {
            self.systemd.tell("STOPPING=1");
        }
        let end = *self.ends_by.get_or_insert(Instant::now() + STOP_MAX);
        drop(running.channel.say(word::STOP, "", None));
        // One that somebody stopped could unmount nothing.
        running.send(Signal::SIGCONT);
        running.deadline = Some(end);
        running.room = None;
    }

    /// Waits before the next daemon, or until SIGHUP asks for it; whether the end was asked for meanwhile.
    fn sleep(&mut self, length: Duration) -> io::Result<bool> {
        let until = Instant::now() + length;
        loop {
            while let Some(asked) = self.signals.next() {
                match asked {
                    Asked::End => {
                        self.systemd.tell("STOPPING=1");
                        return Ok(true);
                    }
                    Asked::Reload => return Ok(false),
                    Asked::Bury => self.bury(),
                }
            }
            let again = self.systemd.pay();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let again = again.map(|again| again.saturating_duration_since(Instant::now()));
            let left = again.into_iter().chain([left]).min();
            let signals = PollFd::new(&self.signals, PollFlags::IN);
            ready(&mut [signals], left)?;
        }
    }
}

/// Waits until the daemon says something, a signal comes, the daemon's first thread ends, or its
/// time is over, or that of something else.
fn wait(
    running: &Running,
    other: Option<Instant>,
    signals: &Signals,
) -> io::Result<(bool, bool, bool)> {
    let mut sources = vec![
        PollFd::new(&running.channel, PollFlags::IN),
        PollFd::new(signals, PollFlags::IN),
    ];
    if let Some(first_thread) = &running.first_thread {
        sources.push(PollFd::new(first_thread, PollFlags::IN));
    }
    let ours = running.deadline.into_iter().chain(running.room);
    let first = ours.chain(other).min();
    let left = first.map(|end| end.saturating_duration_since(Instant::now()));
    ready(&mut sources, left)?;
    let is_ready = |source: Option<&PollFd<'_>>| source.is_some_and(|s| !s.revents().is_empty());
    Ok((
        is_ready(sources.first()),
        is_ready(sources.get(1)),
        is_ready(sources.get(2)),
    ))
}

fn ready(sources: &mut [PollFd<'_>], patience: Option<Duration>) -> io::Result<()> {
    // Rounded up, so that a deadline is over when it is said to be.
    let patience = patience.map(|left| left + Duration::from_millis(1));
    let patience = patience.and_then(|left| Timespec::try_from(left).ok());
    match poll(sources, patience.as_ref()) {
        Err(error) if error != rustix::io::Errno::INTR => Err(error.into()),
        _ => Ok(()),
    }
}

/// How the daemon ended, if that is known in time.
fn reap(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + patience;
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        // The end of a child is a signal; this takes no notice of signals.
        std::thread::sleep(left.min(Duration::from_micros(200)));
    }
}

/// A sentence without what would end its line: to systemd, the next one is another word.
fn one_line(told: &str) -> String {
    told.replace(char::is_control, " ")
}

/// The exit code after a stop that was asked for.
fn code(status: Option<ExitStatus>) -> u8 {
    let code = status.and_then(|status| status.code()).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
