//! Registries and networks that fail in every known way, under a data plane that is mounted: what readers
//! get, how long they wait, how much is asked, and what the log says.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops where something unexpected happens"
)]

mod cell;
mod crowd;
mod large;
mod log;
mod matrix;
mod random;
mod rows;
mod site;
