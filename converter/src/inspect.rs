//! What is known of an image without reading its layers: documents and indexes.

use larder_proto::annotation::{self, StartList};
use larder_proto::digest::Algorithm;
use larder_proto::erofs::Image;
use larder_proto::index::Index;
use larder_registry::oci::Descriptor;
use serde::Serialize;

use crate::convert::{Image as Loaded, ManifestFacts};
use crate::plan::{ManifestPlan, OPTIONS};
use crate::source::Source;
use crate::view::{ViewError, open_index};

/// An image.
#[derive(Debug, Serialize)]
pub struct ImageReport {
    /// Digest of its manifest or index.
    pub digest: String,
    /// Media type of that.
    pub media_type: String,
    /// Its manifests.
    pub manifests: Vec<ManifestDetails>,
}

/// One manifest.
#[derive(Debug, Serialize)]
pub struct ManifestDetails {
    /// What it is.
    #[serde(flatten)]
    pub facts: ManifestFacts,
    /// The options of that conversion.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    /// Why it is not an image with layers Larder can convert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other: Option<String>,
    /// Its layers, the lowest first.
    pub layers: Vec<LayerDetails>,
}

/// One layer.
#[derive(Debug, Serialize)]
pub struct LayerDetails {
    /// Digest of the blob.
    pub digest: String,
    /// Media type.
    pub media_type: String,
    /// Length of the blob, bytes.
    pub size: u64,
    /// What its index says, if it has one that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub larder: Option<IndexDetails>,
    /// What a start is expected to read of it, if the image says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartDetails>,
    /// That it is not there, and what to do: containerd keeps the layers of lazily pulled images elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<String>,
    /// Why an index it claims to have cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The index of a layer.
#[derive(Debug, Serialize)]
pub struct IndexDetails {
    /// Digest of the tar.
    pub diff_id: String,
    /// Length of the tar, bytes.
    pub tar_size: u64,
    /// Chunks.
    pub chunks: usize,
    /// Size they were cut at, bytes.
    pub chunk_size: u32,
    /// Algorithm of their digests.
    pub digest_algorithm: &'static str,
    /// Files of every kind, hard links counted once.
    pub inodes: u64,
    /// Directories that no entry of the tar describes.
    pub implied_directories: usize,
    /// Length of the stored index, bytes.
    pub index_stored_size: u64,
    /// Length of the index, bytes.
    pub index_size: u64,
}

/// What a start is expected to read of a layer.
#[derive(Debug, Serialize)]
pub struct StartDetails {
    /// Chunks.
    pub chunks: usize,
    /// Their length in the tar, bytes.
    pub bytes: u64,
    /// Bytes that are fetched for them.
    pub stored_bytes: u64,
    /// The chunks' places in the chunk table, in the order in which they are fetched.
    pub rows: Vec<u32>,
}

/// Describes an image; of each layer in Larder's form the index is read.
pub async fn inspect(source: &Source, image: &Loaded) -> ImageReport {
    let root = image.root.document();
    let mut report = ImageReport {
        digest: root.digest.to_string(),
        media_type: root.media_type.clone(),
        manifests: Vec::new(),
    };
    for node in image.manifests() {
        let mut details = ManifestDetails {
            facts: node.facts(),
            options: node.manifest.annotations.get(OPTIONS).cloned(),
            other: match node.plan {
                ManifestPlan::Copy(reason) => Some(reason.clone()),
                ManifestPlan::Layers(_) => None,
            },
            layers: Vec::new(),
        };
        for layer in &node.manifest.layers {
            let mut known = LayerDetails {
                digest: layer.digest.to_string(),
                media_type: layer.media_type.clone(),
                size: layer.size,
                larder: None,
                start: None,
                absent: None,
                problem: None,
            };
            match open_index(source, layer).await {
                Ok(None) => {}
                Ok(Some(index)) => match index_details(layer, &index) {
                    Ok(details) => {
                        known.larder = Some(details);
                        match start_details(layer, &index) {
                            Ok(start) => known.start = start,
                            Err(problem) => known.problem = Some(problem),
                        }
                    }
                    Err(problem) => known.problem = Some(problem),
                },
                Err(ViewError::Access(error)) if error.is_no_such_blob() => {
                    known.absent = Some(error.to_string());
                }
                Err(error) => known.problem = Some(error.to_string()),
            }
            details.layers.push(known);
        }
        report.manifests.push(details);
    }
    report
}

fn start_details(
    layer: &Descriptor,
    index: &Index<Vec<u8>>,
) -> Result<Option<StartDetails>, String> {
    let Some(text) = layer.annotations.get(annotation::START) else {
        return Ok(None);
    };
    let list = StartList::of_layer(text, index.chunk_count()).map_err(|error| error.to_string())?;
    let rows: Vec<_> = list.accesses().map(|access| access.chunk).collect();
    let chunks = rows.iter().filter_map(|row| index.chunk(*row as usize));
    Ok(Some(StartDetails {
        chunks: rows.len(),
        bytes: chunks.clone().map(|chunk| u64::from(chunk.len)).sum(),
        stored_bytes: chunks.map(|chunk| u64::from(chunk.stored_len)).sum(),
        rows,
    }))
}

fn index_details(layer: &Descriptor, index: &Index<Vec<u8>>) -> Result<IndexDetails, String> {
    let image = Image::open(index.metadata(), index.tar_len()).map_err(|e| e.to_string())?;
    let location = crate::plan::larder_location(layer).ok_or("it has no location")?;
    Ok(IndexDetails {
        diff_id: index.diff_id().to_string(),
        tar_size: index.tar_len(),
        chunks: index.chunk_count(),
        chunk_size: index.chunk_target(),
        digest_algorithm: match index.algorithm() {
            Algorithm::Blake3 => "blake3",
            Algorithm::Sha256 => "sha256",
        },
        inodes: image.inode_count(),
        implied_directories: index.implied().count(),
        index_stored_size: location.stored_len,
        index_size: location.len,
    })
}
