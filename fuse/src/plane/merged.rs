//! Chains of layers mounted as one file system: one merged image, with the device of each layer.

use std::io;
use std::path::{Path, PathBuf};

use larder_proto::digest::Digest;
use larder_proto::erofs::{self, MergeError};

use super::mounts::Mounts;
use super::start::device_path;
use super::{DataPlane, Plane, places};
use crate::apart::apart;
use crate::driver::Driver;
use crate::layer::{ImpliedDirectory, Layer, LayerId, MountError, View, patch_key};
use crate::mount::{Erofs, Mount, MountFailed, Unmount, mount_erofs, replace, unmount};
use crate::store::{LayerStoreError, MergedFile};

/// Most files of all layers together, those that are hidden included. Merging takes 425 bytes for each (51 MB
/// for 120,000, measured) for a moment, once at a time on a node; the daemon is meant to do with 96 MiB.
/// Larger images go on as stacks.
const FILES_MAX: u64 = 150_000;

/// The beginning of the names of their mounts, beside those of single layers.
const PREFIX: &str = "merged-";

/// A layer of a chain, with the attributes of its implied directories there.
#[derive(Debug, Clone)]
pub struct ChainLayer {
    /// The layer.
    pub layer: LayerId,
    /// See [`Layer::mount`].
    pub implied: Vec<ImpliedDirectory>,
}

