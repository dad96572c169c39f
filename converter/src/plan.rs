//! What is to happen with each part of an image: pure functions from documents to documents.

mod rewrite;
#[cfg(test)]
mod tests;

use larder_proto::annotation::{self, IndexLocation};
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, Manifest, Platform, media_type};

use crate::manifest::ImageConfig;

pub use rewrite::{Replacement, rewrite_index, rewrite_manifest};

/// Key of the manifest annotation that records the options of the conversion, so that a second
/// conversion without a local cache knows whether its result is already there.
pub const OPTIONS: &str = "io.larder.options";

/// Key of the descriptor annotation that names the manifest an attestation speaks of.
pub const ATTESTED: &str = "vnd.docker.reference.digest";

/// What is to happen with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestPlan {
    /// It is copied byte for byte, for this reason.
    Copy(String),
    /// Each of its layers goes its own way.
    Layers(Vec<LayerPlan>),
}

/// What is to happen with a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerPlan {
    /// It becomes a layer in Larder's form.
    Convert {
        /// Digest of its tar, from the config.
        diff_id: Digest,
    },
    /// Its descriptor says that it is one already; that is to be verified.
    Reuse {
        /// Where its index is.
        location: IndexLocation,
        /// Digest of its tar, from the config.
        diff_id: Digest,
    },
    /// It is copied, for this reason.
    Copy(String),
}

/// A config that does not fit its manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image's config lists {diff_ids} diffIDs for {layers} layers")]
pub struct PlanError {
    diff_ids: usize,
    layers: usize,
}

/// Whether a manifest is an image at all, by its config's type; `Err` says what it is instead.
///
/// Only an image's config is worth reading.
pub fn is_image(manifest: &Manifest) -> Result<(), String> {
    let config = &manifest.config.media_type;
    match manifest.artifact_type.as_deref() {
        Some(kind) if !kind.is_empty() => Err(format!("it is an artifact of type {kind}")),
        _ if media_type::is_config(config) => Ok(()),
        _ => Err(format!(
            "it is not an image, its config is of type {config:?}"
        )),
    }
}

/// Decides about an image manifest and its layers.
pub fn plan_manifest(manifest: &Manifest, config: &ImageConfig) -> Result<ManifestPlan, PlanError> {
    if !matches!(config.platform.os.as_str(), "linux" | "") {
        return Ok(ManifestPlan::Copy(format!(
            "its operating system is {}",
            config.platform.os
        )));
    }
    if manifest.layers.is_empty() {
        return Ok(ManifestPlan::Copy("it has no layers".into()));
    }
    if !manifest
        .layers
        .iter()
        .any(|layer| is_tar(&layer.media_type))
    {
        let kind = &manifest.layers[0].media_type;
        return Ok(ManifestPlan::Copy(format!(
            "its layers are of type {kind:?}"
        )));
    }
    let diff_ids = &config.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() {
        return Err(PlanError {
            diff_ids: diff_ids.len(),
            layers: manifest.layers.len(),
        });
    }
    let layers = manifest.layers.iter().zip(diff_ids);
    Ok(ManifestPlan::Layers(
        layers
            .map(|(layer, diff_id)| plan_layer(layer, *diff_id))
            .collect(),
    ))
}

fn is_tar(kind: &str) -> bool {
    media_type::layer_compression(kind).is_some()
}

fn plan_layer(layer: &Descriptor, diff_id: Digest) -> LayerPlan {
    if media_type::is_foreign_layer(&layer.media_type) {
        return LayerPlan::Copy("it is not distributable, and stays where its URLs say".into());
    }
    if !is_tar(&layer.media_type) {
        return LayerPlan::Copy(format!("its type is {:?}", layer.media_type));
    }
    match larder_location(layer) {
        Some(location) => LayerPlan::Reuse { location, diff_id },
        None => LayerPlan::Convert { diff_id },
    }
}

/// Where a layer's index is, if its annotations say that it is in Larder's form.
pub fn larder_location(layer: &Descriptor) -> Option<IndexLocation> {
    let own = layer.annotations.get(annotation::LAYER)?;
    let location = layer.annotations.get(annotation::INDEX)?.parse().ok()?;
    (*own == layer.digest.to_string()).then_some(location)
}

/// A platform as the command line has it: `OS/ARCHITECTURE[/VARIANT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformFilter {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl std::str::FromStr for PlatformFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/').map(str::to_owned);
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        match (os, architecture, variant, parts.next()) {
            (Some(os), Some(architecture), variant, None)
                if !os.is_empty() && !architecture.is_empty() =>
            {
                let (architecture, implied) = normalised(architecture);
                Ok(Self {
                    os,
                    architecture,
                    variant: variant.or(implied),
                })
            }
            _ => Err(format!(
                "{text:?} is not OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT"
            )),
        }
    }
}

/// The names of Go for what Linux calls its architectures, as containerd's `platforms` has them.
fn normalised(architecture: String) -> (String, Option<String>) {
    match architecture.as_str() {
        "x86_64" | "x86-64" => ("amd64".into(), None),
        "aarch64" => ("arm64".into(), None),
        "armhf" => ("arm".into(), Some("v7".into())),
        "armel" => ("arm".into(), Some("v6".into())),
        "i386" | "i686" => ("386".into(), None),
        _ => (architecture, None),
    }
}

impl std::fmt::Display for PlatformFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl PlatformFilter {
    /// Whether the filter lets a platform through; without a variant it lets every one through.
    pub fn admits(&self, platform: &Platform) -> bool {
        self.os == platform.os
            && self.architecture == platform.architecture
            && (self.variant.is_none() || self.variant == platform.variant)
    }
}
