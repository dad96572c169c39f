//! Proving that a converted image is what it claims to be.
//!
//! For each layer: the blob has its digest, the footer and the annotation agree, every chunk has
//! both its digests, the tar has the diffID of the config, and the tree and the cuts derived from
//! the tar are those of the index. Against an original: the same config, the same tars.

mod layer;

use std::num::NonZero;

use futures_util::StreamExt as _;
use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_proto::index::{FOOTER_FRAME_LEN, Footer};
use larder_registry::oci::{Descriptor, Manifest, media_type};
use serde::Serialize;

use crate::convert::{Image, LoadError, ManifestFacts, Node, load};
use crate::manifest::{ImageConfig, is_attestation, platform_text};
use crate::plan::{ManifestPlan, PlatformFilter, larder_location};
use crate::source::{Source, blocking};

/// Problems that are listed of one layer: a damaged blob has thousands of the same kind.
const PROBLEMS_MAX: usize = 10;

/// What a check found.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// Digest of the image's manifest or index.
    pub digest: String,
    /// What was checked.
    pub manifests: Vec<ManifestCheck>,
    /// Everything that is wrong with the image as a whole.
    pub problems: Vec<String>,
}

/// What was found about one manifest.
#[derive(Debug, Serialize)]
pub struct ManifestCheck {
    /// What it is.
    #[serde(flatten)]
    pub facts: ManifestFacts,
    /// Its layers.
    pub layers: Vec<LayerCheck>,
}

/// What was found about one layer.
#[derive(Debug, Default, Serialize)]
pub struct LayerCheck {
    /// Digest of the layer.
    pub digest: String,
    /// Whether it is in Larder's form.
    pub larder: bool,
    /// Length of its tar, bytes.
    pub tar_size: u64,
    /// Chunks that were verified.
    pub chunks: usize,
    /// Everything that is wrong with it.
    pub problems: Vec<String>,
}

impl CheckReport {
    /// Everything that is wrong.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        let layers = self.manifests.iter().flat_map(|manifest| &manifest.layers);
        self.problems
            .iter()
            .chain(layers.flat_map(|layer| &layer.problems))
    }
}

impl LayerCheck {
    fn problem(&mut self, text: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            let text = text.into();
            self.problems.push(format!("layer {}: {text}", self.digest));
        }
    }
}

/// Checks an image, and that it is the conversion of an original where one is given.
pub async fn check(
    source: &Source,
    against: Option<&Source>,
    platforms: &[PlatformFilter],
    jobs: NonZero<usize>,
) -> Result<CheckReport, LoadError> {
    let image = load(source, platforms).await?;
    let mut report = CheckReport {
        digest: image.root.document().digest.to_string(),
        manifests: Vec::new(),
        problems: Vec::new(),
    };
    for node in image.manifests() {
        let layers = match (node.plan, node.config) {
            (ManifestPlan::Layers(_), Some(config)) => {
                check_layers(source, node.manifest, config, jobs).await
            }
            _ => Vec::new(),
        };
        let facts = node.facts();
        report.manifests.push(ManifestCheck { facts, layers });
    }
    report.problems.extend(attestation_problems(&image));
    if let Some(original) = against {
        let original_image = load(original, platforms).await?;
        let problems = compare(&image, &original_image, original, jobs).await;
        report.problems.extend(problems);
    }
    Ok(report)
}

async fn check_layers(
    source: &Source,
    manifest: &Manifest,
    config: &ImageConfig,
    jobs: NonZero<usize>,
) -> Vec<LayerCheck> {
    let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    futures_util::stream::iter(layers)
        .map(|(layer, diff_id)| check_layer(source, layer, *diff_id))
        .buffered(jobs.get())
        .collect()
        .await
}

