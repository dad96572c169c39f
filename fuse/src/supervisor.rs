//! A small process that keeps what must outlive the daemon: `docs/adr/0008-supervisor.md`.
//!
//! ```text
//! supervisor                          daemon (the same program)
//!   item NAME + descriptor   ─────▶     takes over what the one before had
//!   ended CAUSE COUNT        ─────▶     how many ended so since one last served
//!   note, orderly SENTENCE   ─────▶     for the log: of a death, or of one that made room
//!   begin                    ─────▶
//!                            ◀─────   hold NAME + descriptor: keep this for the next one
//!                            ◀─────   drop NAME
//!                            ◀─────   alive + descriptor: closed when this daemon is killed
//!                            ◀─────   serving: containers, that is, mounts
//!                            ◀─────   ready SENTENCE: for containerd as well; for systemd's status
//!                            ◀─────   logs FORM: what the supervisor itself says is written so, too
//!                            ◀─────   leaves: ends now, in order, for the next one
//!   stop                     ─────▶     unmounts everything and ends
//! ```
//!
//! The supervisor knows nothing of what it holds. Words and items are only ever added, and unknown
//! ones are passed over, since either side may be the older one.

mod channel;
mod check;
mod death;
mod endings;
mod handover;
mod keep;
mod priority;
mod restarts;
mod signals;
mod systemd;
mod voice;
pub(crate) mod watch;

pub use endings::Takeovers;
pub use handover::{Bidding, Handover, Note};
pub use keep::{SuperviseError, supervise};
pub use watch::watch;

/// Tells a process that it is the daemon, and that its standard input is the socket to its
/// supervisor.
const SUPERVISED: &str = "LARDER_SUPERVISED";

/// The item by which a daemon knows that another served before it: it is handed over last.
pub(crate) const MAIN_SESSION: &str = "fuse-main";

/// Tells a process that looks at a configuration which one the supervisor is whose daemon is to be replaced, as
/// systemd does at a reload.
pub const MAIN_PROCESS: &str = "MAINPID";

/// Whether this process is a daemon that a supervisor started.
pub fn is_supervised() -> bool {
    std::env::var_os(SUPERVISED).is_some()
}

/// Items held at once: two sessions with a device and a state each, counters, a journal, what was
/// verified, the lock and a few sockets; four times that for builds to come.
const ITEMS_MAX: usize = 64;

/// The form of a log that is told.
const JSON: &str = "json";

/// What the two say to each other.
mod word {
    pub(super) const ITEM: &str = "item";
    pub(super) const BEGIN: &str = "begin";
    pub(super) const NOTE: &str = "note";
    pub(super) const ORDERLY: &str = "orderly";
    pub(super) const ENDED: &str = "ended";
    pub(super) const STOP: &str = "stop";
    pub(super) const ALIVE: &str = "alive";
    pub(super) const HOLD: &str = "hold";
    pub(super) const DROP: &str = "drop";
    pub(super) const SERVING: &str = "serving";
    pub(super) const READY: &str = "ready";
    pub(super) const LOGS: &str = "logs";
    pub(super) const LEAVES: &str = "leaves";
}
