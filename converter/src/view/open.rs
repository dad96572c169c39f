//! Opening an image's layers for reading: the index of each, or the whole layer where it has none.

use std::collections::HashSet;
use std::io::Read as _;
use std::sync::OnceLock;

use larder_proto::erofs::Image;
use larder_proto::index::Index;
use larder_proto::scan::{LayerScan, ScanOptions, ScannedLayer};
use larder_proto::tree::Tree;
use larder_registry::oci::{Descriptor, Manifest, media_type};

use super::{View, count_links};
use crate::access::AccessError;
use crate::convert::{Image as Loaded, Node};
use crate::decode::decode;
use crate::manifest::platform_text;
use crate::plan::{PlatformFilter, larder_location};
use crate::source::{Source, blocking};
use crate::tail;

/// Bytes of tar read at a time from a layer that is not in Larder's form.
const BUFFER_BYTES: usize = 256 << 10;

/// One layer, ready to be looked at.
#[derive(Debug)]
pub struct ViewedLayer {
    pub(super) tree: Tree,
    pub(super) implied: HashSet<Vec<u8>>,
    pub(super) descriptor: Descriptor,
    pub(super) form: PlainOrLarder,
    links: OnceLock<Vec<usize>>,
}

/// Where a layer's bytes come from.
#[derive(Debug)]
pub enum PlainOrLarder {
    /// From a stream of the whole layer.
    Plain,
    /// From the chunks that hold them.
    Larder(Box<Index<Vec<u8>>>),
}

/// A layer that cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// It cannot be read.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// It is damaged.
    #[error("layer {layer}: {reason}")]
    Layer {
        /// Digest of the layer.
        layer: larder_proto::digest::Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no image, or several that fit.
    #[error("{0}")]
    Platform(String),
}

impl ViewedLayer {
    pub(super) fn new(
        descriptor: Descriptor,
        tree: Tree,
        implied: HashSet<Vec<u8>>,
        form: PlainOrLarder,
    ) -> Self {
        Self {
            tree,
            implied,
            descriptor,
            form,
            links: OnceLock::new(),
        }
    }

    pub(super) fn links(&self) -> &[usize] {
        self.links.get_or_init(|| count_links(&self.tree))
    }
}

/// The platform of this machine, without a variant.
pub fn own_platform() -> Option<PlatformFilter> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{architecture}").parse().ok()
}

/// The image's manifest for a platform; without one, for this machine's, or the only one.
pub fn choose_platform<'a>(
    image: &'a Loaded,
    platform: Option<&PlatformFilter>,
) -> Result<&'a Manifest, ViewError> {
    let images: Vec<_> = image
        .root
        .walk()
        .filter_map(|node| match node {
            Node::Manifest {
                manifest,
                config: Some(config),
                ..
            } => Some((&**manifest, &config.platform)),
            _ => None,
        })
        .collect();
    let own = own_platform();
    match (platform.or(own.as_ref()), &images[..]) {
        (_, []) => Err(ViewError::Platform("it is not an image with files".into())),
        (_, [(only, _)]) if platform.is_none() => Ok(only),
        (Some(filter), _) => {
            let fits = images.iter().find(|(_, platform)| filter.admits(platform));
            fits.map(|(manifest, _)| *manifest).ok_or_else(|| {
                let all: Vec<_> = images
                    .iter()
                    .map(|(_, platform)| platform_text(platform))
                    .collect();
                let all = all.join(", ");
                ViewError::Platform(format!("there is no image for {filter}; there is: {all}"))
            })
        }
        (None, _) => Err(ViewError::Platform(
            "it has several images; choose one by --platform".into(),
        )),
    }
}

/// Opens all layers of an image; of those in Larder's form only the index is read.
pub async fn open_view(source: &Source, manifest: &Manifest) -> Result<View, ViewError> {
    let mut layers = Vec::new();
    for layer in manifest.layers.iter().rev() {
        if media_type::layer_compression(&layer.media_type).is_none() {
            let reason = format!("its type is {:?}", layer.media_type);
            return Err(ViewError::Layer {
                layer: layer.digest,
                reason,
            });
        }
        layers.push(open_layer(source, layer).await?);
    }
    Ok(View::new(layers))
}

async fn open_layer(source: &Source, layer: &Descriptor) -> Result<ViewedLayer, ViewError> {
    let damaged = |reason: String| ViewError::Layer {
        layer: layer.digest,
        reason,
    };
    if let Some(index) = open_index(source, layer).await? {
        return indexed_layer(layer.clone(), index).map_err(damaged);
    }
    let blob = source.blob(&layer.digest).await?;
    let scanned = blocking(move || -> Result<ScannedLayer, String> {
        let mut decoder = decode(blob).map_err(|error| error.to_string())?;
        let mut scan = LayerScan::new(ScanOptions::default());
        let (mut buffer, mut cuts) = (vec![0; BUFFER_BYTES], Vec::new());
        loop {
            let count = decoder
                .read(&mut buffer)
                .map_err(|error| error.to_string())?;
            if count == 0 {
                return scan.finish(&mut cuts).map_err(|error| error.to_string());
            }
            scan.feed(&buffer[..count], &mut cuts)
                .map_err(|error| error.to_string())?;
            cuts.clear();
        }
    });
    let scanned = scanned.await.map_err(damaged)?;
    let implied = scanned.implied.into_iter().collect();
    Ok(ViewedLayer::new(
        layer.clone(),
        scanned.tree,
        implied,
        PlainOrLarder::Plain,
    ))
}

/// A layer that has an index; `Err` is what is wrong with that.
pub(crate) fn indexed_layer(
    descriptor: Descriptor,
    index: Index<Vec<u8>>,
) -> Result<ViewedLayer, String> {
    let image = Image::open(index.metadata(), index.tar_len());
    let tree = image.map_err(|error| error.to_string())?.to_tree();
    let implied = index.implied().map(<[u8]>::to_vec).collect();
    let form = PlainOrLarder::Larder(Box::new(index));
    Ok(ViewedLayer::new(descriptor, tree, implied, form))
}

/// The index of a layer in Larder's form, read by one range; `None` for other layers.
pub(crate) async fn open_index(
    source: &Source,
    layer: &Descriptor,
) -> Result<Option<Index<Vec<u8>>>, ViewError> {
    let Some(location) = larder_location(layer) else {
        return Ok(None);
    };
    let damaged = |reason: String| ViewError::Layer {
        layer: layer.digest,
        reason,
    };
    if location.offset > layer.size {
        return Err(damaged("its annotation points beyond its end".into()));
    }
    let tail = source
        .range(&layer.digest, location.offset..layer.size)
        .await?;
    tail::open(&tail, &location, layer.size)
        .map(Some)
        .map_err(damaged)
}