async fn check_layer(source: &Source, layer: &Descriptor, diff_id: Digest) -> LayerCheck {
    let mut found = LayerCheck {
        digest: layer.digest.to_string(),
        ..LayerCheck::default()
    };
    if media_type::layer_compression(&layer.media_type).is_none() {
        return found;
    }
    let has_annotation = layer.annotations.contains_key(annotation::INDEX)
        || layer.annotations.contains_key(annotation::LAYER);
    let location = larder_location(layer);
    if has_annotation && location.is_none() {
        found.problem("its annotations are malformed or speak of another layer");
    }
    if !has_annotation && has_footer(source, layer).await {
        found.problem(
            "its blob ends in an index that its descriptor does not name, so no node starts it \
             lazily: convert the image again",
        );
    }
    let blob = match source.blob(&layer.digest).await {
        Ok(blob) => blob,
        Err(error) => {
            found.problem(error.to_string());
            return found;
        }
    };
    let tail = match location {
        None => None,
        Some(location) => {
            let start = location.offset.min(layer.size);
            match source.range(&layer.digest, start..layer.size).await {
                Ok(tail) => Some((location, tail)),
                Err(error) => {
                    found.problem(error.to_string());
                    return found;
                }
            }
        }
    };
    let (digest, size) = (layer.digest, layer.size);
    let start = layer.annotations.get(annotation::START).cloned();
    let expected = layer::Expected {
        digest,
        size,
        diff_id,
        start,
    };
    blocking(move || match tail {
        Some((location, tail)) => layer::check_larder(blob, &expected, &location, &tail, found),
        None => layer::check_plain(blob, &expected, found),
    })
    .await
}

/// Whether a blob ends as those in Larder's form do. What cannot be read will be reported by
/// whoever reads all of it.
async fn has_footer(source: &Source, layer: &Descriptor) -> bool {
    let Some(start) = layer.size.checked_sub(FOOTER_FRAME_LEN) else {
        return false;
    };
    let footer = source.range(&layer.digest, start..layer.size).await;
    footer.is_ok_and(|footer| Footer::decode(&footer, layer.size).is_ok())
}

/// Attestations that name no manifest of the image.
fn attestation_problems(image: &Image) -> Vec<String> {
    let mut problems = Vec::new();
    for node in image.root.walk() {
        let Node::Index { index, .. } = node else {
            continue;
        };
        for entry in index.manifests.iter().filter(|entry| is_attestation(entry)) {
            let target = entry.annotations.get(crate::plan::ATTESTED);
            let known = |target: &&String| {
                index
                    .manifests
                    .iter()
                    .any(|other| other.digest.to_string() == **target)
            };
            if !target.as_ref().is_some_and(known) {
                problems.push(format!(
                    "attestation {} names no manifest of the image",
                    entry.digest
                ));
            }
        }
    }
    problems
}

/// What differs between a converted image and its original.
async fn compare(
    image: &Image,
    original: &Image,
    source: &Source,
    jobs: NonZero<usize>,
) -> Vec<String> {
    let mut problems = Vec::new();
    let has_several = original.manifests().nth(1).is_some();
    for node in original.manifests() {
        let (origin, theirs) = (node.document.digest, node.manifest);
        let ours = image.manifests().find(|ours| {
            let made_from = ours.manifest.annotations.get(annotation::SOURCE);
            ours.document.digest == origin || made_from.is_some_and(|of| *of == origin.to_string())
        });
        let Some(ours) = ours else {
            let platform = node.config.map(|config| platform_text(&config.platform));
            let what = platform.unwrap_or_else(|| "not an image".into());
            problems.push(format!(
                "nothing was made from the original's manifest {origin} ({what}){}",
                if has_several {
                    "; if --platform left it out, give the same to check"
                } else {
                    ""
                }
            ));
            continue;
        };
        if ours.document.digest == origin {
            continue;
        }
        let manifest = ours.manifest;
        if manifest.config.digest != theirs.config.digest {
            let (new, old) = (manifest.config.digest, theirs.config.digest);
            problems.push(format!("the image ID is {new}, the original's is {old}"));
        }
        if manifest.layers.len() != theirs.layers.len() {
            let (new, old) = (manifest.layers.len(), theirs.layers.len());
            problems.push(format!("there are {new} layers, the original has {old}"));
        }
        // With equal configs, both sides having the diffIDs means that their tars are equal.
        if let Some(config) = node.config {
            let checks = check_layers(source, theirs, config, jobs).await;
            let of_original = |problem: &String| format!("the original's {problem}");
            problems.extend(
                checks
                    .iter()
                    .flat_map(|check| &check.problems)
                    .map(of_original),
            );
        }
    }
    problems
}
