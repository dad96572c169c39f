//! Finds in containerd's content store what the labels of a Prepare do not say.
//!
//! While an image is pulled, its manifest and config are already there: the config's diff ids
//! chain to the snapshot that is wanted, and the labels of the manifest name the repositories it
//! came from. Reading is safe within Prepare; containerd holds no lock of its database then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use larder_proto::annotation::{self, IndexLocation};
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, Manifest};
use serde::Deserialize;

use super::{Blob, Containerd, ContentError};
use crate::store::Origin;
use larder_containerd::SOURCE_PREFIX;

/// Longest manifest or config that is read, bytes; registries accept no longer manifests.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// Manifests read for one look-up, newest first: more images than kubelet lets a node keep. Whether
/// images contradict each other is known of these.
const MANIFESTS_MAX: usize = 256;

/// Blobs read that may be manifests, newest first. A pull's own manifest is among the very newest.
const GUESSES_MAX: usize = 64;

/// Parsed manifests kept, so that the layers of one pull share the reading, and containers that are
/// started: those of one look-up, a few KB each.
const PARSED_MAX: usize = MANIFESTS_MAX;

/// containerd puts this on every manifest whose children it knows.
const CONFIG_FILTER: &str = r#"labels."containerd.io/gc.ref.content.config""#;

/// What is looked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Key<'a> {
    /// The layer that completes this chain.
    Chain(&'a str),
    /// The layer with this digest.
    Layer(&'a Digest),
}

impl Key<'_> {
    /// Whether it is this layer, which completes that chain.
    fn is(&self, (chain, layer): &(String, Descriptor)) -> bool {
        match self {
            Self::Chain(wanted) => chain == wanted,
            Self::Layer(wanted) => layer.digest == **wanted,
        }
    }
}

/// A layer of an image containerd knows.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Its descriptor in the manifest.
    pub(crate) descriptor: Descriptor,
    /// Where it can be fetched.
    pub(crate) origins: Vec<Origin>,
    /// Whether another image names another index for the same chain.
    pub(crate) is_disputed: bool,
}

/// A manifest with the chains its layers complete.
#[derive(Debug)]
pub(crate) struct Image {
    /// The manifest's digest.
    pub(crate) manifest: Digest,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<(String, Descriptor)>,
    /// The digests of their tars.
    pub(crate) diff_ids: Vec<Digest>,
}

/// The look-up, with what it remembers.
#[derive(Debug)]
pub(crate) struct Lookup {
    containerd: Containerd,
    /// Host as containerd's labels name it → host with port.
    ports: BTreeMap<String, String>,
    parsed: Mutex<VecDeque<Arc<Image>>>,
}

#[derive(Deserialize)]
struct ImageConfig {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<DiffId>,
}

/// A digest in its text form; one that is not SHA-256 makes the config unusable for us.
#[derive(Deserialize)]
#[serde(try_from = "String")]
struct DiffId(Digest);

