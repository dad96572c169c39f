//! The places of layers in the session.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use larder_proto::erofs::Image;

use crate::fetch::Fetcher;
use crate::sys::Mapping;

/// What is served under one slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) content: Content,
    /// OPENs without their RELEASE.
    opens: AtomicI64,
    /// Lookups without their FORGET: above 0, the kernel knows a file of the tree.
    lookups: AtomicI64,
    retired: AtomicU64,
}

/// Of what kind.
#[derive(Debug)]
pub(crate) enum Content {
    /// A layer's device and tree. The tree may have attributes the index does not have.
    Layer {
        fetcher: Arc<Fetcher>,
        image: Arc<Image<Mapping>>,
    },
    /// The device of the start-up self-test.
    Faulty(Faulty),
}

/// A device of zeros of which a part cannot be read.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) len: u64,
    pub(crate) fails: Range<u64>,
}

/// All slots in use.
#[derive(Debug, Default)]
pub(crate) struct Slots(RwLock<HashMap<u32, Arc<Slot>>>);

impl Slots {
    pub(crate) fn put(&self, number: u32, content: Content) {
        let slot = Slot {
            content,
            opens: AtomicI64::new(0),
            lookups: AtomicI64::new(0),
            retired: AtomicU64::new(0),
        };
        let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
        slots.insert(number, Arc::new(slot));
    }

    pub(super) fn get(&self, number: u32) -> Option<Arc<Slot>> {
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(&number).cloned()
    }

    /// Whether the slot is served; a layer's trees are put here when they are first mounted.
    pub(crate) fn has(&self, number: u32) -> bool {
        self.get(number).is_some()
    }

    /// Lets go of the slot as soon as the kernel has no file of it open and knows none.
    pub(crate) fn retire(&self, number: u32) {
        if let Some(slot) = self.get(number) {
            slot.retired.store(1, Ordering::Release);
            self.drop_if_unused(number, &slot);
        }
    }

    pub(super) fn opened(&self, number: u32, change: i64) {
        if let Some(slot) = self.get(number) {
            slot.opens.fetch_add(change, Ordering::AcqRel);
            if change < 0 {
                self.drop_if_unused(number, &slot);
            }
        }
    }

    pub(super) fn looked_up(&self, number: u32, change: i64) {
        if let Some(slot) = self.get(number) {
            slot.lookups.fetch_add(change, Ordering::AcqRel);
            if change < 0 {
                self.drop_if_unused(number, &slot);
            }
        }
    }

    fn drop_if_unused(&self, number: u32, slot: &Slot) {
        let unused = slot.retired.load(Ordering::Acquire) != 0
            && slot.opens.load(Ordering::Acquire) <= 0
            && slot.lookups.load(Ordering::Acquire) <= 0;
        if unused {
            let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
            slots.remove(&number);
        }
    }
}
