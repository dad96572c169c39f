//! Reading all documents of an image, and deciding what is to happen with each.

use std::future::Future;
use std::pin::Pin;

use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, ImageIndex, Manifest, Platform, media_type};
use serde::Serialize;

use crate::access::AccessError;
use crate::manifest::{
    CONFIG_BYTES_MAX, Document, ImageConfig, Parsed, is_attestation, platform_text,
};
use crate::plan::{ATTESTED, ManifestPlan, PlanError, PlatformFilter, is_image, plan_manifest};
use crate::source::Source;

/// Manifests an image may have: every platform Go knows, with an attestation each, four times.
const MANIFESTS_MAX: usize = 512;

/// Indexes that may be nested in each other; the specification's examples have two.
const DEPTH_MAX: usize = 4;

/// An image with all its documents.
#[derive(Debug)]
pub struct Image {
    /// The manifest or index that its name stands for.
    pub root: Node,
    /// Attestations left out because the source has not got them: containerd pulls no others than
    /// images of the platform it was asked for.
    pub absent: Vec<Digest>,
}

/// A document of an image with what belongs to it.
#[derive(Debug)]
pub enum Node {
    /// An index.
    Index {
        /// Its bytes.
        document: Document,
        /// The same, parsed.
        index: Box<ImageIndex>,
        /// Those of its entries that were taken.
        children: Vec<Node>,
    },
    /// A manifest.
    Manifest {
        /// Its bytes.
        document: Document,
        /// The same, parsed.
        manifest: Box<Manifest>,
        /// What is to happen with it.
        plan: ManifestPlan,
        /// Its config, for images.
        config: Option<Box<ImageConfig>>,
    },
}

/// A manifest of an image with what belongs to it.
#[derive(Debug, Clone, Copy)]
pub struct ManifestNode<'a> {
    /// Its bytes.
    pub document: &'a Document,
    /// The same, parsed.
    pub manifest: &'a Manifest,
    /// What is to happen with it.
    pub plan: &'a ManifestPlan,
    /// Its config, for images.
    pub config: Option<&'a ImageConfig>,
}

/// What every report tells of a manifest.
#[derive(Debug, Serialize)]
pub struct ManifestFacts {
    /// Platform, for images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Digest of the manifest.
    pub digest: String,
    /// Digest of the config, which is the image's ID.
    pub image_id: String,
    /// Digest of the manifest it was converted from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl ManifestNode<'_> {
    /// What every report tells of it.
    pub fn facts(&self) -> ManifestFacts {
        ManifestFacts {
            platform: self.config.map(|config| platform_text(&config.platform)),
            digest: self.document.digest.to_string(),
            image_id: self.manifest.config.digest.to_string(),
            source: self.manifest.annotations.get(annotation::SOURCE).cloned(),
        }
    }
}

/// Documents that do not make an image.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// One of them cannot be had or is malformed.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A config is malformed.
    #[error("the config of manifest {manifest} is malformed: {reason}")]
    Config {
        /// The manifest.
        manifest: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// A config does not fit its manifest.
    #[error("manifest {manifest}: {error}")]
    Plan {
        /// The manifest.
        manifest: Digest,
        /// What does not fit.
        error: PlanError,
    },
    /// There is no image for a platform.
    #[error("there is no image for {wanted}; there is: {found}")]
    Platform {
        /// The platforms that were asked for.
        wanted: String,
        /// Those there are.
        found: String,
    },
    /// It is no image of this world.
    #[error(
        "the image has more than {MANIFESTS_MAX} manifests, or indexes nested deeper than {DEPTH_MAX}"
    )]
    TooMany,
}

impl Node {
    /// Its bytes.
    pub fn document(&self) -> &Document {
        match self {
            Self::Index { document, .. } | Self::Manifest { document, .. } => document,
        }
    }

    /// The node and all below it.
    pub fn walk(&self) -> Box<dyn Iterator<Item = &Self> + '_> {
        let below: Box<dyn Iterator<Item = &Self>> = match self {
            Self::Index { children, .. } => Box::new(children.iter().flat_map(Self::walk)),
            Self::Manifest { .. } => Box::new(std::iter::empty()),
        };
        Box::new(std::iter::once(self).chain(below))
    }
}

impl Image {
    /// Its manifests, in the order of its indexes.
    pub fn manifests(&self) -> impl Iterator<Item = ManifestNode<'_>> {
        self.root.walk().filter_map(|node| match node {
            Node::Index { .. } => None,
            Node::Manifest {
                document,
                manifest,
                plan,
                config,
            } => Some(ManifestNode {
                document,
                manifest,
                plan,
                config: config.as_deref(),
            }),
        })
    }
}

/// Reads an image's documents, of all platforms or of those that pass a filter.
pub async fn load(source: &Source, platforms: &[PlatformFilter]) -> Result<Image, LoadError> {
    let mut loader = Loader {
        source,
        platforms,
        seen: Vec::new(),
        absent: Vec::new(),
        count: 0,
    };
    let document = source.root().await?;
    let root = loader.node(document, None, 0).await?;
    let missing = loader.missing();
    match root {
        Some(root) if missing.is_empty() => Ok(Image {
            root,
            absent: loader.absent,
        }),
        _ => Err(LoadError::Platform {
            wanted: texts(missing),
            found: texts(loader.seen.iter().map(platform_text)),
        }),
    }
}

