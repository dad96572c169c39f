//! Fake registry, tree oracle, test images: what the tests of every crate share.

pub mod tar;
