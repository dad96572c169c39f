//! Where a layer's index is: from labels, else from containerd's content store.

use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_registry::Reference;

use super::{LayerRequest, Reason};
use crate::containerd::{Key, Lookup};
use crate::plane::{Wanted, start_list};
use crate::store::Origin;

/// Labels that containerd's CRI plugin, Docker and the transfer service put on layers.
pub(super) const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
pub(super) const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

/// Finds the index of the requested layer and the places its blob can be fetched from.
pub(super) async fn locate(lookup: &Lookup, request: &LayerRequest) -> Result<Wanted, Reason> {
    let label = |name: &str| request.labels.get(name).map(String::as_str);
    let image = label(IMAGE_REF).map(str::parse::<Reference>);
    let Some(location) = label(annotation::INDEX) else {
        // Whoever adds the CRI labels also hands over the annotations, so there are none.
        if label(LAYER_DIGEST).is_some() {
            return Err(Reason::NotConverted);
        }
        return reverse(lookup, request).await;
    };
    let index = location.parse()?;
    let blob = match (label(annotation::LAYER), label(LAYER_DIGEST)) {
        (Some(ours), Some(theirs)) if ours != theirs => return Err(Reason::Contradiction),
        (Some(digest), _) | (None, Some(digest)) => digest.parse::<Digest>(),
        (None, None) => return reverse(lookup, request).await,
    };
    let blob = blob.map_err(|error| Reason::Labels(error.to_string()))?;
    let origins = if let Some(Ok(image)) = image {
        vec![Origin {
            host: image.registry().to_owned(),
            repository: image.repository().to_owned(),
            plain_http: false,
        }]
    } else {
        let found = lookup.find(&request.namespace, Key::Layer(&blob)).await?;
        found.map(|found| found.origins).unwrap_or_default()
    };
    with_origins(Wanted {
        blob,
        index,
        origins,
        namespace: request.namespace.clone(),
        start: start_list(&blob, label(annotation::START)),
    })
}

/// With the chain id alone.
async fn reverse(lookup: &Lookup, request: &LayerRequest) -> Result<Wanted, Reason> {
    let found = lookup
        .find(&request.namespace, Key::Chain(&request.chain))
        .await?;
    let found = found.ok_or(Reason::Unknown)?;
    if found.is_disputed {
        return Err(Reason::Ambiguous);
    }
    let annotation = |name: &str| found.descriptor.annotations.get(name);
    let location = annotation(annotation::INDEX);
    let index = location.ok_or(Reason::NotConverted)?.parse()?;
    let blob = found.descriptor.digest;
    let start = annotation(annotation::START).map(String::as_str);
    let start = start_list(&blob, start);
    with_origins(Wanted {
        blob,
        index,
        origins: found.origins,
        namespace: request.namespace.clone(),
        start,
    })
}

fn with_origins(wanted: Wanted) -> Result<Wanted, Reason> {
    if wanted.origins.is_empty() {
        Err(Reason::NoOrigin)
    } else {
        Ok(wanted)
    }
}
