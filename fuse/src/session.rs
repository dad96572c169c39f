//! The one FUSE session of a data plane.
//!
//! ```text
//! session/dev/<slot>    a layer's device, for EROFS to read
//! session/tree/<slot>/  a layer's files, for the FUSE driver
//! ```
//!
//! Inode numbers are a pure function of slot and EROFS inode, and handles carry no state. A FUSE
//! thread answers from the store or the metadata image, or hands its reply to the fetcher; it
//! never waits for the network.

mod filesystem;
mod inode;
mod mountpoint;
mod reads;
mod slots;
mod tree;

pub(crate) use mountpoint::FuseMount;
pub(crate) use slots::{Content, Faulty, Slots};
