//! Orders of events: shuttle runs a test under one after the other. Empty without the feature `shuttle`.

#[cfg(feature = "shuttle")]
mod run;

#[cfg(feature = "shuttle")]
pub use run::schedules;
#[cfg(feature = "shuttle")]
pub use shuttle;
