//! The FUSE sessions of a data plane.
//!
//! ```text
//! session/dev/<slot>          a layer's device, for EROFS to read
//! session/tree/<slot>/        a layer's files, for the FUSE driver
//! session-plain/tree/<slot>/  the same, for layers without extended attributes
//! ```
//!
//! The kernel asks for extended attributes again and again; overlayfs does for every file it looks
//! up. It can be told once that there are none, but only for a whole session.
//!
//! Inode numbers are a pure function of slot and EROFS inode, and handles carry no state. A FUSE
//! thread answers from the store or the metadata image, or hands its reply to the fetcher; it
//! never waits for the network.

mod ahead;
mod both;
mod counts;
mod filesystem;
mod greeting;
mod inode;
mod journal;
mod mountpoint;
mod notices;
mod pages;
mod reads;
mod replay;
mod slots;
mod slow;
mod state;
mod tree;

pub(crate) use both::{Inherited, Sessions, TakeOverError};
pub(crate) use mountpoint::FuseMount;
pub(crate) use slots::{Content, Faulty, Slots, Unopened};
#[doc(hidden)]
pub use state::write_state_as;
pub(crate) use state::{Told, keeps_verified};

use crate::config::DeviceReads;

/// How a session serves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// How the kernel reads devices.
    pub(crate) reads: DeviceReads,
    /// Nobody opens devices, so the kernel is told to open files without asking.
    pub(crate) without_opens: bool,
    /// No tree of the session has extended attributes, so the kernel is told not to ask for them.
    pub(crate) without_xattrs: bool,
    /// A kernel that can is asked to send requests again after a takeover.
    pub(crate) resend: bool,
}