fn texts(list: impl IntoIterator<Item = String>) -> String {
    let list: Vec<_> = list.into_iter().collect();
    if list.is_empty() {
        "none".into()
    } else {
        list.join(", ")
    }
}

struct Loader<'a> {
    source: &'a Source,
    platforms: &'a [PlatformFilter],
    seen: Vec<Platform>,
    absent: Vec<Digest>,
    count: usize,
}

type NodeFuture<'a> = Pin<Box<dyn Future<Output = Result<Option<Node>, LoadError>> + Send + 'a>>;

impl Loader<'_> {
    /// The platforms that were asked for and that no image is for.
    fn missing(&self) -> Vec<String> {
        let is_missing =
            |filter: &&PlatformFilter| !self.seen.iter().any(|platform| filter.admits(platform));
        if self.seen.is_empty() {
            // A chart or another artifact is for every platform.
            return Vec::new();
        }
        let missing = self.platforms.iter().filter(is_missing);
        missing.map(ToString::to_string).collect()
    }

    /// The node of a document, or nothing if the platforms exclude it.
    fn node<'a>(
        &'a mut self,
        document: Document,
        entry: Option<&'a Descriptor>,
        depth: usize,
    ) -> NodeFuture<'a> {
        Box::pin(async move {
            self.count += 1;
            if self.count > MANIFESTS_MAX || depth > DEPTH_MAX {
                return Err(LoadError::TooMany);
            }
            match Parsed::parse(&document).map_err(AccessError::from)? {
                Parsed::Index(index) => self.index(document, index, depth).await,
                Parsed::Manifest(manifest) => self.manifest(document, manifest, entry).await,
            }
        })
    }

    async fn index(
        &mut self,
        document: Document,
        index: Box<ImageIndex>,
        depth: usize,
    ) -> Result<Option<Node>, LoadError> {
        let mut children: Vec<Node> = Vec::new();
        let (attestations, images): (Vec<_>, Vec<_>) = index
            .manifests
            .iter()
            .partition(|entry| is_attestation(entry));
        for entry in images {
            if self.excludes(entry) {
                continue;
            }
            let below = self.source.document(entry).await?;
            children.extend(self.node(below, Some(entry), depth + 1).await?);
        }
        for entry in attestations {
            // What speaks of an image that is left out is left out too.
            let target = entry.annotations.get(ATTESTED);
            let is_target =
                |child: &Node| target.is_some_and(|of| *of == child.document().digest.to_string());
            if !self.platforms.is_empty() && !children.iter().any(is_target) {
                continue;
            }
            // Only who asked for all of the image is owed it.
            let may_lack = !self.platforms.is_empty();
            let below = match self.source.document(entry).await {
                Err(error) if error.is_absent() && may_lack => {
                    self.absent.push(entry.digest);
                    continue;
                }
                below => self.node(below?, Some(entry), depth + 1).await?,
            };
            match below {
                Some(Node::Manifest { manifest, .. })
                    if may_lack && self.lacks_part(&manifest).await? =>
                {
                    self.absent.push(entry.digest);
                }
                below => children.extend(below),
            }
        }
        let empty = children.is_empty() && !self.platforms.is_empty();
        Ok((!empty).then_some(Node::Index {
            document,
            index,
            children,
        }))
    }

    /// Whether the source has a manifest without what it names.
    async fn lacks_part(&self, manifest: &Manifest) -> Result<bool, LoadError> {
        for part in std::iter::once(&manifest.config).chain(&manifest.layers) {
            if self.source.lacks(&part.digest).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the platforms exclude an entry by what the index says about it.
    fn excludes(&mut self, entry: &Descriptor) -> bool {
        let Some(platform) = &entry.platform else {
            return false;
        };
        if self.platforms.is_empty() || media_type::is_index(&entry.media_type) {
            return false;
        }
        self.seen.push(platform.clone());
        !self.platforms.iter().any(|filter| filter.admits(platform))
    }

    async fn manifest(
        &mut self,
        document: Document,
        manifest: Box<Manifest>,
        entry: Option<&Descriptor>,
    ) -> Result<Option<Node>, LoadError> {
        let digest = document.digest;
        if entry.is_some_and(is_attestation) {
            let plan = ManifestPlan::Copy("it is an attestation".into());
            return Ok(Some(Node::Manifest {
                document,
                manifest,
                plan,
                config: None,
            }));
        }
        if let Err(reason) = is_image(&manifest) {
            let plan = ManifestPlan::Copy(reason);
            return Ok(Some(Node::Manifest {
                document,
                manifest,
                plan,
                config: None,
            }));
        }
        let bytes = self
            .source
            .small_blob(&manifest.config, CONFIG_BYTES_MAX)
            .await?;
        let config: ImageConfig =
            serde_json::from_slice(&bytes).map_err(|error| LoadError::Config {
                manifest: digest,
                reason: error.to_string(),
            })?;
        // An index's word about the platform counts before the config's.
        if !self.platforms.is_empty() && entry.is_none_or(|entry| entry.platform.is_none()) {
            self.seen.push(config.platform.clone());
            if !self
                .platforms
                .iter()
                .any(|filter| filter.admits(&config.platform))
            {
                return Ok(None);
            }
        }
        let plan = plan_manifest(&manifest, &config).map_err(|error| LoadError::Plan {
            manifest: digest,
            error,
        })?;
        let config = Some(Box::new(config));
        Ok(Some(Node::Manifest {
            document,
            manifest,
            plan,
            config,
        }))
    }
}
