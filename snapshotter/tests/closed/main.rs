//! A daemon is closed: its secrets to every reader, its sockets and files to every other user.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod daemon;
mod modes;
mod secrets;
