//! The start lists of an image: worked out, or from a profile.
//!
//! They stand in annotations of the manifest, not in the layers, so that a layer stays the same blob in
//! every image that has it.

mod recorded;

use std::collections::HashMap;
use std::sync::Arc;

use larder_proto::access::Access;
use larder_proto::annotation::StartList;
use larder_proto::digest::Digest;
use larder_proto::index::Index;
use larder_proto::limits::INDEX_BYTES_MAX;
use larder_proto::profile::Profile;
use larder_registry::oci::Descriptor;

use super::earlier::Earlier;
use super::layers::LayerResults;
use super::{Conversion, ConvertError, Image, Node};
use recorded::Recorded;

use crate::manifest::ImageConfig;
use crate::plan::{LayerPlan, ManifestPlan, Replacement, larder_location};
use crate::start::{self, Command, Place, RULES, Reader};
use crate::tail;
use crate::view::{View, indexed_layer};

/// What the start lists of a conversion are.
#[derive(Debug, Clone, Default)]
pub enum StartLists {
    /// What a start reads as far as that can be worked out from the image.
    #[default]
    WorkedOut,
    /// What this profile says that a start reads.
    Profile(Arc<Profile>),
    /// There are none.
    None,
}

/// The start list of each layer of a manifest, the lowest first, as annotations have them.
pub(crate) type Texts = Vec<Option<String>>;

/// The start lists of manifests, by their digests in the source.
#[derive(Debug, Default)]
pub(super) struct Starts(HashMap<Digest, Texts>);

impl Starts {
    /// The lists for a manifest; `None` leaves it the ones it has.
    pub(super) fn of(&self, manifest: &Digest) -> Option<&[Option<String>]> {
        self.0.get(manifest).map(Vec::as_slice)
    }
}

impl StartLists {
    /// A text that differs whenever the lists may differ.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Self::WorkedOut => format!("start={RULES}"),
            Self::Profile(profile) => {
                format!("start={}", &Digest::of(&profile.encode()).hex()[..16])
            }
            Self::None => "start=none".into(),
        }
    }
}

/// A layer in Larder's form, and where it can be read.
struct Converted<'a> {
    /// Its number in the manifest.
    number: usize,
    layer: Replacement,
    place: Place<'a>,
}

/// Settles the start lists of every manifest that changes, and with a profile of every one that it is of. What
/// stands in the way of working one out is a note: an image without it starts, only later.
pub(super) async fn settle(
    conversion: &Conversion,
    image: &Image,
    results: &LayerResults,
    earlier: &Earlier,
    (lists, options): (&StartLists, &str),
    notes: &mut Vec<String>,
) -> Result<Starts, ConvertError> {
    let mut starts = Starts::default();
    let mut recorded = match lists {
        StartLists::Profile(profile) => Some(Recorded::new(profile)),
        _ => None,
    };
    for node in image.root.walk() {
        let Node::Manifest {
            document,
            manifest,
            plan: ManifestPlan::Layers(plans),
            config: Some(config),
        } = node
        else {
            continue;
        };
        let layers = converted(conversion, results, &manifest.layers, plans);
        let count = manifest.layers.len();
        if let Some(recorded) = &mut recorded
            && let Some(texts) = recorded.texts(&layers, count, notes).await
        {
            starts.0.insert(document.digest, texts);
            continue;
        }
        let is_changed =
            |(layer, plan): (&Descriptor, &LayerPlan)| results.replacement(layer, plan).is_some();
        if !manifest.layers.iter().zip(plans).any(is_changed) {
            continue;
        }
        if matches!(lists, StartLists::None) {
            starts.0.insert(document.digest, vec![None; count]);
            continue;
        }
        let key = key(&manifest.config.digest, &layers, options);
        let known = conversion.cache.start_lists(&key);
        let digest = |of: &Converted<'_>| (of.number, of.layer.digest);
        let digests: Vec<_> = layers.iter().map(digest).collect();
        let known = known.or_else(|| earlier.start_lists(&document.digest, options, &digests));
        let texts = match known.filter(|texts| texts.len() == count) {
            Some(texts) => Ok(texts),
            None => worked_out(config, &layers, count).await,
        };
        match texts {
            Ok(texts) => {
                conversion.cache.put_start_lists(&key, &texts);
                starts.0.insert(document.digest, texts);
            }
            Err(reason) => notes.push(format!(
                "manifest {} has no list of what a start reads: {reason}",
                document.digest
            )),
        }
    }
    if let Some(recorded) = recorded {
        recorded.finish(notes)?;
    }
    Ok(starts)
}

/// The layers that are, or will be, in Larder's form.
fn converted<'a>(
    conversion: &'a Conversion,
    results: &LayerResults,
    layers: &[Descriptor],
    plans: &[LayerPlan],
) -> Vec<Converted<'a>> {
    let one = |(number, (layer, plan)): (usize, (&Descriptor, &LayerPlan))| {
        if let Some((new, file)) = results.converted(layer, plan) {
            let place = match file {
                Some(file) => Place::File(file),
                None => Place::Destination(&conversion.destination),
            };
            let layer = new;
            return Some(Converted {
                number,
                layer,
                place,
            });
        }
        let location = larder_location(layer)?;
        let layer = Replacement {
            digest: layer.digest,
            size: layer.size,
            location,
        };
        let place = Place::Source(&conversion.source);
        Some(Converted {
            number,
            layer,
            place,
        })
    };
    let numbered = layers.iter().zip(plans).enumerate();
    numbered.filter_map(one).collect()
}

/// What lists are remembered by: all that decides them.
fn key(config: &Digest, layers: &[Converted<'_>], options: &str) -> Digest {
    let layers = layers
        .iter()
        .map(|of| format!(" {}:{}", of.number, of.layer.digest));
    Digest::of(format!("{options} {config}{}", layers.collect::<String>()).as_bytes())
}

async fn worked_out(
    config: &ImageConfig,
    layers: &[Converted<'_>],
    count: usize,
) -> Result<Texts, String> {
    let bytes: u64 = layers.iter().map(|of| of.layer.location.len).sum();
    if bytes > INDEX_BYTES_MAX {
        let limit = INDEX_BYTES_MAX >> 20;
        return Err(format!("its indexes have more than {limit} MiB"));
    }
    // A layer that stays as it was is not lazily loaded: whatever is in it is there already.
    let (mut viewed, mut places) = (Vec::new(), Vec::new());
    for Converted { layer, place, .. } in layers.iter().rev() {
        let index = index(layer, place).await?;
        let descriptor = Descriptor::new("", layer.digest, layer.size);
        viewed.push(indexed_layer(descriptor, index)?);
        places.push((layer.digest, place.clone()));
    }
    let view = View::new(viewed);
    let command = Command::of(&config.config);
    let found = start::list(&view, &mut Reader::new(places), &command).await?;
    Ok(texts(layers.iter().rev().zip(found), count))
}

fn texts<'a>(found: impl Iterator<Item = (&'a Converted<'a>, Vec<Access>)>, count: usize) -> Texts {
    let mut texts = vec![None; count];
    for (of, accesses) in found {
        let list = StartList::of(&accesses);
        texts[of.number] = (!list.is_empty()).then(|| list.to_string());
    }
    texts
}

async fn index(layer: &Replacement, place: &Place<'_>) -> Result<Index<Vec<u8>>, String> {
    let Replacement {
        digest,
        size,
        location,
    } = layer;
    let tail = place.range(digest, location.offset..*size).await?;
    tail::open(&tail, location, *size).map_err(|error| format!("layer {digest}: {error}"))
}
