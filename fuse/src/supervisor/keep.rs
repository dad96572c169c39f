//! The supervisor's side: one daemon after the other, and what they leave to each other.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::channel::{Channel, Message};
use super::endings::{self, Takeovers};
use super::priority;
use super::restarts::Restarts;
use super::systemd::{self, Systemd};
use super::{ITEMS_MAX, SUPERVISED, word};

/// How long a daemon may take to unmount everything. systemd waits 30 s by our unit.
const STOP_MAX: Duration = Duration::from_secs(25);

/// How long the end of a daemon may take to be told, once its socket is closed: the kernel does both
/// within a millisecond. Without it only a note for the log is missing.
const REAP_MAX: Duration = Duration::from_millis(5);

/// The same where the exit code matters and no mount waits: before any daemon has served, and after
/// the last one.
const REAP_UNHURRIED: Duration = Duration::from_secs(2);

/// How long threads of a dead daemon may hold its socket open. A thread that waits for an answer in
/// the kernel does until the next daemon gives that answer.
const STUCK_MAX: Duration = Duration::from_millis(200);

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

/// Runs `program` with `arguments` as the daemon, again and again, until SIGTERM or SIGINT. Returns
/// the exit code.
///
/// SIGHUP has the daemon replaced by what is at `program` now. Called while the process has one
/// thread, before it opens anything.
pub fn supervise(program: &Path, arguments: &[OsString]) -> Result<u8, SuperviseError> {
    let kept = systemd::kept();
    priority::hurry();
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ] {
        mask.add(signal);
    }
    mask.thread_block().map_err(io::Error::from)?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&mask, flags).map_err(io::Error::from)?;
    let mut supervisor = Supervisor {
        program: program.to_owned(),
        arguments: arguments.to_owned(),
        has_served: !kept.is_empty(),
        items: kept.into_iter().collect(),
        signals,
        systemd: Systemd::find(),
        restarts: Restarts::default(),
        notes: Vec::new(),
        endings: Takeovers::default(),
        wants_end: false,
    };
    supervisor.run()
}

struct Supervisor {
    program: PathBuf,
    arguments: Vec<OsString>,
    items: BTreeMap<String, OwnedFd>,
    signals: SignalFd,
    systemd: Systemd,
    restarts: Restarts,
    /// For the log of the next daemon.
    notes: Vec<String>,
    /// How daemons ended since one last served.
    endings: Takeovers,
    /// Whether any daemon ever did: then there may be mounts that wait for one.
    has_served: bool,
    /// SIGTERM or SIGINT came.
    wants_end: bool,
}

/// A daemon.
struct Running {
    child: Child,
    channel: Channel,
    /// Readable once it is being killed, whatever its threads still wait for: the end of its first
    /// thread, or, where the kernel tells that only with the last one's, what the daemon gave for it.
    first_thread: Option<OwnedFd>,
    /// Since when it serves.
    serves: Option<Instant>,
    /// When it is to be gone.
    deadline: Option<Instant>,
}

impl Supervisor {
    fn run(&mut self) -> Result<u8, SuperviseError> {
        let mut gone: Vec<Child> = Vec::new();
        loop {
            let mut running = self.start()?;
            gone.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            self.attend(&mut running)?;
            let status = if self.has_served && !self.wants_end {
                // Threads that are left wait for the next daemon's answers, and then die.
                drop(running.child.kill());
                reap(&mut running.child, REAP_MAX)
            } else {
                // It has closed its socket and is about to end by itself, and its exit code matters.
                reap(&mut running.child, REAP_UNHURRIED).or_else(|| {
                    drop(running.child.kill());
                    reap(&mut running.child, REAP_MAX)
                })
            };
            if self.wants_end {
                for name in self.items.keys() {
                    self.systemd.remove(name);
                }
                return Ok(code(status));
            }
            if let Some(code) = status.and_then(|status| status.code())
                && !self.has_served
            {
                return Ok(u8::try_from(code).unwrap_or(1));
            }
            gone.push(running.child);
            let now = Instant::now();
            let served = running.serves.map(|since| now - since);
            let failed = status.is_some_and(endings::failed);
            let pause = self.restarts.died(now, served, failed);
            self.note(status, served);
            self.endings.add(Takeovers::after(status));
            if pause.is_loop {
                let told = format!(
                    "the daemon {}, again and again; mounts wait. The next attempt is in {} s",
                    came_to(status),
                    pause.length.as_secs()
                );
                eprintln!("larder-snapshotter: {told}");
                self.systemd.tell(&format!("STATUS={told}"));
            }
            if self.sleep(pause.length)? {
                return Ok(0);
            }
        }
    }

