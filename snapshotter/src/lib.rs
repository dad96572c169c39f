//! The containerd proxy snapshotter.
//!
//! containerd asks over a Unix socket ([`service`]) for snapshots ([`snapshots`]), which are kept
//! in a transactional store ([`store`]) and described as mounts ([`mounts`]).

pub mod cli;
pub mod config;
pub mod filter;
pub mod mounts;
mod notify;
pub mod service;
pub mod snapshots;
pub mod socket;
pub mod store;
pub mod usage;
