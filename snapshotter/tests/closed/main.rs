//! A daemon is closed: its secrets to every reader, its sockets and files to every other user, its mounts to
//! images whose documents lie.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod daemon;
mod documents;
mod modes;
mod secrets;
