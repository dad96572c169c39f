//! Tells operators what happened in the data plane, by the names that images have for them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use larder_fuse::{Count, LayerId, Observer, SlowRead};
use larder_proto::digest::Digest;
use tokio::runtime::Handle;
use tracing::{debug, warn};

use crate::containerd::Containerd;
use crate::filter::Filter;
use crate::snapshots::namespace;
use crate::store::{Record, Store, StoreError};

/// Topic of the event that a layer was quarantined.
pub const QUARANTINE_TOPIC: &str = "/larder/quarantine";

/// CRI's name of the image a layer was pulled for.
const IMAGE_LABEL: &str = "containerd.io/snapshot/cri.image-ref";

/// How long containerd may take to accept an event.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Images named for one layer. A base image's layer is part of many; three tell which it is.
const IMAGES_TOLD_MAX: usize = 3;

/// Hears of slow reads and lying layers.
#[derive(Debug)]
pub struct Reporter {
    /// Known once the snapshots are open; nothing is served before.
    store: OnceLock<Arc<Store>>,
    containerd: Containerd,
    runtime: Handle,
    published: Arc<Published>,
}

/// Events published through containerd.
#[derive(Debug, Default)]
pub struct Published {
    done: Count,
    failed: Count,
}

impl Published {
    /// How many were accepted, and how many not.
    pub fn counts(&self) -> [(&'static str, u64); 2] {
        [
            ("published", self.done.get()),
            ("failed", self.failed.get()),
        ]
    }
}

/// An image in a namespace.
type Image = (String, String);

impl Reporter {
    /// A reporter that publishes through `containerd`, on the runtime it is made in.
    pub fn new(containerd: Containerd) -> Self {
        Self {
            store: OnceLock::new(),
            containerd,
            runtime: Handle::current(),
            published: Arc::default(),
        }
    }

    /// Where it finds out which images a layer belongs to.
    pub fn know(&self, store: Arc<Store>) {
        // The first one is the one of this process.
        let _ = self.store.set(store);
    }

    /// What it published.
    pub fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// The images that a layer was pulled for: by their names where containerd told them, else by
    /// their repositories.
    fn images(&self, layer: &Digest) -> Result<BTreeSet<Image>, StoreError> {
        let Some(store) = self.store.get() else {
            return Ok(BTreeSet::new());
        };
        let all = store.list(&Filter::default(), None, usize::MAX)?;
        let of_layer = all
            .entries
            .into_iter()
            .filter(|(_, record)| record.layer() == Some(*layer));
        let images =
            of_layer.map(|(key, record)| Ok((namespace(&key).to_owned(), image(store, &record)?)));
        images.collect()
    }
}

fn image(store: &Store, record: &Record) -> Result<String, StoreError> {
    if let Some(name) = record.labels.get(IMAGE_LABEL) {
        return Ok(name.clone());
    }
    let facts = store.layer_facts(record.id)?;
    let origin = facts.and_then(|facts| facts.origins.into_iter().next());
    let repository = origin.map(|origin| format!("{}/{}", origin.host, origin.repository));
    Ok(repository.unwrap_or_default())
}

/// The images of these names in one line.
pub(crate) fn told<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: BTreeSet<_> = names.filter(|name| !name.is_empty()).collect();
    let named = Vec::from_iter(names);
    let line = named[..named.len().min(IMAGES_TOLD_MAX)].join(", ");
    match named.len().checked_sub(IMAGES_TOLD_MAX) {
        None | Some(0) => line,
        Some(more) => format!("{line} and {more} more"),
    }
}

impl Observer for Reporter {
    fn slow_read(&self, read: &SlowRead) {
        let images = self.images(&read.layer.0).unwrap_or_else(|error| {
            debug!(%error, "the image of a slow read cannot be looked up");
            BTreeSet::new()
        });
        read.log(&told(images.iter().map(|(_, name)| name.as_str())));
    }

    fn quarantined(&self, layer: LayerId, blob: Digest, reason: &str) {
        let images = self.images(&layer.0).unwrap_or_else(|error| {
            debug!(%error, "the images of a quarantined layer cannot be looked up");
            BTreeSet::new()
        });
        for (namespace, name) in images {
            let labels = HashMap::from([
                ("layer".to_owned(), blob.to_string()),
                ("index".to_owned(), layer.to_string()),
                ("reason".to_owned(), reason.to_owned()),
            ]);
            let (containerd, published) = (self.containerd.clone(), self.published.clone());
            self.runtime.spawn(async move {
                let publish = containerd.publish(&namespace, QUARANTINE_TOPIC, &name, labels);
                let failure = match tokio::time::timeout(PUBLISH_TIMEOUT, publish).await {
                    Ok(Ok(())) => return published.done.one(),
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("containerd does not answer within {PUBLISH_TIMEOUT:?}"),
                };
                published.failed.one();
                warn!(
                    namespace,
                    image = name,
                    error = failure,
                    "a quarantine is not published"
                );
            });
        }
    }
}

#[cfg(test)]
mod tests;
