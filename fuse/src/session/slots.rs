//! The places of layers in the session.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, PoisonError, RwLock};

use larder_proto::erofs::Image;
use tokio::sync::Notify;

use super::counts::{Count, Counts};
use crate::fetch::Fetcher;
use crate::sys::Mapping;

/// What is served under one slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(super) content: Content,
    retired: AtomicBool,
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

/// A layer of a daemon before that is opened when it is first asked for: containers wait for those they
/// use, not for all.
pub(crate) struct Unopened {
    once: Once,
    open: Box<dyn Fn() + Send + Sync>,
}

impl Unopened {
    /// `open` puts the layer's slots into their places, unless it cannot be opened.
    pub(crate) fn new(open: impl Fn() + Send + Sync + 'static) -> Self {
        let (once, open) = (Once::new(), Box::new(open));
        Self { once, open }
    }

    /// Opens the layer, or waits until somebody else has.
    pub(crate) fn open(&self) {
        self.once.call_once(&self.open);
    }
}

impl fmt::Debug for Unopened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unopened").finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
enum Place {
    Served(Arc<Slot>),
    Unopened(Arc<Unopened>),
}

/// All slots that are served, and what the kernel holds of them.
#[derive(Debug)]
pub(crate) struct Slots {
    places: RwLock<HashMap<u32, Place>>,
    counts: Counts,
    /// Told when a retired slot is let go of.
    let_go: Notify,
}

impl Slots {
    /// Slots of new sessions.
    pub(crate) fn new() -> io::Result<Self> {
        Counts::new().map(Self::counted_by)
    }

    /// Slots of sessions that were counted before.
    pub(crate) fn counted_by(counts: Counts) -> Self {
        Self {
            places: RwLock::default(),
            counts,
            let_go: Notify::new(),
        }
    }

    /// The memory of the counts, for the daemon after this one.
    pub(crate) fn counts(&self) -> BorrowedFd<'_> {
        self.counts.as_fd()
    }

    pub(crate) fn put(&self, number: u32, content: Content) {
        let slot = Slot {
            content,
            retired: AtomicBool::new(false),
        };
        self.place(number, Place::Served(Arc::new(slot)));
    }

    /// The slot is put into its place by `layer`, when it is asked for.
    pub(crate) fn put_unopened(&self, number: u32, layer: Arc<Unopened>) {
        self.place(number, Place::Unopened(layer));
    }

    fn place(&self, number: u32, place: Place) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.insert(number, place);
    }

    pub(super) fn get(&self, number: u32) -> Option<Arc<Slot>> {
        match self.find(number)? {
            Place::Served(slot) => Some(slot),
            Place::Unopened(layer) => {
                // A matter of the local disk, as reading from the store is.
                layer.open();
                match self.find(number)? {
                    Place::Served(slot) => Some(slot),
                    Place::Unopened(_) => None,
                }
            }
        }
    }

    fn find(&self, number: u32) -> Option<Place> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.get(&number).cloned()
    }

    /// Whether the slot is served; a layer's trees are put here when they are first mounted.
    pub(crate) fn has(&self, number: u32) -> bool {
        self.get(number).is_some()
    }

    /// Whether the kernel has a file of the slot open, or knows one: its bytes may be asked for. Also
    /// right after a takeover.
    pub(crate) fn in_use(&self, number: u32) -> bool {
        self.counts.in_use(number)
    }

    /// Lets go of the slot as soon as the kernel has no file of it open and knows none.
    pub(crate) fn retire(&self, number: u32) {
        if let Some(slot) = self.get(number) {
            slot.retired.store(true, Ordering::Release);
            self.drop_if_unused(number);
        }
    }

    /// Nobody has anything of the slot open, and nobody can open it any more.
    pub(crate) fn let_go_of(&self, number: u32) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        places.remove(&number);
    }

    /// A file of the slot is about to be open.
    pub(super) fn opened(&self, number: u32) {
        self.counts.up(number, Count::Opens, 1);
    }

    /// The kernel was told that a file is closed.
    pub(super) fn released(&self, number: u32) {
        self.counts.down(number, Count::Opens, 1);
        self.drop_if_unused(number);
    }

    /// The kernel is about to know `files` more files of the slot.
    pub(super) fn looked_up(&self, number: u32, files: u64) {
        self.counts.up(number, Count::Lookups, files);
    }

    /// The kernel forgot a file it had looked up so many times.
    pub(super) fn forgotten(&self, number: u32, lookups: u64) {
        self.counts.down(number, Count::Lookups, lookups);
        self.drop_if_unused(number);
    }

    fn drop_if_unused(&self, number: u32) {
        let is_retired = |slot: &Arc<Slot>| slot.retired.load(Ordering::Acquire);
        if !self.in_use(number) && self.get(number).as_ref().is_some_and(is_retired) {
            let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
            places.remove(&number);
            drop(places);
            self.let_go.notify_one();
        }
    }

    /// There is one more retired slot, to be looked after by whoever waits in [`Slots::let_go`].
    pub(crate) fn look_again(&self) {
        self.let_go.notify_one();
    }

    /// Waits until a retired slot is let go of or there is one more, now or since the call before.
    pub(crate) async fn let_go(&self) {
        self.let_go.notified().await;
    }
}
