//! The places of layers in the session.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, RwLock};

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
    /// A file of the start-up self-test.
    Faulty(Faulty),
}

/// A file in memory of which a part, or nothing, cannot be read.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fails: Range<u64>,
}

impl Faulty {
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// At most `size` bytes at `offset`; `None` if some of them cannot be read.
    pub(super) fn read(&self, offset: u64, size: u32) -> Option<&[u8]> {
        let end = self.len().min(offset.saturating_add(size.into()));
        if offset < self.fails.end && self.fails.start < end {
            return None;
        }
        let range = usize::try_from(offset).ok()?..usize::try_from(end).ok()?;
        Some(self.bytes.get(range).unwrap_or_default())
    }
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

/// A layer of a daemon before whose index the store lost; it is being fetched again.
struct Lost {
    /// What is to be done when it is back. `None` once nobody waits for it any more. As many as there are
    /// requests that the kernel may have waiting.
    waiting: Mutex<Option<Vec<Postponed>>>,
}

/// A request that is answered later, in one way or another.
pub(super) type Postponed = Box<dyn FnOnce() + Send>;

impl Lost {
    fn awaited() -> Self {
        Self {
            waiting: Mutex::new(Some(Vec::new())),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Vec<Postponed>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what was postponed, now and from now on.
    fn end_waiting(&self) {
        let waiting = self.waiting().take();
        for answer in waiting.into_iter().flatten() {
            answer();
        }
    }
}

impl fmt::Debug for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.waiting().as_ref().map(Vec::len);
        f.debug_struct("Lost").field("waiting", &waiting).finish()
    }
}

#[derive(Debug, Clone)]
enum Place {
    Served(Arc<Slot>),
    Unopened(Arc<Unopened>),
    Lost(Arc<Lost>),
}

/// All slots that are served, and what the kernel holds of them.
#[derive(Debug)]
pub(crate) struct Slots {
    places: RwLock<HashMap<u32, Place>>,
    /// How many places have no content yet.
    empty: AtomicUsize,
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
            empty: AtomicUsize::new(0),
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

    /// Whether there is a layer for the slot, opened or not.
    pub(crate) fn has_place(&self, number: u32) -> bool {
        self.find(number).is_some()
    }

    /// The slot's layer is lost. Who asks for it waits until it is put here, or [`Slots::wait_no_longer`].
    pub(crate) fn lose(&self, number: u32) {
        self.place(number, Place::Lost(Arc::new(Lost::awaited())));
    }

    fn place(&self, number: u32, place: Place) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        let before = places.insert(number, place);
        self.count_empty(&places);
        drop(places);
        if let Some(Place::Lost(lost)) = before {
            lost.end_waiting();
        }
    }

    fn count_empty(&self, places: &HashMap<u32, Place>) {
        let empty = places.values();
        let empty = empty.filter(|place| !matches!(place, Place::Served(_)));
        self.empty.store(empty.count(), Ordering::Release);
    }

    /// Fails what waits for lost layers, and what asks for them until they are back.
    pub(crate) fn wait_no_longer(&self) {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        let lost = places.values().filter_map(|place| match place {
            Place::Lost(lost) => Some(lost.clone()),
            Place::Served(_) | Place::Unopened(_) => None,
        });
        let lost: Vec<_> = lost.collect();
        drop(places);
        for lost in lost {
            lost.end_waiting();
        }
    }

    /// The lost layer of this slot, opened in vain if it was not opened yet.
    fn lost(&self, number: u32) -> Option<Arc<Lost>> {
        if self.empty.load(Ordering::Acquire) == 0 {
            return None;
        }
        if let Some(Place::Unopened(layer)) = self.find(number) {
            layer.open();
        }
        match self.find(number) {
            Some(Place::Lost(lost)) => Some(lost),
            _ => None,
        }
    }

    /// Whether the slot's layer is lost: there are errors now that are none later.
    pub(super) fn is_lost(&self, number: u32) -> bool {
        self.lost(number).is_some()
    }

    /// Whether requests for the slot are to be given to [`Slots::postpone`].
    pub(super) fn is_awaited(&self, number: u32) -> bool {
        let lost = self.lost(number);
        lost.is_some_and(|lost| lost.waiting().is_some())
    }

    /// Has `answer` called when the slot's layer is back, when nobody waits for it any more, or at once if that
    /// is so already.
    pub(super) fn postpone(&self, number: u32, answer: Postponed) {
        if let Some(lost) = self.lost(number)
            && let Some(waiting) = lost.waiting().as_mut()
        {
            return waiting.push(answer);
        }
        answer();
    }

    pub(super) fn get(&self, number: u32) -> Option<Arc<Slot>> {
        match self.find(number)? {
            Place::Served(slot) => Some(slot),
            Place::Unopened(layer) => {
                // A matter of the local disk, as reading from the store is.
                layer.open();
                match self.find(number)? {
                    Place::Served(slot) => Some(slot),
                    Place::Unopened(_) | Place::Lost(_) => None,
                }
            }
            Place::Lost(_) => None,
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
        let before = places.remove(&number);
        self.count_empty(&places);
        drop(places);
        if let Some(Place::Lost(lost)) = before {
            lost.end_waiting();
        }
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

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    fn slots() -> Slots {
        Slots::new().unwrap()
    }

    fn device() -> Content {
        Content::Faulty(Faulty {
            bytes: Vec::new(),
            fails: 0..0,
        })
    }

    fn count_in(answered: &Arc<AtomicUsize>) -> Postponed {
        let answered = answered.clone();
        Box::new(move || {
            answered.fetch_add(1, Ordering::SeqCst);
        })
    }

    /// Promise: who asks for a lost layer is answered when it is back, or at once when nobody waits for it any
    /// more; each once.
    #[test]
    fn who_asks_for_a_lost_layer_is_answered_when_it_is_back() {
        let (slots, answered) = (slots(), Arc::new(AtomicUsize::new(0)));
        let answers = || answered.load(Ordering::SeqCst);
        slots.put(1, device());
        assert!(!slots.is_lost(1) && !slots.is_awaited(1));
        for number in [2, 3] {
            slots.lose(number);
            assert!(slots.is_lost(number) && slots.is_awaited(number) && !slots.has(number));
            slots.postpone(number, count_in(&answered));
        }
        assert_eq!(answers(), 0);
        slots.put(2, device());
        assert_eq!(answers(), 1);
        assert!(slots.has(2) && !slots.is_lost(2));
        slots.wait_no_longer();
        assert_eq!(answers(), 2);
        assert!(slots.is_lost(3) && !slots.is_awaited(3));
        slots.postpone(3, count_in(&answered));
        assert_eq!(answers(), 3);
        slots.put(3, device());
        assert!(slots.has(3) && !slots.is_lost(3));
        assert_eq!(answers(), 3);
    }

    /// Promise: a layer that turns out lost when it is opened is waited for like one that is known to be.
    #[test]
    fn a_layer_that_cannot_be_opened_is_waited_for() {
        let (slots, answered) = (Arc::new(slots()), Arc::new(AtomicUsize::new(0)));
        let found = Arc::downgrade(&slots);
        let layer = Unopened::new(move || found.upgrade().unwrap().lose(7));
        slots.put_unopened(7, Arc::new(layer));
        assert!(slots.is_awaited(7));
        slots.postpone(7, count_in(&answered));
        slots.let_go_of(7);
        assert_eq!(answered.load(Ordering::SeqCst), 1);
        assert!(!slots.is_lost(7));
    }
}