impl TryFrom<String> for DiffId {
    type Error = larder_proto::digest::DigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl Lookup {
    pub(crate) fn new(containerd: Containerd, ports: BTreeMap<String, String>) -> Self {
        Self {
            containerd,
            ports,
            parsed: Mutex::default(),
        }
    }

    /// Every repository that some image of `namespace` with this layer came from, or the layer
    /// itself; those of the newest image first.
    pub(crate) async fn repositories(
        &self,
        namespace: &str,
        layer: &Digest,
    ) -> Result<Vec<Origin>, ContentError> {
        let mut all = self.containerd.blobs(namespace, "").await?;
        all.retain(|blob| {
            let mut labels = blob.labels.keys();
            labels.any(|label| label.starts_with(SOURCE_PREFIX))
        });
        // A layer that was unpacked in the ordinary way says itself where it came from.
        let own = all.iter().filter(|blob| blob.digest == *layer);
        let mut found: Vec<Origin> = own.flat_map(|blob| self.origins(blob)).collect();
        newest_documents(&mut all, GUESSES_MAX);
        for blob in &all {
            let Some(image) = self.image(namespace, &blob.digest).await else {
                continue;
            };
            if image.layers.iter().any(|(_, one)| one.digest == *layer) {
                found.extend(self.origins(blob));
            }
        }
        let mut seen = BTreeSet::new();
        found.retain(|origin| seen.insert((origin.host.clone(), origin.repository.clone())));
        Ok(found)
    }

    /// The newest layer that answers to `key`, one with an index if there is any.
    pub(crate) async fn find(
        &self,
        namespace: &str,
        key: Key<'_>,
    ) -> Result<Option<Found>, ContentError> {
        let marked = self.containerd.blobs(namespace, CONFIG_FILTER).await?;
        if let Some(found) = self.search(namespace, key, marked, MANIFESTS_MAX).await? {
            return Ok(Some(found));
        }
        // The mark is set only after the children were read; until then any small blob that came
        // from a registry may be the manifest.
        let mut all = self.containerd.blobs(namespace, "").await?;
        all.retain(|blob| {
            blob.labels
                .keys()
                .any(|label| label.starts_with(SOURCE_PREFIX))
        });
        self.search(namespace, key, all, GUESSES_MAX).await
    }

    /// The image of this manifest, or else the newest that answers to `key`, and where its layers can be
    /// fetched.
    pub(crate) async fn pulled(
        &self,
        namespace: &str,
        key: Key<'_>,
        manifest: Option<&Digest>,
    ) -> Result<Option<(Arc<Image>, Vec<Origin>)>, ContentError> {
        let mut blobs = self.containerd.blobs(namespace, "").await?;
        blobs.retain(|blob| {
            let mut labels = blob.labels.keys();
            labels.any(|label| label.starts_with(SOURCE_PREFIX))
        });
        let named = blobs.iter().find(|blob| Some(&blob.digest) == manifest);
        let named = named.cloned();
        newest_documents(&mut blobs, GUESSES_MAX);
        for blob in named.iter().chain(&blobs) {
            let image = self.image(namespace, &blob.digest).await;
            let has_it = |image: &Arc<Image>| image.layers.iter().any(|one| key.is(one));
            if let Some(image) = image.filter(has_it) {
                return Ok(Some((image, self.origins(blob))));
            }
        }
        Ok(None)
    }

    async fn search(
        &self,
        namespace: &str,
        key: Key<'_>,
        mut blobs: Vec<Blob>,
        most: usize,
    ) -> Result<Option<Found>, ContentError> {
        newest_documents(&mut blobs, most);
        let (mut plain, mut best): (_, Option<Found>) = (None, None);
        for blob in &blobs {
            let Some(image) = self.image(namespace, &blob.digest).await else {
                continue;
            };
            let Some((_, layer)) = image.layers.iter().find(|one| key.is(one)) else {
                continue;
            };
            let found = Found {
                descriptor: layer.clone(),
                origins: self.origins(blob),
                is_disputed: false,
            };
            if index(&found.descriptor).is_none() {
                plain = plain.or(Some(found));
                continue;
            }
            match &mut best {
                None => best = Some(found),
                Some(best) => {
                    best.is_disputed |= index(&best.descriptor) != index(&found.descriptor);
                }
            }
            if matches!(key, Key::Layer(_)) {
                break;
            }
        }
        Ok(best.or(plain))
    }

    /// The indexes that images of `namespace` name for each of `chains`; `None` among them stands for
    /// an image that names none. Newest images first, as many as are read.
    pub(crate) async fn named(
        &self,
        namespace: &str,
        chains: &BTreeSet<&str>,
    ) -> Result<BTreeMap<String, BTreeSet<Option<Digest>>>, ContentError> {
        let mut blobs = self.containerd.blobs(namespace, CONFIG_FILTER).await?;
        newest_documents(&mut blobs, MANIFESTS_MAX);
        let mut named: BTreeMap<String, BTreeSet<Option<Digest>>> = BTreeMap::new();
        for blob in &blobs {
            let Some(image) = self.image(namespace, &blob.digest).await else {
                continue;
            };
            for (chain, layer) in &image.layers {
                if chains.contains(chain.as_str()) {
                    named.entry(chain.clone()).or_default().insert(index(layer));
                }
            }
        }
        Ok(named)
    }

    /// The image a manifest describes; nothing if it is none, or its config is not there yet.
    async fn image(&self, namespace: &str, manifest: &Digest) -> Option<Arc<Image>> {
        let known = |parsed: &VecDeque<Arc<Image>>| {
            parsed
                .iter()
                .find(|image| image.manifest == *manifest)
                .cloned()
        };
        if let Some(image) = known(&self.parsed.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Some(image);
        }
        let image = Arc::new(self.parse(namespace, manifest).await?);
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        parsed.truncate(PARSED_MAX - 1);
        parsed.push_front(Arc::clone(&image));
        Some(image)
    }

    async fn parse(&self, namespace: &str, digest: &Digest) -> Option<Image> {
        let read = |digest: Digest| async move {
            let read = self
                .containerd
                .read(namespace, &digest, DOCUMENT_BYTES_MAX)
                .await;
            read.inspect_err(|error| tracing::debug!(%digest, %error, "skipped in look-up"))
                .ok()
        };
        let manifest = Manifest::parse(&read(*digest).await?).ok()?;
        let config = read(manifest.config.digest).await?;
        let config: ImageConfig = serde_json::from_slice(&config).ok()?;
        let diffs: Vec<Digest> = config.rootfs.diff_ids.into_iter().map(|id| id.0).collect();
        if diffs.len() != manifest.layers.len() {
            return None;
        }
        let layers = chain_ids(&diffs).into_iter().zip(manifest.layers).collect();
        Some(Image {
            manifest: *digest,
            layers,
            diff_ids: diffs,
        })
    }

    fn origins(&self, blob: &Blob) -> Vec<Origin> {
        let mut origins: Vec<Origin> = Vec::new();
        for (label, repositories) in &blob.labels {
            let Some(host) = label.strip_prefix(SOURCE_PREFIX) else {
                continue;
            };
            let host = self.ports.get(host).map_or(host, String::as_str);
            origins.extend(repositories.split(',').map(|repository| Origin {
                host: host.to_owned(),
                repository: repository.trim().to_owned(),
                plain_http: false,
            }));
        }
        origins.sort_by(|a, b| (&a.host, &a.repository).cmp(&(&b.host, &b.repository)));
        origins
    }
}

/// Digest of the index that a layer's annotation names; one that cannot be read names none.
fn index(layer: &Descriptor) -> Option<Digest> {
    let location = layer.annotations.get(annotation::INDEX)?;
    Some(location.parse::<IndexLocation>().ok()?.digest)
}

/// Leaves those that may be manifests, the newest first, and not more than are worth reading.
fn newest_documents(blobs: &mut Vec<Blob>, most: usize) {
    blobs.retain(|blob| blob.len <= DOCUMENT_BYTES_MAX);
    blobs.sort_by_key(|blob| std::cmp::Reverse(blob.created));
    blobs.truncate(most);
}

/// The chain id after each layer, lowest first.
pub fn chain_ids(diffs: &[Digest]) -> Vec<String> {
    let mut chains: Vec<String> = Vec::with_capacity(diffs.len());
    for diff in diffs {
        chains.push(chain_id(chains.last().map(String::as_str), diff));
    }
    chains
}

/// The chain id of a layer on top of the chain `below`, or of the lowest layer.
pub(crate) fn chain_id(below: Option<&str>, diff: &Digest) -> String {
    match below {
        None => diff.to_string(),
        Some(below) => Digest::of(format!("{below} {diff}").as_bytes()).to_string(),
    }
}
