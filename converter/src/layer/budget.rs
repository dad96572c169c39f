//! A bound on the bytes that are between two stages of the pipeline.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Bytes that may be in flight; whoever wants more waits.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    used: Mutex<usize>,
    freed: Condvar,
}

/// A share of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: Mutex::new(0),
            freed: Condvar::new(),
        })
    }

    /// Waits until `bytes` fit. A share larger than the whole budget is granted alone.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Share {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |used: &mut usize| *used != 0 && *used + bytes > self.limit;
        let mut used = self
            .freed
            .wait_while(used, full)
            .unwrap_or_else(PoisonError::into_inner);
        *used += bytes;
        Share {
            budget: Arc::clone(self),
            bytes,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *self
            .budget
            .used
            .lock()
            .unwrap_or_else(PoisonError::into_inner) -= self.bytes;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_budget_makes_the_next_wait_until_a_share_is_dropped() {
        let budget = Budget::new(10);
        let first = budget.take(20);
        let (tell, told) = std::sync::mpsc::channel();
        let waiting = std::thread::spawn({
            let budget = Arc::clone(&budget);
            move || {
                let _share = budget.take(1);
                tell.send(()).unwrap();
            }
        });
        assert!(
            told.recv_timeout(std::time::Duration::from_millis(50))
                .is_err()
        );
        drop(first);
        told.recv().unwrap();
        waiting.join().unwrap();
    }
}
