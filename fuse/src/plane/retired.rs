//! Layers that were removed while somebody had files of them open.
//!
//! They have no name any more and nobody can mount them; they are served under their slots, by this
//! daemon and those after it, until the kernel has nothing of them open. Then their bytes go. After both
//! daemon and supervisor died nobody has anything open but what the kernel reads past us, and the next start frees the
//! rest. What the kernel reads past us would be there without a name, too; with one it is accounted for.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};

use std::time::Duration;

use tracing::{debug, warn};

use super::Plane;
use crate::apart::apart;
use crate::failpoint;
use crate::fetch::Fetcher;
use crate::layer::{Layer, LayerId};
use crate::session::{Content, Unopened};
use crate::source::{Elsewhere, Source};
use crate::store::{Proof, StoredLayer};

/// How often the kernel is asked whether removed layers are still open: they are few, and it takes a
/// request for each.
const REMIND_EVERY: Duration = Duration::from_secs(2);

/// A layer that was removed and is still open somewhere.
#[derive(Debug, Clone)]
pub struct RemovedLayer {
    fetcher: Arc<Fetcher>,
    origin: Vec<u8>,
}

impl RemovedLayer {
    /// What [`Layer::set_origin`] was told.
    pub fn origin(&self) -> &[u8] {
        &self.origin
    }

    /// Says where its bytes may be had: a daemon that took over does not know.
    pub fn set_sources(
        &self,
        sources: Vec<Arc<dyn Source>>,
        elsewhere: Option<Arc<dyn Elsewhere>>,
    ) {
        self.fetcher.set_elsewhere(elsewhere);
        self.fetcher.set_sources(sources);
    }

    /// Bytes that can be evicted while it is read: not of a file that the kernel reads directly.
    pub(super) fn evictable(&self) -> u64 {
        if self.stored().is_direct() {
            return 0;
        }
        self.stored().on_disk().device
    }

    pub(super) fn stored(&self) -> &Arc<StoredLayer> {
        self.fetcher.layer()
    }
}

/// What is known of one.
#[derive(Debug)]
pub(super) struct Retired {
    /// All slots it is served under.
    slots: Vec<u32>,
    /// `None` while it is not opened.
    layer: Option<RemovedLayer>,
}

impl Plane {
    /// Takes a layer away, whose files somebody has open, and leaves it to its users; whether that was
    /// possible.
    pub(super) fn retire(&self, layer: &Layer, slots: &[u32]) -> bool {
        let origin = layer.origin();
        if let Err(error) = self.store.retire(layer.stored(), &origin) {
            warn!(layer = %layer.id(), %error,
                "a removed layer that is open will not outlive this daemon");
            return false;
        }
        failpoint("retire: renamed");
        let retired = Retired {
            slots: slots.to_vec(),
            layer: Some(RemovedLayer {
                fetcher: layer.0.fetcher.clone(),
                origin,
            }),
        };
        self.lock_retired().insert(layer.0.slot, retired);
        // The kernel is to be asked for it from now on.
        self.slots.look_again();
        true
    }

    /// Layers that a daemon before retired; they are opened when they are asked for.
    pub(super) fn take_up_retired(self: &Arc<Self>) -> Vec<Arc<Unopened>> {
        let mut unopened = Vec::new();
        for (slot, slots) in self.store.all_retired() {
            let plane = Arc::downgrade(self);
            let layer = Arc::new(Unopened::new(move || {
                if let Some(plane) = plane.upgrade() {
                    plane.open_retired(slot);
                }
            }));
            for &one in &slots {
                self.slots.put_unopened(one, layer.clone());
            }
            let is_open = slots.iter().any(|one| self.slots.in_use(*one));
            let retired = Retired { slots, layer: None };
            self.lock_retired().insert(slot, retired);
            // What is left of one that was being freed may not even open.
            if is_open {
                unopened.push(layer);
            }
        }
        unopened
    }

    /// Layers that were retired before a full start, and that the kernel still reads past us.
    pub(super) fn keep_held(&self) {
        for (slot, slots) in self.store.all_retired() {
            let retired = Retired { slots, layer: None };
            self.lock_retired().insert(slot, retired);
        }
    }

