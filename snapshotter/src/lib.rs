//! The containerd proxy snapshotter.
//!
//! containerd asks over a Unix socket ([`service`]) for snapshots ([`snapshots`]), which are kept
//! in a transactional store ([`store`]) and described as mounts ([`mounts`]). Layers with an index
//! are loaded lazily ([`lazy`]) by the data plane ([`plane`]).

pub mod cli;
pub mod config;
pub mod containerd;
pub mod control;
mod failpoint;
pub mod filter;
pub mod image;
pub mod install;
pub mod lazy;
mod log;
pub mod metrics;
pub mod mounter;
pub mod mounts;
pub mod plane;
pub mod profiles;
pub mod registries;
pub mod reporter;
pub mod service;
pub mod snapshots;
pub mod socket;
pub mod store;
pub mod survey;
mod sync;
pub mod usage;