/// A chain that is not mounted as one; it can be mounted as a stack.
#[derive(Debug, thiserror::Error)]
pub enum MergeLayersError {
    /// Only the kernel's EROFS takes several devices.
    #[error("layers are merged with the EROFS driver only")]
    NotErofs,
    /// It would take too much memory.
    #[error("{files} files in all layers are more than the limit of {FILES_MAX}")]
    TooLarge {
        /// Their number.
        files: u64,
    },
    /// A layer was removed meanwhile.
    #[error("the layer with index {0} is not in the store")]
    Gone(LayerId),
    /// A layer cannot be used.
    #[error(transparent)]
    Layer(#[from] MountError),
    /// One image cannot hold it.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// It cannot be kept.
    #[error("keep the merged image: {0}")]
    Store(#[from] LayerStoreError),
    /// The kernel refused.
    #[error(transparent)]
    Mount(#[from] MountFailed),
    /// The data plane was shut down.
    #[error("the data plane is shutting down")]
    ShutDown,
}

/// One mounted merged image.
#[derive(Debug)]
pub(super) struct Merged {
    pub(super) layers: Vec<LayerId>,
    /// Whether a daemon before made it, and nobody said yet that it is wanted.
    unclaimed: bool,
    /// Whether its devices are the store's files themselves.
    pub(super) direct: bool,
    file: MergedFile,
}

impl Mounts {
    /// The place, below `places`, of a merged image that `layer` is part of.
    pub(super) fn merged_of(&self, layer: &LayerId, places: &Path) -> Option<PathBuf> {
        let mut merged = self.merged.iter();
        let found = merged.find(|(_, merged)| merged.layers.contains(layer));
        found.map(|(name, _)| places.join(format!("{PREFIX}{name}")))
    }
}

impl DataPlane {
    /// Where [`DataPlane::mount_merged`] mounts the chain, the lowest layer first. The same layers with the same
    /// implied directories have the same place.
    pub fn merged_place(&self, chain: &[ChainLayer]) -> PathBuf {
        self.0.merged_place(&name(chain))
    }

    /// The places of all merged images there are, mounted or not.
    pub fn merged_places(&self) -> Vec<PathBuf> {
        let mut names = self.0.store.merged_names();
        names.extend(self.0.lock_mounts().merged.keys().cloned());
        names.sort();
        names.dedup();
        names.iter().map(|name| self.0.merged_place(name)).collect()
    }

    /// Mounts a chain of layers as one, the lowest first; its merged image is made unless it is there. Takes as
    /// long as that: nobody who is waited for should wait for it.
    pub async fn mount_merged(&self, chain: Vec<ChainLayer>) -> Result<PathBuf, MergeLayersError> {
        let plane = self.0.clone();
        let _alone = self.0.merging.lock().await;
        tokio::task::spawn_blocking(move || plane.mount_merged(&chain))
            .await
            .unwrap_or(Err(MergeLayersError::ShutDown))
    }

    /// Unmounts what is at a merged place, and takes its image away. Nothing there is no error.
    pub async fn drop_merged(&self, place: &Path) -> Result<(), MountFailed> {
        let Some(name) = name_of(place) else {
            return Ok(());
        };
        let (plane, name) = (self.0.clone(), name.to_owned());
        let _alone = self.0.merging.lock().await;
        let dropped = tokio::task::spawn_blocking(move || plane.drop_merged(&name)).await;
        // Without an answer the data plane is going, and its mounts with it.
        dropped.unwrap_or(Ok(()))
    }
}

impl Plane {
    pub(super) fn merged_place(&self, name: &str) -> PathBuf {
        let places = places::erofs(self.store.root());
        places.join(format!("{PREFIX}{name}"))
    }

    /// The caller is alone in it.
    fn mount_merged(&self, chain: &[ChainLayer]) -> Result<PathBuf, MergeLayersError> {
        if self.driver.driver != Driver::Erofs {
            return Err(MergeLayersError::NotErofs);
        }
        let name = name(chain);
        let place = self.merged_place(&name);
        if let Some(found) = self.lock_mounts().merged.get_mut(&name) {
            found.unclaimed = false;
            return Ok(place);
        }
        let layers = chain.iter().map(|one| self.usable(&one.layer));
        let layers: Vec<Layer> = layers.collect::<Result<_, _>>()?;
        let views = layers.iter().zip(chain);
        let views = views.map(|(layer, one)| layer.view(&one.implied, &self.store));
        let views: Vec<View> = views.collect::<Result<_, _>>()?;
        let file = self.merged_file(&name, &layers, &views)?;
        let mut mounts = self.lock_mounts();
        // With the mounts held nobody removes a layer; one may have gone before.
        for one in chain {
            self.usable(&one.layer)?;
        }
        // Where the kernel reads the file of every layer past us already, it can do so here.
        let direct = layers.iter().all(|layer| mounts.has_direct(&layer.id()));
        self.mount_chain(&file.path, &layers, direct, &place)?;
        let merged = Merged {
            layers: layers.iter().map(Layer::id).collect(),
            direct,
            unclaimed: false,
            file,
        };
        mounts.merged.insert(name, merged);
        Ok(place)
    }

    fn mount_chain(
        &self,
        image: &Path,
        layers: &[Layer],
        direct: bool,
        place: &Path,
    ) -> Result<(), MountError> {
        let device = |layer: &Layer| {
            if direct {
                layer.stored().directory().join("device")
            } else {
                device_path(self.session.path(), layer.0.slot)
            }
        };
        let devices: Vec<PathBuf> = layers.iter().map(device).collect();
        let prepared = crate::create_private(place);
        prepared.map_err(|error| MountError::Prepare {
            path: place.to_owned(),
            error,
        })?;
        let erofs = Erofs {
            image,
            devices: &devices,
            direct_reads: !direct && layers.iter().any(|layer| self.reads_directly(layer)),
        };
        apart(|| mount_erofs(erofs, place))?;
        Ok(())
    }

    /// Puts direct mounts in the place of merged ones that `layer` is part of, once every layer of them is
    /// mounted directly itself: who starts from then on needs no daemon.
    pub(super) fn renew_merged(&self, layer: &Layer) {
        let mut mounts = self.lock_mounts();
        let is_due = |merged: &Merged| {
            let layers = &merged.layers;
            !merged.direct
                && layers.contains(&layer.id())
                && layers.iter().all(|id| mounts.has_direct(id))
        };
        let due: Vec<String> = mounts
            .merged
            .iter()
            .filter(|(_, merged)| is_due(merged))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            let Some(merged) = mounts.merged.get_mut(&name) else {
                continue;
            };
            match self.renew_chain(&name, merged) {
                Ok(()) => merged.direct = true,
                // The lazy one goes on serving.
                Err(error) => tracing::info!(%error, "merged layers stay mounted lazily"),
            }
        }
    }

    fn renew_chain(&self, name: &str, merged: &Merged) -> Result<(), MergeLayersError> {
        let layers = merged.layers.iter().map(|id| self.usable(id));
        let layers: Vec<Layer> = layers.collect::<Result<_, _>>()?;
        let place = self.merged_place(name);
        // What a kill leaves of it is let go as a merged mount that nobody needs.
        let fresh = place.with_extension("renewed");
        self.mount_chain(&merged.file.path, &layers, true, &fresh)?;
        let replaced = replace(&fresh, &place);
        unmount(&fresh, Unmount::Lazy)?;
        let _ = std::fs::remove_dir(&fresh);
        Ok(replaced?)
    }

    /// A layer that may be mounted.
    pub(super) fn usable(&self, id: &LayerId) -> Result<Layer, MergeLayersError> {
        let layer = self.lock_layers().get(id).cloned();
        let layer = layer.ok_or(MergeLayersError::Gone(*id))?;
        match layer.quarantine() {
            None => Ok(layer),
            Some(reason) => Err(MountError::Quarantined { layer: *id, reason }.into()),
        }
    }

    /// The merged image in the store, made now or earlier.
    fn merged_file(
        &self,
        name: &str,
        layers: &[Layer],
        views: &[View],
    ) -> Result<MergedFile, MergeLayersError> {
        let images: Vec<_> = views.iter().map(|view| &*view.image).collect();
        let lens: Vec<u64> = images.iter().map(|image| image.tar_len()).collect();
        if let Some(file) = self.store.find_merged(name, &lens) {
            return Ok(file);
        }
        let files = images.iter().map(|image| image.inode_count()).sum();
        if files > FILES_MAX {
            return Err(MergeLayersError::TooLarge { files });
        }
        let began = std::time::Instant::now();
        let bytes = erofs::merge(&images)?;
        let digests: Vec<Digest> = layers.iter().map(|layer| layer.id().0).collect();
        let file = self.store.put_merged(name, &digests, &bytes)?;
        tracing::debug!(
            layers = layers.len(), files, bytes = bytes.len(), took = ?began.elapsed(),
            "merged the layers of an image"
        );
        Ok(file)
    }

    fn drop_merged(&self, name: &str) -> Result<(), MountFailed> {
        let mut mounts = self.lock_mounts();
        let layers = self.unmount_merged(&mut mounts, name)?;
        drop(mounts);
        self.store.remove_merged(name);
        for id in layers {
            if let Some(layer) = self.lock_layers().get(&id).cloned() {
                self.let_go(&layer);
            }
        }
        Ok(())
    }

    /// Whoever uses it goes on; the layers it was made of.
    pub(super) fn unmount_merged(
        &self,
        mounts: &mut Mounts,
        name: &str,
    ) -> Result<Vec<LayerId>, MountFailed> {
        let place = self.merged_place(name);
        match unmount(&place, Unmount::Now) {
            Err(error) if error.io_error().kind() == io::ErrorKind::ResourceBusy => {
                unmount(&place, Unmount::Lazy)?;
            }
            other => other?,
        }
        // A kill while it was renewed leaves two, one above the other.
        unmount(&place, Unmount::Lazy)?;
        // A place that stays is used again.
        let _ = std::fs::remove_dir(&place);
        let merged = mounts.merged.remove(name);
        Ok(merged.map(|merged| merged.layers).unwrap_or_default())
    }

    /// Takes the merged mounts in `table` for its own, until somebody claims them.
    pub(super) fn adopt_merged(&self, table: &[Mount], mounts: &mut Mounts) {
        let is_ours = |mount: &&Mount| mount.kind == "erofs";
        for mount in table.iter().filter(is_ours) {
            let Some(name) = name_of(&mount.target) else {
                continue;
            };
            if mount.target != self.merged_place(name) {
                continue;
            }
            let layers = self.store.merged_layers(name).unwrap_or_default();
            let merged = Merged {
                layers: layers.into_iter().map(LayerId).collect(),
                // Not known: at worst it is mounted directly once more.
                direct: false,
                unclaimed: true,
                file: self.store.merged_file(name),
            };
            mounts.merged.insert(name.to_owned(), merged);
        }
    }
}

/// Names a merged image: the same layers with the same implied directories have the same name.
fn name(chain: &[ChainLayer]) -> String {
    let mut text = Vec::new();
    for one in chain {
        text.extend(one.layer.to_string().bytes());
        text.push(b' ');
        if !one.implied.is_empty() {
            text.extend(patch_key(&one.implied).bytes());
        }
        text.push(b'\n');
    }
    Digest::of(&text).hex()
}

fn name_of(place: &Path) -> Option<&str> {
    place.file_name()?.to_str()?.strip_prefix(PREFIX)
}
