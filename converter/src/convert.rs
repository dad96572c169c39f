//! Converting an image: read the documents, convert the layers, then push, the name last.
//!
//! ```text
//! load ─▶ layers (convert | reuse | copy, several at once) ─▶ other blobs ─▶ documents ─▶ push
//! ```
//!
//! Nothing is pushed before everything has been read and verified, so bad input leaves the
//! destination as it was. Blobs wait in nameless files.

mod blobs;
mod earlier;
mod layers;
mod load;
mod referrers;
mod starts;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Instant;

use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;

pub use load::{Image, LoadError, ManifestFacts, ManifestNode, Node, load};
pub use referrers::Referrers;
pub use starts::StartLists;
pub(crate) use starts::Texts;

use crate::access::{Access, AccessError};
use crate::cache::Cache;
use crate::destination::Destination;
use crate::layer::{Cancel, LayerError, LayerOptions, Workers};
use crate::location::Location;
use crate::manifest::{Document, platform_text};
use crate::plan::{ManifestPlan, PlatformFilter, rewrite_index, rewrite_manifest};
use crate::progress::{Event, Progress};
use crate::report::{ManifestReport, Report};
use crate::source::Source;
use layers::LayerResults;
use referrers::Prepared;
use starts::Starts;

/// What is to be converted, to where and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image.
    pub source: Location,
    /// Where the result shall be.
    pub destination: Location,
    /// The platforms to take; none means all.
    pub platforms: Vec<PlatformFilter>,
    /// What decides the bytes of the layers.
    pub options: LayerOptions,
    /// Threads that compress.
    pub jobs: NonZero<usize>,
    /// What to do with what refers to the image.
    pub referrers: Referrers,
    /// Whether what an earlier conversion left at the destination may be used again.
    pub reuse: bool,
    /// What is remembered of earlier conversions.
    pub cache: Cache,
    /// Where the lists of what a start reads come from.
    pub start: StartLists,
}

/// A conversion that failed. The destination's name is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// Source or destination cannot be reached, or a document is malformed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The documents do not make an image.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A layer or another blob is bad, or cannot be written.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The profile is of other layers.
    #[error(
        "the profile (of {0:?}) has no layer of this image as it is converted: record one of the converted image, \
         with these options"
    )]
    Profile(String),
    /// No threads, or no file for a blob.
    #[error("cannot {doing}: {error}")]
    Local {
        /// What was attempted.
        doing: String,
        /// What the system said.
        error: std::io::Error,
    },
}

/// What all stages of one conversion share.
pub(crate) struct Conversion {
    pub(crate) source: Source,
    pub(crate) destination: Destination,
    pub(crate) access: Access,
    pub(crate) cache: Cache,
    pub(crate) workers: Arc<Workers>,
    pub(crate) progress: Arc<dyn Progress>,
    pub(crate) cancel: Cancel,
    /// Whether layers that are in Larder's form already stay as they are.
    pub(crate) reuse: bool,
}

/// Stops the threads of a conversion whose future is dropped.
struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Converts an image.
///
/// Dropping the future stops the conversion; the destination's name then is as it was.
pub async fn convert(
    request: &Request,
    access: &Access,
    progress: Arc<dyn Progress>,
) -> Result<Report, ConvertError> {
    let begun = Instant::now();
    let cancel = Cancel::default();
    let _guard = CancelOnDrop(cancel.clone());
    let workers =
        Workers::start(request.options, request.jobs).map_err(|error| ConvertError::Local {
            doing: "start threads".into(),
            error,
        })?;
    let conversion = Conversion {
        source: Source::open(&request.source, access).await?,
        destination: Destination::open(&request.destination, access).await?,
        access: access.clone(),
        cache: request.cache.clone(),
        workers: Arc::new(workers),
        progress,
        cancel,
        reuse: request.reuse,
    };
    let report = run(&conversion, request).await?;
    Ok(Report {
        seconds: begun.elapsed().as_secs_f64(),
        ..report
    })
}

