//! The remote protocol against a data plane that only remembers what it was told.

mod attached;
mod belonging;
mod contest;
mod fallback;
mod merged;
mod plane;
mod prepare;
mod profiles;
mod restart;
mod unused;
mod world;

pub(crate) use plane::FakePlane;
