//! Fake registry, tree oracle, test images: what the tests of every crate share.

pub mod certificates;
pub mod hostile;
pub mod kernel;
pub mod layer;
pub mod noise;
pub mod pipe;
pub mod registry;
pub mod rot;
pub mod tar;
