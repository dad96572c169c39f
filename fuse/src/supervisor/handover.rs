//! The daemon's side: what it gets, what it gives, and what it is told.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};
use std::time::Instant;

use nix::sys::signal::SigSet;
use rustix::net::{SocketType, sockopt};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::channel::Channel;
use super::endings::Takeovers;
use super::{MAIN_SESSION, is_supervised, priority, systemd, word};
use crate::life::close_with_life;

/// The connection, until the very end of this process: to the supervisor its end is the process's, and it kills
/// what may be left, which has then not yet said why it ends, and by which code.
static UNTIL_THE_END: OnceLock<OwnedFd> = OnceLock::new();

/// What the supervisor wants, or that it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bidding {
    /// Unmount everything and end.
    Stop,
    /// The supervisor died, and nobody holds anything any more: end at once.
    Gone,
}

/// What a supervisor has to tell of daemons before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// A sentence.
    pub text: String,
    /// Whether all went as it should.
    pub is_orderly: bool,
}

/// What a supervisor gave its daemon, and the way to give it more.
#[derive(Debug)]
pub struct Handover {
    channel: Channel,
    items: Mutex<BTreeMap<String, OwnedFd>>,
    notes: Vec<Note>,
    endings: Takeovers,
    takes_over: bool,
    began: Instant,
    alive: Once,
}

impl Handover {
    /// What the supervisor of this process gave it; `None` if it has no supervisor.
    ///
    /// Called once, at the start: it takes standard input's place, and from then on this process is
    /// killed when its parent dies.
    pub fn receive() -> io::Result<Option<Self>> {
        if !is_supervised() {
            return Ok(None);
        }
        let input = io::stdin();
        // A person may have set the variable.
        if sockopt::socket_type(&input).ok() != Some(SocketType::SEQPACKET) {
            return Ok(None);
        }
        let began = Instant::now();
        // The supervisor reads its signals from a descriptor, and so blocks them; that is inherited.
        SigSet::empty().thread_set_mask()?;
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // Out of the way of standard input, which programs this one runs get, too.
        let socket = rustix::io::fcntl_dupfd_cloexec(&input, 3)?;
        let too = rustix::io::fcntl_dupfd_cloexec(&socket, 3)?;
        UNTIL_THE_END.get_or_init(|| too);
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Self::hear(Channel::of(socket), began).map(Some)
    }

    fn hear(channel: Channel, began: Instant) -> io::Result<Self> {
        let (mut items, mut notes) = (BTreeMap::new(), Vec::new());
        let mut endings = Takeovers::default();
        loop {
            let Some(message) = channel.hear()? else {
                return Err(io::Error::other("the supervisor is gone"));
            };
            match (&*message.word, message.descriptor) {
                (word::ITEM, Some(descriptor)) => drop(items.insert(message.argument, descriptor)),
                (what @ (word::NOTE | word::ORDERLY), _) => notes.push(Note {
                    text: message.argument,
                    is_orderly: what == word::ORDERLY,
                }),
                (word::ENDED, _) => endings.hear(&message.argument),
                (word::BEGIN, _) => break,
                // A word of a supervisor from a later build.
                _ => {}
            }
        }
        let takes_over = items.contains_key(MAIN_SESSION);
        if takes_over && endings == Takeovers::default() {
            // A supervisor of an earlier build, or one that was restarted.
            endings.unknown = 1;
        }
        Ok(Self {
            channel,
            takes_over,
            endings,
            items: Mutex::new(items),
            notes,
            began,
            alive: Once::new(),
        })
    }

    /// Whether a daemon before this one had sessions, which wait for this one.
    pub fn takes_over(&self) -> bool {
        self.takes_over
    }

    /// What the supervisor had to tell of daemons before.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// How the daemons ended that this one takes over from.
    pub(crate) fn endings(&self) -> Takeovers {
        self.endings
    }

    /// When this process began to listen to its supervisor.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// The item `name`, which the supervisor keeps as well.
    pub fn take(&self, name: &str) -> Option<OwnedFd> {
        self.lock().remove(name)
    }

