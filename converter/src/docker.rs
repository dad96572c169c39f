//! Archives of `docker save`: an image without a manifest, to which we make one.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::Path;

use larder_proto::digest::Digest;
use larder_registry::Reference;
use larder_registry::oci::{Annotations, Descriptor, Manifest, Other, media_type};
use serde::Deserialize;

use crate::decode::Encoding;
use crate::files::{ArchiveError, Files, Window};
use crate::layer::Tap;
use crate::layout::not_among;
use crate::manifest::{CONFIG_BYTES_MAX, Document};

/// Largest `manifest.json` that is read, bytes: an image of 127 layers takes 10 KB of it, so some four
/// hundred such images, saved together.
const LIST_BYTES_MAX: u64 = 4 << 20;

/// An archive that does not hold the image.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The tar is damaged.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// It is a tar of something else.
    #[error("{path} is not an archive of docker save: {reason}")]
    Malformed {
        /// The archive.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The image is not in it, or none was named and there are several.
    #[error("{path} {reason}")]
    NoSuchImage {
        /// The archive.
        path: String,
        /// What was asked for, and what there is.
        reason: String,
    },
    /// The archive's manifest speaks of a blob that is not there.
    #[error("{path} lacks blob {digest}")]
    NoSuchBlob {
        /// The archive.
        path: String,
        /// The blob.
        digest: Digest,
    },
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// An image of such an archive, as a source.
#[derive(Debug)]
pub struct DockerSource {
    path: String,
    root: Document,
    blobs: HashMap<Digest, Window>,
}

impl DockerSource {
    /// Opens the image `reference`, or the only one.
    ///
    /// Compressed layers whose names are not their digests are read once to find these.
    pub fn open(path: &Path, reference: Option<&str>) -> Result<Self, DockerError> {
        let files = Files::archive(path)?;
        let path = path.display().to_string();
        let malformed = |reason: String| DockerError::Malformed {
            path: path.clone(),
            reason,
        };
        let list = small(&files, "manifest.json", LIST_BYTES_MAX).map_err(&malformed)?;
        let list: Vec<Saved> = serde_json::from_slice(&list)
            .map_err(|error| malformed(format!("manifest.json: {error}")))?;
        let saved = choose(&list, reference).ok_or_else(|| DockerError::NoSuchImage {
            path: path.clone(),
            reason: not_among(reference, list.len(), &names(&list)),
        })?;
        let config = small(&files, &saved.config, CONFIG_BYTES_MAX).map_err(&malformed)?;
        let config = Descriptor::of(media_type::OCI_CONFIG, &config);
        let mut blobs = HashMap::new();
        let entry = |name: &str| {
            let window = files.open(name).ok().flatten();
            window.ok_or_else(|| malformed(format!("it lacks {name}")))
        };
        blobs.insert(config.digest, entry(&saved.config)?);
        let mut layers = Vec::new();
        for name in &saved.layers {
            let window = entry(name)?;
            let layer = describe(name, &window)
                .map_err(|error| malformed(format!("{name} cannot be read: {error}")))?;
            blobs.insert(layer.digest, window);
            layers.push(layer);
        }
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: Annotations::new(),
            other: Other::new(),
        };
        let bytes = serde_json::to_vec(&manifest).expect("a manifest has text keys only");
        Ok(Self {
            path,
            root: Document::new(media_type::OCI_MANIFEST, bytes),
            blobs,
        })
    }

    /// The manifest made for the image.
    pub fn root(&self) -> &Document {
        &self.root
    }

    /// One of its blobs.
    pub fn blob(&self, digest: &Digest) -> Result<Window, DockerError> {
        let missing = || DockerError::NoSuchBlob {
            path: self.path.clone(),
            digest: *digest,
        };
        self.blobs.get(digest).cloned().ok_or_else(missing)
    }
}

fn small(files: &Files, name: &str, limit: u64) -> Result<Vec<u8>, String> {
    let window = files
        .open(name)
        .map_err(|error| format!("{name}: {error}"))?;
    let window = window.ok_or_else(|| format!("it lacks {name}"))?;
    if window.len() > limit {
        return Err(format!("{name} is {} bytes long", window.len()));
    }
    let mut bytes = Vec::new();
    window
        .reader()
        .read_to_end(&mut bytes)
        .map_err(|error| format!("{name}: {error}"))?;
    Ok(bytes)
}

/// The image with this name, in its short or long form; without a name the only one.
fn choose<'a>(list: &'a [Saved], reference: Option<&str>) -> Option<&'a Saved> {
    let Some(wanted) = reference else {
        let [only] = list else { return None };
        return Some(only);
    };
    let long = |name: &str| name.parse::<Reference>().ok();
    let is_it =
        |name: &String| name == wanted || (long(name).is_some() && long(name) == long(wanted));
    list.iter()
        .find(|saved| saved.repo_tags.iter().flatten().any(is_it))
}

fn names(list: &[Saved]) -> Vec<&str> {
    let names = list
        .iter()
        .flat_map(|saved| saved.repo_tags.iter().flatten());
    names.map(String::as_str).collect()
}

/// The descriptor of a layer: its digest is its name in newer archives, else it is computed.
fn describe(name: &str, window: &Window) -> std::io::Result<Descriptor> {
    let mut head = [0; 6];
    let count = window.read_at(&mut head, 0)?;
    let kind = match Encoding::detect(&head[..count]) {
        Ok(Encoding::Gzip) => media_type::OCI_LAYER_GZIP,
        Ok(Encoding::Zstd) => media_type::OCI_LAYER_ZSTD,
        Ok(Encoding::Plain) | Err(_) => media_type::OCI_LAYER,
    };
    let named = name
        .strip_prefix("blobs/sha256/")
        .map(|hex| format!("sha256:{hex}").parse());
    let digest = match named {
        Some(Ok(digest)) => digest,
        _ => Tap::new(window.reader()).digest()?,
    };
    Ok(Descriptor::new(kind, digest, window.len()))
}
