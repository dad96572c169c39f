//! What an earlier conversion left at the destination, when no cache remembers it.

use std::collections::HashMap;

use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_registry::oci::Manifest;

use super::load::{Image, Node, load};
use crate::layer::LayerOptions;
use crate::manifest::Document;
use crate::plan::{OPTIONS, Replacement, larder_location};
use crate::source::Source;

/// Converted layers by the digest of their source layer.
pub(super) type Earlier = HashMap<Digest, Replacement>;

/// Finds manifests at the destination that say they were made from the image's own, with the same
/// options, and carry the same config; their layers are what ours would become.
pub(super) async fn results(
    image: &Image,
    existing: Option<&(Document, Source)>,
    options: &LayerOptions,
) -> Earlier {
    let mut found = Earlier::new();
    let Some((_, destination)) = existing else {
        return found;
    };
    // Whatever is wrong with what is there, it only means that it is of no use.
    let Ok(there) = load(destination, &[]).await else {
        return found;
    };
    let options = options.fingerprint();
    for node in image.root.walk() {
        let Node::Manifest {
            document,
            manifest: ours,
            ..
        } = node
        else {
            continue;
        };
        let made_from_it = |theirs: &Manifest| {
            let says = |key: &str, value: &str| {
                theirs
                    .annotations
                    .get(key)
                    .is_some_and(|text| text == value)
            };
            says(annotation::SOURCE, &document.digest.to_string())
                && says(OPTIONS, &options)
                && theirs.config.digest == ours.config.digest
                && theirs.layers.len() == ours.layers.len()
        };
        for theirs in there.root.walk() {
            let Node::Manifest {
                manifest: theirs, ..
            } = theirs
            else {
                continue;
            };
            if made_from_it(theirs) {
                for (old, new) in ours.layers.iter().zip(&theirs.layers) {
                    let location = larder_location(new).filter(|_| new.digest != old.digest);
                    found.extend(location.map(|location| {
                        let (digest, size) = (new.digest, new.size);
                        (
                            old.digest,
                            Replacement {
                                digest,
                                size,
                                location,
                            },
                        )
                    }));
                }
            }
        }
    }
    found
}