    /// A listening socket that systemd made for this service.
    pub fn take_activated(&self) -> Option<OwnedFd> {
        self.take(systemd::ACTIVATED)
    }

    /// Gives `descriptor` to the supervisor to keep for the next daemon, in place of what had that
    /// name. A supervisor that is gone is no failure: this process is about to be killed.
    pub fn hold(&self, name: &str, descriptor: impl AsFd) {
        self.say(word::HOLD, name, Some(descriptor.as_fd()));
    }

    /// What has this name is of no use to anybody any more.
    pub fn drop_item(&self, name: &str) {
        drop(self.take(name));
        self.say(word::DROP, name, None);
    }

    /// Tells that this daemon serves the mounts of the one before.
    pub(crate) fn serving(&self) {
        self.alive.call_once(|| self.show_life());
        self.say(word::SERVING, "", None);
    }

    /// Tells that this daemon serves containerd, too, and what `systemctl status` is to say of it.
    pub fn ready(&self, status: &str) {
        self.alive.call_once(|| self.show_life());
        priority::calm_down();
        self.say(word::READY, status, None);
    }

    /// Tells that this daemon's log has one JSON object per line: what the supervisor says lies between
    /// its lines.
    pub fn logs_json(&self) {
        self.say(word::LOGS, super::JSON, None);
    }

    /// Tells that this daemon ends now, in order, for the next one to go on: how it ended may be told too
    /// late for that one's log.
    pub fn leaves(&self) {
        self.say(word::LEAVES, "", None);
    }

    /// Waits for the supervisor to want something. For a thread of its own.
    pub fn bidding(&self) -> Bidding {
        loop {
            match self.channel.hear() {
                Ok(Some(message)) if message.word == word::STOP => return Bidding::Stop,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Bidding::Gone,
            }
        }
    }

    /// Gives the supervisor one end of a pipe whose other end is closed once this process is killed.
    fn show_life(&self) {
        let shown = std::io::pipe().and_then(|(theirs, ours)| {
            close_with_life(ours.into())?;
            self.channel.say(word::ALIVE, "", Some(theirs.as_fd()))
        });
        if let Err(error) = shown {
            tracing::debug!(%error, "the supervisor will hear late of this daemon's end");
        }
    }

    fn say(&self, what: &str, name: &str, descriptor: Option<std::os::fd::BorrowedFd<'_>>) {
        if let Err(error) = self.channel.say(what, name, descriptor) {
            tracing::warn!(what, name, %error, "cannot tell the supervisor");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, OwnedFd>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: words that a later build adds do not keep an earlier one from taking over.
    #[test]
    fn a_daemon_takes_what_it_knows_and_passes_over_the_rest() {
        let (supervisor, socket) = Channel::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        supervisor.say("weather", "fine", None).unwrap();
        for name in ["lock", "fuse-main", "from-later"] {
            supervisor.say("item", name, Some(file.as_fd())).unwrap();
        }
        supervisor.say("note", "it was killed", None).unwrap();
        supervisor.say("orderly", "it made room", None).unwrap();
        supervisor.say("begin", "", None).unwrap();
        let handover = Handover::hear(Channel::of(socket), Instant::now()).unwrap();
        assert!(handover.takes_over());
        let notes = [("it was killed", false), ("it made room", true)];
        let notes = notes.map(|(text, is_orderly)| Note {
            text: text.to_owned(),
            is_orderly,
        });
        assert_eq!(handover.notes(), notes);
        assert!(handover.take("lock").is_some() && handover.take("lock").is_none());
        supervisor.say("weather", "rain", None).unwrap();
        supervisor.say("stop", "", None).unwrap();
        assert_eq!(handover.bidding(), Bidding::Stop);
        handover.hold("lock", &file);
        let held = supervisor.hear().unwrap().unwrap();
        assert_eq!((&*held.word, &*held.argument), ("hold", "lock"));
        assert!(held.descriptor.is_some());
        drop(supervisor);
        assert_eq!(handover.bidding(), Bidding::Gone);
    }
}
