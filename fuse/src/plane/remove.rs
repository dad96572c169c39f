//! Unmounting and removing layers.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::mounts::slots;
use super::{Plane, places};
use crate::layer::{Layer, LayerId};
use crate::mount::MountFailed;

/// How long the kernel may take to forget the names of a layer: it does within a millisecond, unless
/// somebody has it open. Longer only costs that the layer is freed a moment later.
const FORGETTING_MAX: Duration = Duration::from_millis(20);

/// How often that is looked for.
const FORGETTING_LOOK: Duration = Duration::from_millis(1);

/// A layer that was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveLayerError {
    /// It is mounted.
    #[error("layer {layer} is mounted at {target}: unmount it first")]
    Mounted {
        /// The layer.
        layer: LayerId,
        /// One of its places.
        target: PathBuf,
    },
    /// The data plane was shut down.
    #[error("the data plane is shutting down")]
    ShutDown,
}

/// A mount that would not go away.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// The kernel refused.
    #[error(transparent)]
    Mount(#[from] MountFailed),
    /// The data plane was shut down.
    #[error("the data plane is shutting down")]
    ShutDown,
}

impl Plane {
    pub(super) fn unmount(&self, target: &Path) -> Result<(), UnmountError> {
        let layer = self
            .lock_mounts()
            .targets
            .get(target)
            .and_then(|target| target.layer);
        self.unmount_target(target)?;
        if let Some(layer) = layer.and_then(|id| self.lock_layers().get(&id).cloned()) {
            self.let_go(&layer);
        }
        Ok(())
    }

    /// Asks the kernel to forget the names of a layer that is mounted nowhere, so that it is not in use
    /// only because the kernel remembers it.
    pub(super) fn let_go(&self, layer: &Layer) {
        if !self.lock_mounts().has(&layer.id()) {
            for slot in slots(layer) {
                self.session.forget(slot);
            }
        }
    }

    pub(super) fn remove(&self, id: &LayerId) -> Result<(), RemoveLayerError> {
        // Held to the end, so that nobody mounts what is being removed.
        let mounts = self.lock_mounts();
        let mut places = mounts.targets.iter();
        if let Some((target, _)) = places.find(|(_, target)| target.layer == Some(*id)) {
            return Err(RemoveLayerError::Mounted {
                layer: *id,
                target: target.clone(),
            });
        }
        if let Some(target) = mounts.merged_of(id, &places::erofs(self.store.root())) {
            return Err(RemoveLayerError::Mounted { layer: *id, target });
        }
        let Some(layer) = self.lock_layers().remove(id) else {
            self.remove_lost(id);
            return Ok(());
        };
        layer.forget();
        let slots = slots(&layer);
        self.store.disown(&slots);
        for slot in &slots {
            self.session.forget(*slot);
        }
        let is_open = self.is_open(&slots, || layer.stored().is_held());
        if !(is_open && self.retire(&layer, &slots)) {
            self.store.remove(&id.0);
            self.store.forget_verified(layer.0.slot);
        }
        for slot in slots {
            self.slots.retire(slot);
        }
        Ok(())
    }

    /// The same for a layer that the store lost before. While somebody has it open, what is left of it stays for
    /// the case that it comes back.
    fn remove_lost(&self, id: &LayerId) {
        let former = self.store.former_of(&id.0);
        let slots: Vec<_> = former.iter().map(|(slot, _)| *slot).collect();
        if slots.is_empty() {
            return;
        }
        for slot in &slots {
            self.session.forget(*slot);
        }
        if self.is_open(&slots, || false) {
            return;
        }
        self.store.disown(&slots);
        self.store.remove(&id.0);
        for slot in slots {
            self.slots.let_go_of(slot);
            self.store.forget_verified(slot);
        }
    }

    /// Whether the kernel has anything of the slots open, when it has forgotten the names that it was asked
    /// to forget, or the device `is_held` by a mount that was detached.
    fn is_open(&self, slots: &[u32], is_held: impl Fn() -> bool) -> bool {
        let until = Instant::now() + FORGETTING_MAX;
        while slots.iter().any(|slot| self.slots.in_use(*slot)) || is_held() {
            if Instant::now() >= until {
                return true;
            }
            std::thread::sleep(FORGETTING_LOOK);
        }
        false
    }
}
