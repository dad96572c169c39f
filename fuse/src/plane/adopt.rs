//! Mounts that a daemon before made, and that containers go on using.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::mounts::{Base, Mounts, Target, slots};
use super::{Plane, places};
use crate::layer::LayerId;
use crate::mount::{Mount, SOURCE, Unmount, unmount};

/// A place where an image is mounted, by the table of mounts alone: looking into it would ask the
/// daemon that looks.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    target: PathBuf,
    /// The slot of the image.
    slot: u32,
    base: Option<Base>,
}

impl Plane {
    /// Takes the mounts in `table` that are those of its layers for its own, also of those that are lost for
    /// now, until somebody claims them by mounting, or [`Plane::unmount_unclaimed`].
    pub(super) fn adopt(&self, table: &[Mount]) {
        let former = self.store.former().into_iter();
        let mut owners: HashMap<u32, LayerId> = former
            .map(|(slot, owner)| (slot, LayerId(owner.layer)))
            .collect();
        for layer in self.lock_layers().values() {
            owners.extend(slots(layer).into_iter().map(|slot| (slot, layer.id())));
        }
        let root = self.store.root();
        let mut mounts = self.lock_mounts();
        for base in bases(table, root).into_values() {
            mounts.bases.entry(base).or_default();
        }
        self.adopt_merged(table, &mut mounts);
        let mut twice = Vec::new();
        for found in images(table, root) {
            let layer = owners.get(&found.slot).copied();
            if layer.is_none() {
                tracing::warn!(
                    place = %found.target.display(),
                    "a mount of a layer that nobody knows; what runs on it must be restarted"
                );
            }
            if let Some(base) = found.base {
                *mounts.bases.entry(base).or_default() += 1;
            }
            let target = Target {
                layer,
                slot: found.slot,
                base: found.base,
                image: None,
                unclaimed: true,
                // Known once somebody claims it.
                asked_tree: None,
            };
            let before = mounts.targets.insert(found.target.clone(), target);
            twice.extend(before.map(|before| (found.target, before)));
        }
        for (target, before) in twice {
            let other = mounts.targets.get(&target).map(|top| (top.slot, top.base));
            match (before.base, other) {
                (Some(one), Some((slot, Some(other)))) if before.slot == slot => {
                    self.finish_renewal(&mut mounts, &target, one, other);
                }
                _ => self.clear_stack(&mut mounts, &target, &before),
            }
        }
    }

    /// Ends what earlier builds made of a layer that came back: a mount on top of the one that was there. Both
    /// go, and whoever wants the layer there mounts it again; containers keep what they have.
    fn clear_stack(&self, mounts: &mut Mounts, target: &Path, below: &Target) {
        // A lazy one: its base must outlive the mounts of it.
        for base in [
            Some(below.base),
            mounts.targets.get(target).map(|top| top.base),
        ] {
            if let Err(error) = unmount(target, Unmount::Lazy) {
                tracing::warn!(%error, "a mount stays");
            }
            if let Some(base) = base.flatten() {
                self.release_base(mounts, base);
            }
        }
        mounts.targets.remove(target);
    }

    /// Unmounts what nobody claimed: a change that was killed half way left it. The layers of `awaited` places
    /// are lost, and will be claimed when they are back. What lies elsewhere is a view that somebody else bound there, of an
    /// image of one layer, and is forgotten.
    pub(super) fn unmount_unclaimed(&self, awaited: &[PathBuf]) {
        let mut mounts = self.lock_mounts();
        let is_unclaimed =
            |(place, found): &(&PathBuf, &Target)| found.unclaimed && !awaited.contains(place);
        let unclaimed = mounts.targets.iter().filter(is_unclaimed);
        let unclaimed: Vec<_> = unclaimed.map(|(target, _)| target.clone()).collect();
        for target in unclaimed {
            if !target.starts_with(self.store.root()) {
                self.forget(&mut mounts, &target);
                continue;
            }
            tracing::info!(place = %target.display(), "unmounting what a killed change left");
            if let Err(error) = self.unmount_known(&mut mounts, &target) {
                tracing::warn!(%error, "a mount stays");
            }
        }
        let bases: Vec<_> = mounts.bases.keys().copied().collect();
        for base in bases {
            self.drop_unused(&mut mounts, base);
        }
    }
}

