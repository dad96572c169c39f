//! What two Larder processes must agree on.
//!
//! The index format and the EROFS metadata image it carries, the walk of a layer's tar that both
//! are made from, digests, and (with the feature `grpc`) the messages of containerd and of the
//! control socket. Nothing here does I/O; every parser is a pure function with named limits.

#![forbid(unsafe_code)]

pub mod access;
pub mod annotation;
pub mod cut;
pub mod digest;
pub mod erofs;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod index;
pub mod limits;
pub mod moment;
pub mod profile;
pub mod scan;
pub mod tar;
pub mod tree;
pub mod verified;
