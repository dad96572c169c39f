//! One at a time for each key; the others wait and then find the work done.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use crate::sync::Mutex;

/// Locks by key, which exist only while somebody holds or waits for them.
#[derive(Debug)]
pub(super) struct Flights<K> {
    locks: Mutex<HashMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Flights<K> {
    fn default() -> Self {
        Self {
            locks: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash> Flights<K> {
    /// Waits until nobody else holds `key`.
    pub(super) async fn enter(&self, key: K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let lock = Arc::new(tokio::sync::Mutex::default());
                locks.insert(key, Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules {
    use larder_schedules::schedules;
    use larder_schedules::shuttle::future::{block_on, spawn, yield_now};

    use super::*;
    use crate::sync::atomic::{AtomicUsize, Ordering};

    /// Promise: of those who want the same, one works at a time and none waits for ever; who wants
    /// something else is not kept waiting; nothing is kept of a key that nobody wants.
    #[test]
    fn one_works_at_a_time_for_each_key() {
        schedules(|| {
            let flights = Arc::new(Flights::default());
            let working = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
            let other = flights.clone();
            let tasks: Vec<_> = [0, 0, 1, 0, 1]
                .into_iter()
                .map(|key| {
                    let (flights, working) = (flights.clone(), working.clone());
                    spawn(async move {
                        let turn = flights.enter(key).await;
                        assert_eq!(working[key].fetch_add(1, Ordering::AcqRel), 0);
                        yield_now().await;
                        working[key].fetch_sub(1, Ordering::AcqRel);
                        drop(turn);
                    })
                })
                .collect();
            // Nobody wants 2, whatever the others do.
            drop(block_on(other.enter(2)));
            for task in tasks {
                block_on(task).unwrap();
            }
            let last = block_on(flights.enter(3));
            assert_eq!(flights.locks.lock().unwrap().len(), 1);
            drop(last);
        });
    }
}