/// The EROFS file systems of a plane, by the number of the file system.
fn bases<'a>(table: &'a [Mount], root: &Path) -> HashMap<&'a str, Base> {
    let place = places::erofs(root);
    let is_base = |mount: &&Mount| mount.kind == "erofs" && mount.target.parent() == Some(&place);
    let bases = table.iter().filter(is_base).filter_map(|mount| {
        let base = Base::of_name(mount.target.file_name()?.to_str()?)?;
        Some((&*mount.device, base))
    });
    bases.collect()
}

/// Where images of the plane are mounted.
fn images(table: &[Mount], root: &Path) -> Vec<Found> {
    let bases = bases(table, root);
    let is_session = |mount: &&Mount| {
        mount.kind == "fuse"
            && mount.source == SOURCE
            && mount.root == Path::new("/")
            && mount.target.parent() == Some(root)
    };
    let sessions: Vec<_> = table
        .iter()
        .filter(is_session)
        .map(|m| &*m.device)
        .collect();
    let place = places::erofs(root);
    let found = table.iter().filter_map(|mount| {
        if let Some(&base) = bases.get(&*mount.device) {
            return (mount.target.parent() != Some(&place)).then(|| Found {
                target: mount.target.clone(),
                slot: base.slot,
                base: Some(base),
            });
        }
        let slot = mount.root.strip_prefix("/tree").ok()?;
        let slot = slot.to_str()?.parse().ok()?;
        sessions.contains(&&*mount.device).then(|| Found {
            target: mount.target.clone(),
            slot,
            base: None,
        })
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(target: &str, root: &str, device: &str, kind: &str) -> Mount {
        Mount {
            target: target.into(),
            root: root.into(),
            device: device.into(),
            kind: kind.into(),
            source: "larder".into(),
            layers: Vec::new(),
            reads_directly: false,
        }
    }

    /// Promise: images are found on both drivers by what the kernel says of them; mounts of others
    /// are not.
    #[test]
    fn the_mounts_of_a_plane_are_found_in_the_table() {
        let table = [
            mount("/r/session", "/", "0:50", "fuse"),
            mount("/r/session-plain", "/", "0:51", "fuse"),
            mount("/r/erofs/3-lazy", "/", "0:60", "erofs"),
            mount("/r/erofs/9-direct", "/", "0:61", "erofs"),
            mount("/r/snapshots/1/fs", "/", "0:60", "erofs"),
            mount("/r/snapshots/2/fs", "/tree/7", "0:51", "fuse"),
            mount("/elsewhere", "/tree/8", "0:50", "fuse"),
            mount("/r/snapshots/4/fs", "/tree/7", "0:52", "fuse"),
            mount("/r/snapshots/5/fs", "/tree/x", "0:50", "fuse"),
            mount("/r/snapshots/6/fs", "/", "0:62", "erofs"),
            mount("/r2/erofs/4-lazy", "/", "0:63", "erofs"),
        ];
        let root = Path::new("/r");
        let [lazy, direct] = ["3-lazy", "9-direct"].map(|name| Base::of_name(name).unwrap());
        let bases = bases(&table, root);
        assert_eq!(bases.len(), 2);
        assert_eq!((bases["0:60"], bases["0:61"]), (lazy, direct));
        let found = |target: &str, slot, base| Found {
            target: target.into(),
            slot,
            base,
        };
        let expected = [
            found("/r/snapshots/1/fs", 3, Some(lazy)),
            found("/r/snapshots/2/fs", 7, None),
            found("/elsewhere", 8, None),
        ];
        assert_eq!(images(&table, root), expected);
    }
}
