//! What a conversion did, for people and for programs.

use serde::Serialize;

/// What became of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was converted now.
    Converted,
    /// It was converted before: it is in Larder's form already, or its result was there.
    Reused,
    /// It was copied as it is.
    Copied,
}

/// A layer of the source, and what became of it. Layers that occur several times count once.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// Digest of the source layer.
    pub source: String,
    /// Digest of its blob in the result.
    pub digest: String,
    /// What was done.
    pub action: Action,
    /// Why it was copied or how it could be reused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Length of the source's blob, bytes.
    pub size_before: u64,
    /// Length of its blob in the result, bytes.
    pub size_after: u64,
    /// Length of the tar, bytes, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tar_size: Option<u64>,
    /// Chunks it was cut into, where that was done now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<usize>,
}

/// A manifest of the source, and what became of it.
#[derive(Debug, Clone, Serialize)]
pub struct ManifestReport {
    /// Platform, for images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Digest of the source's manifest.
    pub source: String,
    /// Digest of the manifest in the result.
    pub digest: String,
    /// Digest of the config, which is the image's ID.
    pub image_id: String,
    /// Why it was copied unchanged, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copied: Option<String>,
}

/// A whole conversion.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Where the image was read from.
    pub source: String,
    /// Digest of its manifest or index.
    pub source_digest: String,
    /// Where the result was written to.
    pub destination: String,
    /// Digest of the result's manifest or index.
    pub digest: String,
    /// The manifests.
    pub manifests: Vec<ManifestReport>,
    /// The layers.
    pub layers: Vec<LayerReport>,
    /// Bytes of all layers before.
    pub size_before: u64,
    /// Bytes of all layers after.
    pub size_after: u64,
    /// Bytes sent to the destination.
    pub uploaded: u64,
    /// Referrers copied to the result.
    pub referrers: usize,
    /// What the user should know.
    pub notes: Vec<String>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// How many layers this was done with.
    pub fn count(&self, action: Action) -> usize {
        self.layers
            .iter()
            .filter(|layer| layer.action == action)
            .count()
    }
}