    /// Starts a daemon, and gives it everything that is held.
    fn start(&mut self) -> Result<Running, SuperviseError> {
        let (channel, theirs) = Channel::pair()?;
        let child = match self.spawn(&self.program, &theirs) {
            Ok(child) => child,
            // Being replaced at this moment, or removed.
            Err(first) => {
                self.notes.push(format!(
                    "{} cannot be run: {first}; the program that was there when the supervisor \
                     started goes on",
                    self.program.display()
                ));
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
        for note in self.notes.drain(..) {
            drop(channel.say(word::NOTE, &note, None));
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
            serves: None,
            deadline: None,
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
        for systemds in [
            "NOTIFY_SOCKET",
            "LISTEN_PID",
            "LISTEN_FDS",
            "LISTEN_FDNAMES",
        ] {
            command.env_remove(systemds);
        }
        command.spawn()
    }

    /// Listens to the daemon and to signals until the daemon is gone.
    fn attend(&mut self, running: &mut Running) -> io::Result<()> {
        loop {
            let (said, signalled, ended) = wait(running, &self.signals)?;
            if said && !self.listen(running) {
                return Ok(());
            }
            if signalled && self.signalled(running) {
                self.stop(running);
            }
            if ended {
                running.first_thread = None;
                priority::hasten(rustix::process::Pid::from_child(&running.child));
                running.deadline = Some(Instant::now() + STUCK_MAX);
            }
            if running.deadline.is_some_and(|end| end <= Instant::now()) {
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
                self.systemd.tell("READY=1\nSTATUS=serving");
            }
            // A word of a daemon from a later build.
            _ => {}
        }
    }

    /// Takes in signals; whether one of them asks for the end.
    fn signalled(&mut self, running: &Running) -> bool {
        let mut asked = false;
        while let Ok(Some(signal)) = self.signals.read_signal() {
            match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGTERM | Signal::SIGINT)) => asked = true,
                Ok(Ok(Signal::SIGHUP)) => {
                    let daemon = i32::try_from(running.child.id()).unwrap_or(0);
                    let _ = kill(Pid::from_raw(daemon), Signal::SIGTERM);
                }
                _ => {}
            }
        }
        asked
    }

    fn stop(&mut self, running: &mut Running) {
        self.wants_end = true;
        self.systemd.tell("STOPPING=1");
        drop(running.channel.say(word::STOP, "", None));
        running.deadline = Some(Instant::now() + STOP_MAX);
    }

    fn note(&mut self, status: Option<ExitStatus>, served: Option<Duration>) {
        let served = served.map_or("before it served".to_owned(), |served| {
            format!("after it had served for {:.1} s", served.as_secs_f64())
        });
        self.notes
            .push(format!("the daemon before {} {served}", came_to(status)));
    }

    /// Waits before the next daemon; whether the end was asked for meanwhile.
    fn sleep(&mut self, length: Duration) -> io::Result<bool> {
        let until = Instant::now() + length;
        loop {
            while let Ok(Some(signal)) = self.signals.read_signal() {
                let number = i32::try_from(signal.ssi_signo).unwrap_or(0);
                if number == Signal::SIGTERM as i32 || number == Signal::SIGINT as i32 {
                    self.systemd.tell("STOPPING=1");
                    return Ok(true);
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let signals = PollFd::new(&self.signals, PollFlags::IN);
            ready(&mut [signals], Some(left))?;
        }
    }
}

/// Waits until the daemon says something, a signal comes, the daemon's first thread ends, or its
/// time is over.
fn wait(running: &Running, signals: &SignalFd) -> io::Result<(bool, bool, bool)> {
    let mut sources = vec![
        PollFd::new(&running.channel, PollFlags::IN),
        PollFd::new(signals, PollFlags::IN),
    ];
    if let Some(first_thread) = &running.first_thread {
        sources.push(PollFd::new(first_thread, PollFlags::IN));
    }
    let left = running
        .deadline
        .map(|end| end.saturating_duration_since(Instant::now()));
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

fn came_to(status: Option<ExitStatus>) -> String {
    match status {
        Some(status) => match (status.signal(), status.code()) {
            (Some(signal), _) => format!("was killed by signal {signal}"),
            (None, code) => format!("ended with exit code {}", code.unwrap_or(0)),
        },
        None => "died".to_owned(),
    }
}

/// The exit code after a stop that was asked for.
fn code(status: Option<ExitStatus>) -> u8 {
    let code = status.and_then(|status| status.code()).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}
