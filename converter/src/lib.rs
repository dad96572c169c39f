//! Converts images to lazily startable ones: library and command-line tool.

pub mod decode;
pub mod files;
pub mod layer;
pub mod layout;
pub mod location;
pub mod manifest;
pub mod plan;
pub mod spool;