async fn run(conversion: &Conversion, request: &Request) -> Result<Report, ConvertError> {
    let Conversion {
        source,
        destination,
        access,
        progress,
        ..
    } = conversion;
    let mut notes = Vec::new();
    let image = load(source, &request.platforms).await?;
    notes.extend(image.absent.iter().map(|digest| {
        let from = source.location();
        format!("attestation {digest} is left out: {from} was pulled without it")
    }));
    destination.prepare().await?;
    let existing = destination.existing(access).await;
    let usable = existing.as_ref().filter(|_| request.reuse);
    let earlier = earlier::results(&image, usable, &request.options).await;
    let results = layers::settle(conversion, &image, &earlier).await?;
    let options = request.options.fingerprint();
    let options = format!("{options} {}", request.start.fingerprint());
    let start = (&request.start, options.as_str());
    let starts = starts::settle(conversion, &image, &results, &earlier, start, &mut notes).await?;
    let waiting = blobs::collect(conversion, &image, &results).await?;
    let result = documents(&image, (&results, &starts), &options);
    let Prepared {
        referrers,
        blobs: parts,
    } = referrers::prepare(conversion, &image, &result, request.referrers, &mut notes).await?;
    let uploaded = blobs::push(conversion, &results, waiting, parts).await?;
    let root = result.root();
    let source_digest = image.root.document().digest;
    let replaces = existing
        .as_ref()
        .is_some_and(|(document, _)| document.digest == source_digest);
    if replaces && root.digest != source_digest {
        let name = &request.destination;
        notes.push(format!(
            "{name} was the original until now; the original is still there as {source_digest}"
        ));
    }
    let is_there = existing.is_some_and(|(document, _)| document.digest == root.digest);
    if !is_there || !referrers.is_empty() {
        for document in result.below_root() {
            destination.put_document(document).await?;
        }
        destination.finish(root, &referrers).await?;
    }
    results.remember(conversion);
    for note in &notes {
        progress.event(&Event::Note(note));
    }
    let layers = results.reports();
    Ok(Report {
        source: request.source.to_string(),
        source_digest: image.root.document().digest.to_string(),
        destination: request.destination.to_string(),
        digest: root.digest.to_string(),
        manifests: manifest_reports(&image.root, &result),
        size_before: layers.iter().map(|layer| layer.size_before).sum(),
        size_after: layers.iter().map(|layer| layer.size_after).sum(),
        layers,
        uploaded,
        referrers: referrers.len(),
        notes,
        seconds: 0.0,
    })
}

/// The documents of the result, children before what names them.
pub(crate) struct Documents {
    /// What became of each of the source's documents.
    pub(crate) new: BTreeMap<Digest, Descriptor>,
    ordered: Vec<Document>,
}

impl Documents {
    fn root(&self) -> &Document {
        self.ordered.last().expect("an image has a root")
    }

    /// The document of this digest.
    fn document(&self, digest: &Digest) -> Option<&Document> {
        self.ordered.iter().find(|one| one.digest == *digest)
    }

    fn below_root(&self) -> &[Document] {
        &self.ordered[..self.ordered.len() - 1]
    }
}

/// What became of the layers, and the lists of what a start reads of them.
type Results<'a> = (&'a LayerResults, &'a Starts);

fn documents(image: &Image, results: Results<'_>, options: &str) -> Documents {
    let mut out = Documents {
        new: BTreeMap::new(),
        ordered: Vec::new(),
    };
    rewrite(&image.root, results, options, &mut out);
    out
}

fn rewrite(node: &Node, results: Results<'_>, options: &str, out: &mut Documents) {
    let (settled, starts) = results;
    let new = match node {
        Node::Index {
            document,
            index,
            children,
        } => {
            for child in children {
                rewrite(child, results, options, out);
            }
            let of_children = |child: &Node| {
                let digest = child.document().digest;
                out.new.get(&digest).map(|new| (digest, new.clone()))
            };
            let new = children.iter().filter_map(of_children).collect();
            rewrite_index(document, index, &new)
        }
        Node::Manifest {
            document,
            manifest,
            plan,
            ..
        } => match plan {
            ManifestPlan::Copy(_) => document.clone(),
            ManifestPlan::Layers(plans) => {
                let layers: Vec<_> = manifest
                    .layers
                    .iter()
                    .zip(plans)
                    .map(|(layer, plan)| settled.replacement(layer, plan))
                    .collect();
                let starts = starts.of(&document.digest);
                rewrite_manifest(document, manifest, &layers, (starts, options))
            }
        },
    };
    out.new.insert(node.document().digest, new.descriptor());
    if !out.ordered.iter().any(|other| other.digest == new.digest) {
        out.ordered.push(new);
    }
}

fn manifest_reports(root: &Node, result: &Documents) -> Vec<ManifestReport> {
    let report = |node: &Node| match node {
        Node::Index { .. } => None,
        Node::Manifest {
            document,
            manifest,
            plan,
            config,
        } => Some(ManifestReport {
            platform: config
                .as_ref()
                .map(|config| platform_text(&config.platform)),
            source: document.digest.to_string(),
            digest: result.new.get(&document.digest)?.digest.to_string(),
            image_id: manifest.config.digest.to_string(),
            copied: match plan {
                ManifestPlan::Copy(reason) => Some(reason.clone()),
                ManifestPlan::Layers(_) => None,
            },
        }),
    };
    root.walk().filter_map(report).collect()
}
