//! The metadata image against its oracles: itself, the kernel, erofs-utils and a third-party
//! reader.

#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod cost;
mod erofs_utils;
mod kernel;
mod layer;
mod merge;
mod random;
mod reader;
mod refusals;
mod samples;
mod stacked;
mod third_party;