    /// Whether the kernel reads the device of a retired layer past us.
    fn is_held(&self, slot: u32, retired: &Retired) -> bool {
        match &retired.layer {
            Some(layer) => layer.stored().is_held(),
            None => self.store.is_retired_held(slot),
        }
    }

    fn open_retired(&self, slot: u32) {
        let (stored, origin) = match self.store.open_retired(slot) {
            Ok(opened) => opened,
            Err(error) => {
                warn!(slot, %error,
                    "a removed layer that is open cannot be opened; its files cannot be read");
                return;
            }
        };
        let id = LayerId(stored.record().location.digest);
        let is_lie = matches!(stored.record().proof, Proof::Quarantined(_));
        let slots = stored.record().slots();
        let image = stored.image().clone();
        let context = self.context.clone();
        let fetcher = Arc::new(Fetcher::new(
            id.0,
            Arc::new(stored),
            Vec::new(),
            None,
            context,
        ));
        // Nothing is fetched for it but what is read.
        fetcher.remove();
        if is_lie {
            self.proofs.bar(&fetcher);
        }
        let content = Content::Layer {
            fetcher: fetcher.clone(),
            image,
        };
        self.slots.put(slot, content);
        self.serve_patches(&fetcher);
        let layer = Some(RemovedLayer { fetcher, origin });
        let retired = Retired {
            slots: slots.clone(),
            layer,
        };
        self.lock_retired().insert(slot, retired);
        for slot in slots {
            self.slots.retire(slot);
        }
    }

    /// Deletes what nobody has open any more.
    pub(super) fn free_retired(&self) {
        let unused = {
            let mut all = self.lock_retired();
            let is_unused = |slot: &u32, one: &mut Retired| {
                !one.slots.iter().any(|slot| self.slots.in_use(*slot)) && !self.is_held(*slot, one)
            };
            all.extract_if(is_unused).collect::<Vec<_>>()
        };
        for (slot, retired) in unused {
            failpoint("retire: unused");
            for one in &retired.slots {
                self.slots.let_go_of(*one);
            }
            self.store.free_retired(slot);
            failpoint("retire: freed");
            debug!(slot, "nobody has a removed layer open any more");
        }
    }

    /// Asks the kernel once more to forget the names of what is left; whether there is any.
    ///
    /// It forgets what nobody has open, and keeps the rest in its cache when that is closed, without a
    /// word to us. The name of the whole is gone by then, and has to be looked up to be forgotten again.
    fn remind(&self) -> bool {
        let (left, some_are_left) = {
            let retired = self.lock_retired();
            let slots = retired.values().flat_map(|one| one.slots.clone());
            // A device that is merely held has no names.
            let left: Vec<u32> = slots.filter(|slot| self.slots.in_use(*slot)).collect();
            (left, !retired.is_empty())
        };
        for slot in left {
            apart(|| {
                for place in self.session.places(slot) {
                    // Whoever is not there is forgotten already.
                    let _ = std::fs::symlink_metadata(place);
                }
            });
            self.session.forget(slot);
        }
        some_are_left
    }

    /// Those that are served.
    pub(super) fn removed(&self) -> Vec<RemovedLayer> {
        let retired = self.lock_retired();
        let served = retired.values().filter_map(|one| one.layer.clone());
        served.collect()
    }

    /// Bytes on the disk of those that are not.
    pub(super) fn unopened_bytes(&self) -> u64 {
        let retired = self.lock_retired();
        let unopened = retired.iter().filter(|(_, one)| one.layer.is_none());
        unopened
            .map(|(slot, _)| self.store.retired_bytes(*slot))
            .sum()
    }

    fn lock_retired(&self) -> MutexGuard<'_, HashMap<u32, Retired>> {
        self.retired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Frees what nobody has open any more, until the plane is gone.
pub(super) async fn free_retired(plane: Weak<Plane>) {
    loop {
        let Some(strong) = plane.upgrade() else {
            return;
        };
        let slots = strong.slots.clone();
        let freed = tokio::task::spawn_blocking(move || {
            strong.free_retired();
            strong.remind()
        });
        let some_are_left = freed.await.unwrap_or(false);
        tokio::select! {
            () = slots.let_go() => {}
            () = tokio::time::sleep(REMIND_EVERY), if some_are_left => {}
        }
    }
}
