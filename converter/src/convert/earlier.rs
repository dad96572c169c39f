//! What an earlier conversion left at the destination, when no cache remembers it.

use std::collections::HashMap;

use larder_proto::annotation::{self, StartList};
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, Manifest};

use super::Texts;
use super::layers::{Key, key};
use super::load::{Image, Node, load};
use crate::layer::LayerOptions;
use crate::manifest::Document;
use crate::plan::{ManifestPlan, OPTIONS, Replacement, larder_location};
use crate::source::Source;

/// What an earlier conversion made.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// Converted layers by their source layer, with the tar that the config says it holds.
    pub(super) layers: HashMap<Key, Replacement>,
    /// Manifests by the source's, with the options of that conversion.
    manifests: Vec<(Digest, String, Manifest)>,
}

impl Earlier {
    /// The start lists of the manifest made from `source`, if it was made with the same options from
    /// the same layers, which are given by number.
    pub(super) fn start_lists(
        &self,
        source: &Digest,
        options: &str,
        layers: &[(usize, Digest)],
    ) -> Option<Texts> {
        let made = |(of, by, manifest): &&(Digest, String, Manifest)| {
            let is_there = |(number, digest): &(usize, Digest)| {
                let layer = manifest.layers.get(*number);
                layer.is_some_and(|layer| layer.digest == *digest)
            };
            of == source && by == options && layers.iter().all(is_there)
        };
        let (.., manifest) = self.manifests.iter().find(made)?;
        let text = |layer: &Descriptor| layer.annotations.get(annotation::START).cloned();
        let texts: Texts = manifest.layers.iter().map(text).collect();
        let is_list = |text: &String| text.parse::<StartList>().is_ok();
        texts.iter().flatten().all(is_list).then_some(texts)
    }
}

/// The part of a manifest's options that decides its layers.
fn of_layers(options: &str) -> &str {
    options.split(" start=").next().unwrap_or_default()
}

/// Finds manifests at the destination that say they were made from the image's own, with the same
/// options, and carry the same config; their layers are what ours would become.
pub(super) async fn results(
    image: &Image,
    existing: Option<&(Document, Source)>,
    options: &LayerOptions,
) -> Earlier {
    let mut found = Earlier::default();
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
            let says = |key: &str| theirs.annotations.get(key).map(String::as_str);
            says(annotation::SOURCE) == Some(&document.digest.to_string())
                && says(OPTIONS).map(of_layers) == Some(&options)
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
                let by = theirs.annotations.get(OPTIONS).cloned().unwrap_or_default();
                let made = (document.digest, by, (**theirs).clone());
                found.manifests.push(made);
                let layers = ours.layers.iter().zip(plans).zip(&theirs.layers);
                for ((old, plan), new) in layers {
                    let location = larder_location(new).filter(|_| new.digest != old.digest);
                    found.layers.extend(location.map(|location| {
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
