//! Images mounted by hand: the root file system, read-only and lazy, without containerd.

mod names;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_fuse::create_private;
use larder_fuse::mount::{
    Mount, MountFailed, Overlay, Unmount, clear_left, mount_overlay, mounts, refuse_foreign,
    unmount,
};
use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;
use larder_registry::{Reference, ReferenceError};
use tokio::sync::{Mutex, watch};

use crate::image::{Image, ImageError};
use crate::lazy::{Parent, implied};
use crate::plane::{Plane, PlaneError, Wanted, start_list};
use crate::profiles::Profiles;
use crate::registries::Registries;
use crate::store::Origin;

pub use names::ImageNames;

/// The directory of mounted images below the root.
const IMAGES: &str = "images";

/// An image that could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountImageError {
    /// An overlay of nothing does not exist.
    #[error("{0} has no layers, so there is nothing to mount")]
    NoLayers(String),
    /// The reference is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// Manifest or config could not be had.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A layer without index.
    #[error(
        "layer {0} has no index: convert the image with `larder convert`; if that copied the \
         layer for a reason, it cannot be mounted without unpacking"
    )]
    NotConverted(Digest),
    /// An index annotation that cannot be read.
    #[error(transparent)]
    Location(#[from] annotation::LocationError),
    /// The index of a layer is of another tar than the one the config names.
    #[error(
        "layer {layer} is not the one the image's config names: its index is of a tar with digest \
         {found}, the config says {expected}"
    )]
    Foreign {
        /// The layer.
        layer: Digest,
        /// Its diffID, by the index's account.
        found: Digest,
        /// The same, by the config's.
        expected: Digest,
    },
    /// The data plane refused.
    #[error(transparent)]
    Plane(#[from] PlaneError),
    /// The overlay could not be mounted, or anything unmounted.
    #[error(transparent)]
    Mount(#[from] MountFailed),
    /// A directory could not be made or read.
    #[error("use {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Something of ours is mounted there.
    #[error("{0} has an image mounted already")]
    Taken(PathBuf),
    /// Nothing of ours is mounted there.
    #[error("no image is mounted at {0} by the process that owns this root")]
    Absent(PathBuf),
    /// This process mounts nothing any more.
    #[error("the process that owns this root is ending: try again")]
    Ending,
}

/// One mounted image.
#[derive(Debug, Clone)]
struct Mounted {
    reference: String,
    /// The indexes of its layers.
    indexes: Vec<Digest>,
    /// Where its layers are, lowest first. The only layer of an image is the target itself: an
    /// overlay would look for its own attributes on every file.
    layers: Vec<PathBuf>,
    /// Whether an overlay of them is at the target.
    stacked: bool,
    directory: PathBuf,
    /// Where changes go, and the kernel's own directory beside it, if the image can be written to.
    changes: Option<(PathBuf, PathBuf)>,
    /// What is to be seen at the target, once it is.
    shown: Option<Mount>,
}

/// Mounts images on a data plane.
#[derive(Debug)]
pub struct Mounter {
    plane: Arc<dyn Plane>,
    registries: Registries,
    /// Of the data plane, by its canonical path.
    root: PathBuf,
    next: AtomicU64,
    mounted: Mutex<Images>,
    count: watch::Sender<usize>,
    /// Whether this process ends: who waits for a registry waits no longer.
    ending: watch::Sender<bool>,
    profiles: Arc<Profiles>,
    names: Arc<ImageNames>,
}

/// What is mounted, by its place.
#[derive(Debug, Default)]
struct Images {
    at: BTreeMap<PathBuf, Mounted>,
    /// Nothing is mounted from here on.
    is_closed: bool,
}

impl Mounter {
    /// Mounts below `root`, which `plane` has locked. What a former process left there is gone. With `learns`,
    /// what is read of an image is fetched ahead the next time.
    pub fn new(
        plane: Arc<dyn Plane>,
        registries: Registries,
        root: &Path,
        learns: bool,
    ) -> Result<Self, MountImageError> {
        let failed = |path: &Path, source| MountImageError::Directory {
            path: path.to_owned(),
            source,
        };
        let root = root.canonicalize().map_err(|error| failed(root, error))?;
        let images = root.join(IMAGES);
        match fs::remove_dir_all(&images) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed(&images, error));
            }
            _ => {}
        }
        let (count, _) = watch::channel(0);
        let (next, mounted) = (AtomicU64::new(1), Mutex::default());
        let profiles = Profiles::new(Arc::clone(&plane), &root, learns);
        Ok(Self {
            plane,
            registries,
            root,
            next,
            mounted,
            count,
            ending: watch::Sender::new(false),
            profiles,
            names: Arc::default(),
        })
    }

    /// Has `names` know what is mounted.
    #[must_use]
    pub fn naming(mut self, names: Arc<ImageNames>) -> Self {
        self.names = names;
        self
    }

    /// Mounts nothing from here on: what waits for a registry fails.
    pub fn end(&self) {
        self.ending.send_replace(true);
    }

    /// What comes of `waiting`, unless this process ends before.
    async fn unless_ending<T, E>(
        &self,
        waiting: impl Future<Output = Result<T, E>>,
    ) -> Result<T, MountImageError>
    where
        MountImageError: From<E>,
    {
        let mut ending = self.ending.subscribe();
        tokio::select! {
            biased;
            _ = ending.wait_for(|is_ending| *is_ending) => Err(MountImageError::Ending),
            done = waiting => Ok(done?),
        }
    }

    fn changed(&self, mounted: &Images) {
        let images = mounted.at.values();
        self.names
            .are(images.map(|image| (image.reference.as_str(), &image.indexes[..])));
        self.count.send_replace(mounted.at.len());
    }

    /// The number of mounted images, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// The data plane.
    pub fn plane(&self) -> &Arc<dyn Plane> {
        &self.plane
    }

    /// What starts are known to read.
    pub fn profiles(&self) -> &Arc<Profiles> {
        &self.profiles
    }

    /// References and places of all mounted images.
    pub async fn list(&self) -> Vec<(String, PathBuf)> {
        let mounted = self.mounted.lock().await;
        mounted
            .at
            .iter()
            .map(|(target, image)| (image.reference.clone(), target.clone()))
            .collect()
    }

    /// Mounts `reference` at `target`, an existing directory. Returns the digest of the manifest
    /// and the number of layers.
    pub async fn mount(
        &self,
        reference: &str,
        target: &Path,
        plain_http: bool,
    ) -> Result<(Digest, usize), MountImageError> {
        self.mount_with(reference, target, plain_http, None).await
    }

    /// The same; with `changes`, an empty directory for them and one for the kernel on the same file system,
    /// it can be written to.
    pub async fn mount_with(
        &self,
        reference: &str,
        target: &Path,
        plain_http: bool,
        changes: Option<(PathBuf, PathBuf)>,
    ) -> Result<(Digest, usize), MountImageError> {
        let image: Reference = reference.parse()?;
        let repository = self.registries.repository(&image, plain_http);
        let resolving = Image::resolve(&repository, &image);
        let resolved = self.unless_ending(resolving).await?;
        let origin = Origin {
            host: image.registry().to_owned(),
            repository: image.repository().to_owned(),
            plain_http,
        };
        let layers = &resolved.parsed.layers;
        if layers.is_empty() {
            return Err(MountImageError::NoLayers(image.to_string()));
        }
        let wanted = layers.iter().map(|layer| wanted(layer, &origin));
        let wanted: Vec<Wanted> = wanted.collect::<Result<_, _>>()?;
        let mut mounted = self.mounted.lock().await;
        if mounted.is_closed {
            return Err(MountImageError::Ending);
        }
        if mounted.at.contains_key(target) {
            return Err(MountImageError::Taken(target.to_owned()));
        }
        let directory = self
            .root
            .join(IMAGES)
            .join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let mut made = Mounted {
            reference: image.to_string(),
            indexes: wanted.iter().map(|layer| layer.index.digest).collect(),
            layers: Vec::new(),
            stacked: wanted.len() != 1 || changes.is_some(),
            directory,
            changes,
            shown: None,
        };
        let stacked = async {
            let adding = self.add(&wanted, &resolved.diff_ids);
            self.unless_ending(adding).await?;
            for layer in &wanted {
                self.profiles.layer_added(layer, &made.reference);
            }
            self.profiles.starting(&made.reference, &made.indexes);
            self.clear(&mounted, target)?;
            self.stack(&wanted, target, &mut made).await
        };
        if let Err(error) = stacked.await {
            drop(self.tear_down(&made).await);
            return Err(error);
        }
        let table = mounts().unwrap_or_default();
        let there = table.into_iter().rfind(|mount| mount.target == target);
        made.shown = there;
        mounted.at.insert(target.to_owned(), made);
        self.changed(&mounted);
        Ok((resolved.manifest.digest, wanted.len()))
    }

    /// Fetches all indexes, and checks that each is of the tar that the config names.
    async fn add(&self, wanted: &[Wanted], diff_ids: &[Digest]) -> Result<(), MountImageError> {
        let adding = wanted.iter().map(|layer| self.plane.add(layer));
        futures_util::future::try_join_all(adding).await?;
        for (layer, expected) in wanted.iter().zip(diff_ids) {
            let found = self.plane.diff_id(&layer.index.digest);
            let found =
                found.ok_or_else(|| PlaneError::Failed("the store lost an index".to_owned()))?;
            if found != *expected {
                return Err(MountImageError::Foreign {
                    layer: layer.blob,
                    found,
                    expected: *expected,
                });
            }
        }
        Ok(())
    }

    async fn stack(
        &self,
        wanted: &[Wanted],
        target: &Path,
        made: &mut Mounted,
    ) -> Result<(), MountImageError> {
        let mut parents: Vec<Parent> = Vec::new();
        let mut places: Vec<(Digest, PathBuf)> = Vec::new();
        for (number, layer) in wanted.iter().enumerate() {
            let index = layer.index.digest;
            let paths = self.plane.implied(&index);
            let place = if made.stacked {
                made.directory.join(number.to_string())
            } else {
                target.to_owned()
            };
            let failed = |source| MountImageError::Directory {
                path: place.clone(),
                source,
            };
            let entries = implied::implied(self.plane.as_ref(), &paths, &parents);
            let entries = entries.map_err(failed)?;
            create_private(&place).map_err(failed)?;
            self.plane.mount(&index, &place, &entries).await?;
            made.layers.push(place.clone());
            // overlayfs refuses the same file system twice; the upper one hides the lower.
            places.retain(|(below, _)| *below != index);
            places.push((index, place));
            parents.insert(
                0,
                Parent::Layer {
                    index,
                    implied: entries,
                },
            );
        }
        if !made.stacked {
            return Ok(());
        }
        let lower: Vec<PathBuf> = places.into_iter().rev().map(|(_, place)| place).collect();
        self.show(lower, target, made).await
    }

    /// Makes the stack visible at `target`.
    async fn show(
        &self,
        mut lower: Vec<PathBuf>,
        target: &Path,
        made: &Mounted,
    ) -> Result<(), MountImageError> {
        // A read-only overlay needs two layers: an empty directory is the other one.
        let empty = made.directory.join("empty");
        let failed = |source| MountImageError::Directory {
            path: empty.clone(),
            source,
        };
        create_private(&empty).map_err(failed)?;
        lower.push(empty.clone());
        let upper = made.changes.clone();
        let overlay = Overlay { lower, upper };
        let target = target.to_owned();
        let mounting = tokio::task::spawn_blocking(move || mount_overlay(&overlay, &target));
        let mounted = mounting
            .await
            .map_err(|error| PlaneError::Failed(error.to_string()))?;
        Ok(mounted?)
    }

    /// Undoes [`Mounter::mount`].
    pub async fn unmount(&self, target: &Path) -> Result<(), MountImageError> {
        let mut mounted = self.mounted.lock().await;
        let Some(image) = mounted.at.get(target).cloned() else {
            return Err(MountImageError::Absent(target.to_owned()));
        };
        // Whoever mounted something else over it unmounts that first.
        refuse_foreign(target, &self.root)?;
        if image.stacked {
            unmount(target, Unmount::Lazy)?;
        }
        mounted.at.remove(target);
        let torn = self.tear_down(&image).await;
        self.changed(&mounted);
        torn?;
        Ok(self.clear(&mounted, target)?)
    }

    /// Takes away what owners of this root that are gone left at `target`: nobody would unmount it once
    /// something else lies on it. What is seen there of an image of this process stays.
    fn clear(&self, mounted: &Images, target: &Path) -> Result<(), MountFailed> {
        // There are its parts, and the next start clears away what is left of them.
        if target.starts_with(&self.root) {
            return Ok(());
        }
        let shown: Vec<_> = mounted.at.values().flat_map(|image| &image.shown).collect();
        let lives = |table: &[Mount], there: &Mount| {
            let parts = table
                .iter()
                .filter(|one| one.target.starts_with(&self.root));
            let mut ours = parts.chain(shown.iter().copied());
            ours.any(|one| one.device == there.device)
        };
        let taken = clear_left(target, &self.root, lives)?;
        if taken > 0 {
            tracing::info!(place = %target.display(), taken, "unmounted what an owner before left");
        }
        Ok(())
    }

    /// Lets go of images that somebody else unmounted, by `umount(8)`: what is to be seen nowhere any more, not
    /// as much as bound somewhere else.
    pub async fn forget_unmounted(&self) {
        let mut mounted = self.mounted.lock().await;
        // A table that cannot be read says nothing.
        let Ok(table) = mounts() else { return };
        let outside = table
            .iter()
            .filter(|mount| !mount.target.starts_with(&self.root));
        let is_gone = |(_, image): &(&PathBuf, &Mounted)| {
            let shown = image.shown.as_ref();
            shown.is_some_and(|shown| !outside.clone().any(|mount| is_same(mount, shown)))
        };
        let gone = mounted.at.iter().filter(is_gone);
        let gone: Vec<_> = gone.map(|(target, _)| target.clone()).collect();
        for target in gone {
            let Some(image) = mounted.at.remove(&target) else {
                continue;
            };
            tracing::info!(place = %target.display(), "the image was unmounted by somebody else");
            if let Err(error) = self.tear_down(&image).await {
                tracing::warn!(place = %target.display(), %error, "cannot unmount its layers");
            }
            self.changed(&mounted);
        }
    }

    /// Mounts nothing any more, if nothing is mounted now; says whether.
    pub async fn close_if_empty(&self) -> bool {
        let mut mounted = self.mounted.lock().await;
        mounted.is_closed |= mounted.at.is_empty();
        mounted.is_closed
    }

    /// Unmounts everything, and mounts nothing any more.
    pub async fn unmount_all(&self) {
        self.end();
        self.mounted.lock().await.is_closed = true;
        for (_, target) in self.list().await {
            if let Err(error) = self.unmount(&target).await {
                tracing::warn!(place = %target.display(), %error, "cannot unmount");
            }
        }
    }

    async fn tear_down(&self, image: &Mounted) -> Result<(), MountImageError> {
        for place in &image.layers {
            self.plane.unmount(place).await?;
        }
        let path = image.directory.clone();
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(MountImageError::Directory { path, source })
            }
            _ => Ok(()),
        }
    }
}

/// Whether two places show the same. Numbers of file systems are used again, so what they are made of counts,
/// too.
fn is_same(one: &Mount, other: &Mount) -> bool {
    (&one.device, &one.root, &one.kind) == (&other.device, &other.root, &other.kind)
        && (&one.source, &one.layers) == (&other.source, &other.layers)
}

fn wanted(layer: &Descriptor, origin: &Origin) -> Result<Wanted, MountImageError> {
    let location = layer.annotations.get(annotation::INDEX);
    let location = location.ok_or(MountImageError::NotConverted(layer.digest))?;
    let start = layer.annotations.get(annotation::START);
    Ok(Wanted {
        blob: layer.digest,
        index: location.parse()?,
        origins: vec![origin.clone()],
        namespace: String::new(),
        start: start_list(&layer.digest, start.map(String::as_str)),
    })
}

#[cfg(test)]
mod tests;
