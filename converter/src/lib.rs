//! Converts images to lazily startable ones: library and command-line tool.

pub mod decode;
pub mod layer;
pub mod location;
pub mod manifest;
pub mod plan;
