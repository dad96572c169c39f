//! Locks, atomics, tasks and a clock whose every step shuttle chooses.

pub(crate) mod time;

use std::cell::Cell;

use larder_schedules::shuttle;

pub(crate) use shuttle::sync::atomic;
pub(crate) use shuttle::sync::{Mutex, MutexGuard, RwLock};

thread_local! {
    /// Tasks that were started and have not ended.
    static TASKS: Cell<usize> = const { Cell::new(0) };
}

/// One of them.
struct Task;

impl Task {
    fn begun() -> Self {
        TASKS.set(TASKS.get() + 1);
        Self
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        TASKS.set(TASKS.get().saturating_sub(1));
    }
}

/// Starts a task; shuttle has one runtime.
pub(crate) fn spawn<F>(_: &tokio::runtime::Handle, future: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let task = Task::begun();
    drop(shuttle::future::spawn(async move {
        future.await;
        drop(task);
    }));
}

/// Nothing that is tried waits for what is done later: it is for the log alone.
pub(crate) fn later<F>(_: &tokio::runtime::Handle, _: std::time::Duration, what: F)
where
    F: FnOnce() + Send + 'static,
{
    drop(what);
}

/// Runs what may wait for the disk; here, a task among the others.
pub(crate) fn spawn_blocking<F, T>(what: F) -> shuttle::future::JoinHandle<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let task = Task::begun();
    shuttle::future::spawn(async move {
        let done = what();
        drop(task);
        done
    })
}

/// Waits until every task has ended; one that never does ends the test.
pub(crate) fn all_tasks_ended() {
    while TASKS.get() > 0 {
        shuttle::thread::yield_now();
    }
}

/// Runs `test` under one order of events after the other, each from the clock's beginning.
pub(crate) fn schedules(test: impl Fn() + Send + Sync + 'static) {
    let test = std::sync::Arc::new(test);
    larder_schedules::schedules(move || {
        time::begin();
        TASKS.set(0);
        test();
        all_tasks_ended();
    });
}
