//! Converts images to lazily startable ones: library and command-line tool.

pub mod access;
pub mod attach;
pub mod cache;
pub mod check;
pub mod cli;
pub mod containerd;
pub mod convert;
pub mod decode;
pub mod destination;
pub mod docker;
pub mod files;
pub mod inspect;
pub mod layer;
pub mod layout;
pub mod location;
pub mod manifest;
pub mod plan;
pub mod progress;
pub mod report;
pub mod source;
pub mod spool;
mod start;
mod tail;
pub mod view;
