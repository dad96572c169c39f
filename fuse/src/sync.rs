//! What threads share and wait for: the standard library's and tokio's, or, in the tests named
//! `schedules`, shuttle's, which tries one order of events after the other.
//!
//! Code that several threads run at once takes its locks, atomics, tasks and clock from here. The
//! feature `shuttle` exchanges them, in the unit tests alone; everything else stays as it is, so what
//! is tried is the code that runs. tokio's own channels and semaphores are used in both: they work
//! under any executor, and tokio tries their insides itself.

#[cfg(not(all(test, feature = "shuttle")))]
mod real {
    pub(crate) use std::sync::atomic;
    pub(crate) use std::sync::{Mutex, MutexGuard, RwLock};

    pub(crate) use tokio::task::spawn_blocking;
    pub(crate) use tokio::time;

    /// Starts a task on `runtime`.
    pub(crate) fn spawn<F>(runtime: &tokio::runtime::Handle, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(runtime.spawn(future));
    }

    /// Does something a while later on `runtime`, unless that ends before.
    pub(crate) fn later<F>(runtime: &tokio::runtime::Handle, delay: std::time::Duration, what: F)
    where
        F: FnOnce() + Send + 'static,
    {
        spawn(runtime, async move {
            time::sleep(delay).await;
            what();
        });
    }
}

#[cfg(not(all(test, feature = "shuttle")))]
pub(crate) use real::*;

#[cfg(all(test, feature = "shuttle"))]
pub(crate) mod tried;

#[cfg(all(test, feature = "shuttle"))]
pub(crate) use tried::*;
