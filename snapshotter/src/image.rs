//! An image as a registry has it: the manifest for this machine, and its config.

use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, ImageIndex, Manifest as Parsed, media_type};
use larder_registry::{MANIFEST_BYTES_MAX, Manifest, Reference, RegistryError, Repository};
use serde::Deserialize;

/// Layers an image may have: overlayfs takes no more lower directories (`OVL_MAX_STACK`).
const LAYERS_MAX: usize = 500;

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The registry did not deliver.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A document is not what it says.
    #[error("{what} of {image} cannot be read: {source}")]
    Document {
        /// Which document.
        what: &'static str,
        /// The image.
        image: String,
        /// Where it is wrong.
        source: serde_json::Error,
    },
    /// The index has no manifest for this machine.
    #[error("{image} has no manifest for linux/{architecture}")]
    Platform {
        /// The image.
        image: String,
        /// In OCI's words.
        architecture: &'static str,
    },
    /// No kernel mounts it.
    #[error("{image} has {layers} layers, and the kernel mounts at most {LAYERS_MAX}")]
    TooManyLayers {
        /// The image.
        image: String,
        /// Layers of the manifest.
        layers: usize,
    },
    /// The config does not fit the manifest.
    #[error("{image} has {layers} layers and {diff_ids} diff ids")]
    Layers {
        /// The image.
        image: String,
        /// Layers of the manifest.
        layers: usize,
        /// Diff ids of the config.
        diff_ids: usize,
    },
}

/// An image for this machine.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the reference names: an index, or the manifest itself.
    pub target: Manifest,
    /// The manifest for this machine.
    pub manifest: Manifest,
    /// The same, parsed.
    pub parsed: Parsed,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// Digests of the layers' tars, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

impl Image {
    /// Fetches manifest and config.
    pub async fn resolve(repository: &Repository, image: &Reference) -> Result<Self, ImageError> {
        let name = image.to_string();
        let target = repository.manifest(&image.identifier()).await?;
        let manifest = if media_type::is_index(&target.media_type) {
            let index = ImageIndex::parse(&target.bytes);
            let index = index.map_err(|error| unreadable("the index", &name, error))?;
            repository
                .manifest(&for_this_machine(&index, &name)?.to_string())
                .await?
        } else {
            target.clone()
        };
        let parsed = Parsed::parse(&manifest.bytes)
            .map_err(|error| unreadable("the manifest", &name, error))?;
        if parsed.layers.len() > LAYERS_MAX {
            let layers = parsed.layers.len();
            return Err(ImageError::TooManyLayers {
                image: name,
                layers,
            });
        }
        let config = repository
            .blob_bytes(&parsed.config.digest, MANIFEST_BYTES_MAX)
            .await?;
        let read: Config = serde_json::from_slice(&config)
            .map_err(|error| unreadable("the config", &name, error))?;
        let diff_ids = read.rootfs.diff_ids.iter().map(|id| id.parse());
        let diff_ids: Vec<Digest> = diff_ids.collect::<Result<_, _>>().unwrap_or_default();
        if diff_ids.len() != parsed.layers.len() {
            let (layers, diff_ids) = (parsed.layers.len(), diff_ids.len());
            return Err(ImageError::Layers {
                image: name,
                layers,
                diff_ids,
            });
        }
        Ok(Self {
            target,
            manifest,
            parsed,
            config: config.to_vec(),
            diff_ids,
        })
    }
}

fn unreadable(what: &'static str, image: &str, source: serde_json::Error) -> ImageError {
    ImageError::Document {
        what,
        image: image.to_owned(),
        source,
    }
}

fn for_this_machine(index: &ImageIndex, image: &str) -> Result<Digest, ImageError> {
    let fits = |platform: &larder_registry::oci::Platform| {
        platform.os == "linux" && platform.architecture == architecture()
    };
    let mut fitting = index
        .manifests
        .iter()
        .filter(|entry| entry.platform.as_ref().is_some_and(fits));
    // One for newer processors need not run here, wherever it stands in the list.
    let is_plain = |entry: &&Descriptor| {
        let variant = entry
            .platform
            .as_ref()
            .and_then(|one| one.variant.as_deref());
        matches!(variant, None | Some("" | "v1" | "v8"))
    };
    let first = fitting.clone().next();
    let found = fitting.find(is_plain).or(first);
    let refuse = || ImageError::Platform {
        image: image.to_owned(),
        architecture: architecture(),
    };
    Ok(found.ok_or_else(refuse)?.digest)
}

/// This machine in OCI's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}
