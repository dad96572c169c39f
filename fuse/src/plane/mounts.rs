//! The mounts of layers: one EROFS file system per image, bound wherever it is wanted.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use super::merged::Merged;
use super::start::device_path;
use super::{Plane, places};
use crate::apart::apart;
use crate::driver::Driver;
use crate::layer::{ImpliedDirectory, Layer, LayerId, MountError, View};
use crate::mount::{Erofs, MountFailed, Unmount, bind, mount_erofs, refuse_foreign, unmount};
use crate::session::Content;

/// What is mounted now.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) targets: HashMap<PathBuf, Target>,
    pub(super) bases: HashMap<Base, usize>,
    /// Chains mounted as one, by the name of their image.
    pub(super) merged: HashMap<String, Merged>,
}

impl Mounts {
    /// Whether the layer is mounted anywhere.
    pub(super) fn has(&self, layer: &LayerId) -> bool {
        let alone = self
            .targets
            .values()
            .any(|target| target.layer == Some(*layer));
        let mut merged = self.merged.values();
        alone || merged.any(|merged| merged.layers.contains(layer))
    }

    /// Whether the kernel reads the layer's file past us, as far as mounts are known.
    pub(super) fn has_direct(&self, layer: &LayerId) -> bool {
        let is_direct = |target: &Target| target.base.is_some_and(|base| base.direct);
        self.targets
            .values()
            .any(|target| target.layer == Some(*layer) && is_direct(target))
    }
}

/// A place a layer is mounted at.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// `None` for one that a daemon before mounted, and nobody knows any more which it was.
    pub(super) layer: Option<LayerId>,
    /// See [`crate::DataPlane::asked_tree`].
    pub(super) asked_tree: Option<PathBuf>,
    /// The slot of its metadata image.
    pub(super) slot: u32,
    pub(super) base: Option<Base>,
    /// The file of its metadata image. Not known of what a daemon before made, until somebody claims it.
    pub(super) image: Option<PathBuf>,
    /// Whether a daemon before made it, and nobody said yet that it is wanted.
    pub(super) unclaimed: bool,
}

/// One EROFS file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Base {
    /// The slot of its metadata image.
    pub(super) slot: u32,
    /// Whether its device is the store's file itself.
    pub(super) direct: bool,
}

impl Plane {
    /// Mounts `layer` at `target`. Enters our own session: not for FUSE threads.
    pub(crate) fn mount(
        &self,
        layer: &Layer,
        target: &Path,
        implied: &[ImpliedDirectory],
    ) -> Result<(), MountError> {
        let view = layer.view(implied, &self.store)?;
        if !self.slots.has(view.slot) {
            let content = Content::Layer {
                fetcher: layer.0.fetcher.clone(),
                image: view.image.clone(),
            };
            self.slots.put(view.slot, content);
        }
        let mut mounts = self.lock_mounts();
        match mounts.targets.get_mut(target) {
            Some(found) if found.unclaimed && found.slot == view.slot => {
                found.unclaimed = false;
                found.image = Some(view.path);
                if self.driver.driver == Driver::Fuse {
                    let has_xattrs = view.image.has_xattrs();
                    found.asked_tree = self.session.asked_tree(view.slot, has_xattrs);
                }
                drop(mounts);
                if layer.is_proven_here() {
                    self.renew(layer);
                }
                return Ok(());
            }
            // Another image of the layer: containers that run go on with the one they have.
            Some(found) if found.unclaimed => self.unmount_known(&mut mounts, target)?,
            Some(_) => return Err(MountError::InUse(target.to_owned())),
            None => {}
        }
        let (base, asked_tree) = match self.driver.driver {
            Driver::Fuse => {
                let has_xattrs = view.image.has_xattrs();
                let tree = self.session.tree(view.slot, has_xattrs);
                apart(|| bind(&tree, target))?;
                (None, self.session.asked_tree(view.slot, has_xattrs))
            }
            Driver::Erofs => {
                let base = self.bind_erofs(&mut mounts, layer, &view, target)?;
                (Some(base), None)
            }
        };
        let mounted = Target {
            layer: Some(layer.id()),
            slot: view.slot,
            base,
            image: Some(view.path),
            unclaimed: false,
            asked_tree,
        };
        mounts.targets.insert(target.to_owned(), mounted);
        Ok(())
    }

