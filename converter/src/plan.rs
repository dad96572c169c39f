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
    /// Without one, every variant is meant; the plainest one is empty.
    variant: Option<String>,
    /// As it was written.
    text: String,
}

impl std::str::FromStr for PlatformFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/').map(str::to_lowercase);
        let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
        match (os, architecture, variant, parts.next()) {
            (Some(os), Some(architecture), variant, None)
                if !os.is_empty() && !architecture.is_empty() =>
            {
                // Two names of Linux say which variant they mean.
                let says = variant.is_some() || matches!(&*architecture, "armhf" | "armel");
                let named = variant.as_deref().unwrap_or_default();
                let (architecture, variant) = normalised(&architecture, named);
                Ok(Self {
                    os,
                    architecture,
                    variant: says.then_some(variant),
                    text: text.to_owned(),
                })
            }
            _ => Err(format!(
                "{text:?} is not OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT"
            )),
        }
    }
}

/// Architecture and variant as containerd's `platforms` writes them: Go's names for what Linux calls its
/// architectures, and no variant where it is the plainest one.
fn normalised(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("i386" | "i686", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "" | "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", other) => ("amd64", other),
        ("aarch64" | "arm64", "" | "8" | "v8") => ("arm64", ""),
        ("aarch64", other) => ("arm64", other),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

impl std::fmt::Display for PlatformFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl PlatformFilter {
    /// Whether the filter lets a platform through; without a variant it lets every one through.
    pub fn admits(&self, platform: &Platform) -> bool {
        let variant = platform.variant.as_deref().unwrap_or_default();
        let (architecture, variant) = normalised(&platform.architecture, variant);
        self.os == platform.os
            && self.architecture == architecture
            && self
                .variant
                .as_ref()
                .is_none_or(|wanted| *wanted == variant)
    }
}
