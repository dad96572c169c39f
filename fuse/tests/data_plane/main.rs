//! The data plane on this machine's kernel: real FUSE, real EROFS, a registry in memory.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops where something unexpected happens"
)]

mod cold;
mod completion;
mod disk;
mod eviction;
mod faults;
mod hostile;
mod merged;
mod observing;
mod pages;
mod proof;
mod reading;
mod recording;
mod restart;
mod rot;
mod scene;
mod sources;
mod whole;