    fn bind_erofs(
        &self,
        mounts: &mut Mounts,
        layer: &Layer,
        view: &View,
        target: &Path,
    ) -> Result<Base, MountError> {
        let base = Base {
            slot: view.slot,
            direct: self.may_be_direct(mounts, layer),
        };
        self.mount_base(mounts, layer, base, &view.path)?;
        let bound = bind(&self.base_path(base), target);
        if bound.is_ok() {
            *mounts.bases.entry(base).or_default() += 1;
        } else {
            self.drop_unused(mounts, base);
        }
        bound?;
        Ok(base)
    }

    /// Mounts an EROFS file system of the layer, with the metadata `image`, unless it is mounted.
    pub(super) fn mount_base(
        &self,
        mounts: &mut Mounts,
        layer: &Layer,
        base: Base,
        image: &Path,
    ) -> Result<(), MountError> {
        if !mounts.bases.contains_key(&base) {
            let place = self.base_path(base);
            let device = if base.direct {
                layer.stored().directory().join("device")
            } else {
                device_path(self.session.path(), layer.0.slot)
            };
            crate::create_private(&place).map_err(|error| MountError::Prepare {
                path: place.clone(),
                error,
            })?;
            let erofs = Erofs {
                image,
                devices: &[device],
                direct_reads: !base.direct && self.reads_directly(layer),
            };
            apart(|| mount_erofs(erofs, &place))?;
        }
        mounts.bases.entry(base).or_default();
        Ok(())
    }

    pub(super) fn asked_tree(&self, target: &Path) -> Option<PathBuf> {
        self.lock_mounts().targets.get(target)?.asked_tree.clone()
    }

    pub(super) fn unmount_target(&self, target: &Path) -> Result<(), MountFailed> {
        // Below the root directory nobody else mounts anything, and there may be many.
        if !target.starts_with(self.store.root()) {
            refuse_foreign(target, self.store.root())?;
        }
        self.unmount_known(&mut self.lock_mounts(), target)
    }

    pub(super) fn unmount_known(
        &self,
        mounts: &mut Mounts,
        target: &Path,
    ) -> Result<(), MountFailed> {
        match unmount(target, Unmount::Now) {
            Err(error) if error.io_error().kind() == io::ErrorKind::ResourceBusy => {
                unmount(target, Unmount::Lazy)?;
            }
            other => other?,
        }
        self.forget(mounts, target);
        Ok(())
    }

    /// There is no mount of ours at `target` any more.
    pub(super) fn forget(&self, mounts: &mut Mounts, target: &Path) {
        if let Some(Target {
            base: Some(base), ..
        }) = mounts.targets.remove(target)
        {
            self.release_base(mounts, base);
        }
    }

    /// One place less that shows it.
    pub(super) fn release_base(&self, mounts: &mut Mounts, base: Base) {
        if let Some(users) = mounts.bases.get_mut(&base) {
            *users = users.saturating_sub(1);
        }
        self.drop_unused(mounts, base);
    }

    pub(super) fn unmount_all(&self) {
        let targets: Vec<_> = self.lock_mounts().targets.keys().cloned().collect();
        for target in targets {
            if let Err(error) = self.unmount_target(&target) {
                tracing::warn!(%error, "a mount stays");
            }
        }
        let mut mounts = self.lock_mounts();
        let merged: Vec<_> = mounts.merged.keys().cloned().collect();
        for name in merged {
            if let Err(error) = self.unmount_merged(&mut mounts, &name) {
                tracing::warn!(%error, "a merged mount stays");
            }
        }
    }

    pub(super) fn lock_mounts(&self) -> MutexGuard<'_, Mounts> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn drop_unused(&self, mounts: &mut Mounts, base: Base) {
        if mounts.bases.get(&base) != Some(&0) {
            return;
        }
        mounts.bases.remove(&base);
        let place = self.base_path(base);
        match unmount(&place, Unmount::Lazy) {
            Ok(()) => drop(std::fs::remove_dir(&place)),
            Err(error) => tracing::warn!(%error, "an EROFS mount stays"),
        }
    }

    pub(super) fn base_path(&self, base: Base) -> PathBuf {
        places::erofs(self.store.root()).join(base.name())
    }
}

impl Base {
    fn name(self) -> String {
        let kind = if self.direct { "direct" } else { "lazy" };
        format!("{}-{kind}", self.slot)
    }

    /// The one whose directory has this name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        let (slot, kind) = name.split_once('-')?;
        let base = Self {
            slot: slot.parse().ok()?,
            direct: kind == "direct",
        };
        (base.name() == name).then_some(base)
    }
}

/// The slots a layer is served under.
pub(super) fn slots(layer: &Layer) -> Vec<u32> {
    layer.stored().record().slots()
}
