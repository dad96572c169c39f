//! What an earlier conversion left at the destination, when no cache remembers it.

use std::collections::HashMap;

use larder_proto::annotation;
use larder_registry::oci::Manifest;

use super::layers::{Key, key};
use super::load::{Image, Node, load};
use crate::layer::LayerOptions;
use crate::manifest::Document;
use crate::plan::{ManifestPlan, OPTIONS, Replacement, larder_location};
use crate::source::Source;

/// Converted layers by their source layer, with the tar that the config says it holds.
pub(super) type Earlier = HashMap<Key, Replacement>;

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
            plan: ManifestPlan::Layers(plans),
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
                let layers = ours.layers.iter().zip(plans).zip(&theirs.layers);
                for ((old, plan), new) in layers {
                    let location = larder_location(new).filter(|_| new.digest != old.digest);
                    found.extend(location.map(|location| {
                        let (digest, size) = (new.digest, new.size);
                        (
                            key(old, plan),
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
