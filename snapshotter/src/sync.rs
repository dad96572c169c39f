//! What threads share: the standard library's locks and atomics, or, in the tests named `schedules`,
//! shuttle's, which tries one order of events after the other (feature `shuttle`, unit tests alone).

#[cfg(not(all(test, feature = "shuttle")))]
mod real {
    pub(crate) use std::sync::atomic;
    pub(crate) use std::sync::{Mutex, MutexGuard};
}

#[cfg(not(all(test, feature = "shuttle")))]
pub(crate) use real::*;

#[cfg(all(test, feature = "shuttle"))]
mod tried {
    pub(crate) use larder_schedules::shuttle::sync::atomic;
    pub(crate) use larder_schedules::shuttle::sync::{Mutex, MutexGuard};
}

#[cfg(all(test, feature = "shuttle"))]
pub(crate) use tried::*;
