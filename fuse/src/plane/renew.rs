//! Layers that became complete while they were mounted: what starts from then on reads the store's file itself.
//!
//! A container keeps the file system it began with. The place its layer is mounted at, where the next
//! container looks, gets the direct one instead, without a moment in between.

use std::path::{Path, PathBuf};

use super::Plane;
use super::merged::Merged;
use super::mounts::{Base, Mounts, slots};
use crate::apart::apart;
use crate::layer::{Layer, MountError};
use crate::mount::{self, Unmount, buffer_reads, replace, unmount};

/// The share of the store's limit that direct mounts may fix: one in so many. Nothing can be taken from what
/// the kernel reads past us, and the rest must be enough for what is read now.
const FIXED_SHARE: u64 = 2;

impl Plane {
    /// Puts direct mounts in the place of a layer's lazy ones, now that it is proven.
    pub(crate) fn renew(&self, layer: &Layer) {
        self.buffer_lazy(layer);
        self.renew_alone(layer);
        self.renew_merged(layer);
    }

    /// Whether what is mounted of it now reads its device past the page cache.
    pub(super) fn reads_directly(&self, layer: &Layer) -> bool {
        self.config.device_reads.is_direct_until_proven() && !layer.is_proven_here()
    }

    /// Has its lazy mounts, which containers that run keep, read through the page cache: nothing waits for the network any
    /// more, and a tree of small files is read in a fifteenth of the requests. Before others take their places, where
    /// they could not be found any more.
    fn buffer_lazy(&self, layer: &Layer) {
        if !self.config.device_reads.is_direct_until_proven() {
            return;
        }
        let mounts = self.lock_mounts();
        let is_lazy = |base: &Base| !base.direct && slots(layer).contains(&base.slot);
        let alone = mounts.bases.keys().filter(|base| is_lazy(base));
        let mut places: Vec<PathBuf> = alone.map(|base| self.base_path(*base)).collect();
        let is_due = |merged: &Merged| {
            let mut layers = merged.layers.iter();
            !merged.direct
                && merged.layers.contains(&layer.id())
                && layers.all(|id| self.usable(id).is_ok_and(|layer| layer.is_proven_here()))
        };
        let due = mounts.merged.iter().filter(|(_, merged)| is_due(merged));
        places.extend(due.map(|(name, _)| self.merged_place(name)));
        // Those of a daemon before may be changed already: it costs them the names that nobody uses now.
        let table = match places[..] {
            [] => return,
            _ => mount::mounts().unwrap_or_default(),
        };
        let is_direct = |place: &PathBuf| {
            let mut table = table.iter();
            table.any(|mount| mount.reads_directly && mount.target == *place)
        };
        for place in places.into_iter().filter(is_direct) {
            if let Err(error) = apart(|| buffer_reads(&place)) {
                tracing::info!(%error, "a layer that is whole is read in more requests than it need be");
            }
        }
    }

    fn renew_alone(&self, layer: &Layer) {
        let mut mounts = self.lock_mounts();
        let lazy: Vec<_> = mounts
            .targets
            .iter()
            .filter(|(path, target)| {
                // Elsewhere it is a person's own mount, and no container looks there.
                path.starts_with(self.store.root()) && target.layer == Some(layer.id())
            })
            .filter_map(|(path, target)| {
                let base = target.base.filter(|base| !base.direct)?;
                Some((path.clone(), base, target.image.clone()?))
            })
            .collect();
        for (target, old, image) in lazy {
            match self.renew_one(&mut mounts, layer, &target, old, &image) {
                Ok(true) => {
                    tracing::debug!(place = %target.display(), "mounted directly from here on");
                }
                // The lazy one goes on serving.
                Ok(false) => return,
                Err(error) => tracing::info!(%error, "a layer stays mounted lazily"),
            }
        }
    }

    fn renew_one(
        &self,
        mounts: &mut Mounts,
        layer: &Layer,
        target: &Path,
        old: Base,
        image: &Path,
    ) -> Result<bool, MountError> {
        let direct = Base {
            direct: true,
            ..old
        };
        if !self.may_be_direct(mounts, layer) {
            return Ok(false);
        }
        self.mount_base(mounts, layer, direct, image)?;
        if let Err(error) = replace(&self.base_path(direct), target) {
            self.drop_unused(mounts, direct);
            return Err(error.into());
        }
        *mounts.bases.entry(direct).or_default() += 1;
        if let Some(target) = mounts.targets.get_mut(target) {
            target.base = Some(direct);
        }
        self.release_base(mounts, old);
        Ok(true)
    }

    /// Whether the kernel may read the layer's file past us: all of it is there and proven, and direct mounts
    /// leave enough of the store that chunks can be taken from.
    pub(super) fn may_be_direct(&self, mounts: &Mounts, layer: &Layer) -> bool {
        layer.is_proven_here() && self.leaves_enough(mounts, layer) && layer.stored().begin_direct()
    }

    fn leaves_enough(&self, mounts: &Mounts, layer: &Layer) -> bool {
        let Some(limit) = self.store.rules().ledger.limit() else {
            return true;
        };
        // Nothing is taken from what is pinned, however it is mounted.
        let pinned = |layer: &Layer| self.store.pins().has(&layer.id().0);
        if pinned(layer) || mounts.has_direct(&layer.id()) {
            return true;
        }
        let layers: Vec<_> = self.lock_layers().values().cloned().collect();
        let fixed = layers
            .iter()
            .filter(|other| mounts.has_direct(&other.id()) && !pinned(other))
            .map(|other| other.stored().on_disk().device)
            .sum::<u64>();
        fixed.saturating_add(layer.stored().on_disk().device) <= limit / FIXED_SHARE
    }

    /// Ends what a daemon that was killed while it renewed left: two mounts in one place, the lazy one on top.
    pub(super) fn finish_renewal(
        &self,
        mounts: &mut Mounts,
        target: &Path,
        one: Base,
        other: Base,
    ) {
        let (lazy, direct) = if one.direct {
            (other, one)
        } else {
            (one, other)
        };
        match unmount(target, Unmount::Lazy) {
            Ok(()) => self.release_base(mounts, lazy),
            Err(error) => tracing::warn!(%error, "a mount stays"),
        }
        if let Some(target) = mounts.targets.get_mut(target) {
            target.base = Some(direct);
        }
    }
}
