//! Making the converted documents out of the source's.

use std::collections::BTreeMap;

use larder_proto::annotation::{self, IndexLocation};
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, ImageIndex, Manifest, media_type};
use serde::Serialize;

use super::{ATTESTED, OPTIONS};
use crate::manifest::Document;

/// Annotations of other lazy formats speak of the old blob's bytes; on the new one they would lie.
const STALE: [&str; 5] = [
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "containerd.io/snapshot/nydus-",
    "containerd.io/snapshot/larder.",
];

/// OCI's name for a gzip layer that registries are asked not to hold.
const OCI_FOREIGN_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";

/// What takes the place of a source layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replacement {
    /// Digest of the converted blob.
    pub digest: Digest,
    /// Its length, bytes.
    pub size: u64,
    /// Where its index lies.
    pub location: IndexLocation,
}

/// The manifest of the converted image.
///
/// `layers` has one place per layer; `None` keeps the source's blob. Where nothing is replaced, and no
/// other list asked for, the document is the source's, byte for byte, so that whatever vouches for its digest still does. `starts`
/// has what each layer's list of what a start reads shall be; without it, layers that stay keep theirs.
pub fn rewrite_manifest(
    source: &Document,
    manifest: &Manifest,
    layers: &[Option<Replacement>],
    (starts, options): (Option<&[Option<String>]>, &str),
) -> Document {
    let is_listed = |(layer, start): (&Descriptor, &Option<String>)| {
        layer.annotations.get(annotation::START) == start.as_ref()
    };
    let mut listed = manifest.layers.iter().zip(starts.into_iter().flatten());
    if layers.iter().all(Option::is_none) && listed.all(is_listed) {
        return source.clone();
    }
    let mut new = manifest.clone();
    new.media_type = Some(media_type::OCI_MANIFEST.into());
    if new.config.media_type == media_type::DOCKER_CONFIG {
        new.config.media_type = media_type::OCI_CONFIG.into();
    }
    for (layer, replacement) in new.layers.iter_mut().zip(layers) {
        match replacement {
            Some(replacement) => replace(layer, replacement),
            None => name_in_oci_terms(layer),
        }
    }
    for (layer, start) in new.layers.iter_mut().zip(starts.into_iter().flatten()) {
        layer.annotations.remove(annotation::START);
        let start = start.clone().map(|start| (annotation::START.into(), start));
        layer.annotations.extend(start);
    }
    new.annotations
        .insert(annotation::SOURCE.into(), source.digest.to_string());
    new.annotations.insert(OPTIONS.into(), options.into());
    document(media_type::OCI_MANIFEST, &new)
}

/// The index of the converted image; `new` maps the digests of its manifests to what became of
/// them. Manifests without an entry were left out by `--platform`.
pub fn rewrite_index(
    source: &Document,
    index: &ImageIndex,
    new: &BTreeMap<Digest, Descriptor>,
) -> Document {
    let kept = |old: &Descriptor| {
        new.get(&old.digest)
            .is_some_and(|new| new.digest == old.digest)
    };
    if index.manifests.iter().all(kept) {
        return source.clone();
    }
    let mut rewritten = index.clone();
    rewritten.media_type = Some(media_type::OCI_INDEX.into());
    rewritten
        .manifests
        .retain(|entry| new.contains_key(&entry.digest));
    for entry in &mut rewritten.manifests {
        if let Some(new) = new
            .get(&entry.digest)
            .filter(|new| new.digest != entry.digest)
        {
            (entry.digest, entry.size) = (new.digest, new.size);
            entry.media_type.clone_from(&new.media_type);
            entry.data = None;
        }
        // An attestation names another manifest of this index; it must go on doing so.
        let attested = entry
            .annotations
            .get(ATTESTED)
            .and_then(|digest| digest.parse().ok());
        if let Some(target) = attested.and_then(|digest: Digest| new.get(&digest)) {
            entry
                .annotations
                .insert(ATTESTED.into(), target.digest.to_string());
        }
    }
    rewritten
        .annotations
        .insert(annotation::SOURCE.into(), source.digest.to_string());
    document(media_type::OCI_INDEX, &rewritten)
}

fn replace(layer: &mut Descriptor, new: &Replacement) {
    layer.media_type = media_type::OCI_LAYER_ZSTD.into();
    (layer.digest, layer.size) = (new.digest, new.size);
    // These two are the old blob itself, and places to find it.
    layer.data = None;
    layer.urls.clear();
    layer
        .annotations
        .retain(|key, _| !STALE.iter().any(|stale| key.starts_with(stale)));
    layer
        .annotations
        .insert(annotation::INDEX.into(), new.location.to_string());
    layer
        .annotations
        .insert(annotation::LAYER.into(), new.digest.to_string());
}

/// Docker's names for layers do not mix with an OCI manifest.
fn name_in_oci_terms(layer: &mut Descriptor) {
    let name = match layer.media_type.as_str() {
        media_type::DOCKER_LAYER_GZIP => media_type::OCI_LAYER_GZIP,
        media_type::DOCKER_LAYER_ZSTD => media_type::OCI_LAYER_ZSTD,
        media_type::DOCKER_LAYER => media_type::OCI_LAYER,
        media_type::DOCKER_FOREIGN_LAYER => OCI_FOREIGN_LAYER,
        _ => return,
    };
    layer.media_type = name.into();
}

fn document(media_type: &str, value: &impl Serialize) -> Document {
    let bytes = serde_json::to_vec(value).expect("a document has text keys only");
    Document::new(media_type, bytes)
}
