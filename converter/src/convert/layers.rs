//! Settling what becomes of each layer, several at once.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use larder_proto::annotation::IndexLocation;
use larder_proto::digest::Digest;
use larder_registry::Reference;
use larder_registry::oci::Descriptor;

use super::earlier::Earlier;
use super::{Conversion, ConvertError, Image, Node};
use crate::cache::Entry;
use crate::layer::{LayerError, LayerInput, LayerOutput, Outcome, convert_layer};
use crate::plan::{LayerPlan, ManifestPlan, Replacement};
use crate::progress::Event;
use crate::report::{Action, LayerReport};
use crate::source::blocking;
use crate::{spool, tail};

/// Layers converted at the same time, at most: one inflates while another waits for its source.
const LAYERS_AT_ONCE: usize = 4;

/// What became of the layers.
#[derive(Debug, Default)]
pub(super) struct LayerResults {
    by_layer: HashMap<Key, Settled>,
    order: Vec<Key>,
}

/// A layer as a manifest and its config name it.
pub(super) type Key = (Digest, Option<Digest>);

#[derive(Debug)]
struct Settled {
    report: LayerReport,
    new: Option<Replacement>,
    file: Option<Arc<File>>,
}

impl LayerResults {
    /// What takes the place of a layer; `None` if it stays.
    pub(super) fn replacement(&self, layer: &Descriptor, plan: &LayerPlan) -> Option<Replacement> {
        self.by_layer.get(&key(layer, plan))?.new
    }

    /// What takes the place of a layer, with the file it waits in, unless the destination has it already.
    pub(super) fn converted(
        &self,
        layer: &Descriptor,
        plan: &LayerPlan,
    ) -> Option<(Replacement, Option<Arc<File>>)> {
        let settled = self.by_layer.get(&key(layer, plan))?;
        Some((settled.new?, settled.file.clone()))
    }

    /// The new blobs that wait to be pushed.
    pub(super) fn files(&self) -> impl Iterator<Item = (Digest, u64, Arc<File>)> + '_ {
        let all = self.order.iter().filter_map(|key| self.by_layer.get(key));
        all.filter_map(|settled| {
            let new = settled.new?;
            Some((new.digest, new.size, Arc::clone(settled.file.as_ref()?)))
        })
    }

    pub(super) fn reports(&self) -> Vec<LayerReport> {
        let all = self.order.iter().filter_map(|key| self.by_layer.get(key));
        all.map(|settled| settled.report.clone()).collect()
    }

    /// Tells the cache where the results are now.
    pub(super) fn remember(&self, conversion: &Conversion) {
        let place = conversion.destination.repository();
        let place = place.map(|at| format!("{}/{}", at.registry(), at.name()));
        for ((layer, diff_id), settled) in &self.by_layer {
            if let (Some(new), Some(diff_id)) = (settled.new, diff_id) {
                let before = conversion.cache.get(layer, diff_id);
                let tar_len = settled.report.tar_size.unwrap_or_default();
                let place = place.as_deref().unwrap_or_default();
                let entry = Entry::converted(&new, tar_len, before, place);
                conversion.cache.put(layer, diff_id, entry);
            }
        }
    }
}

pub(super) fn key(layer: &Descriptor, plan: &LayerPlan) -> Key {
    let diff_id = match plan {
        LayerPlan::Convert { diff_id } | LayerPlan::Reuse { diff_id, .. } => Some(*diff_id),
        LayerPlan::Copy(_) => None,
    };
    (layer.digest, diff_id)
}

/// Settles every layer of the image, each once.
pub(super) async fn settle(
    conversion: &Conversion,
    image: &Image,
    earlier: &Earlier,
) -> Result<LayerResults, ConvertError> {
    let mut results = LayerResults::default();
    let mut jobs = Vec::new();
    for node in image.root.walk() {
        let Node::Manifest {
            manifest,
            plan: ManifestPlan::Layers(plans),
            ..
        } = node
        else {
            continue;
        };
        for (layer, plan) in manifest.layers.iter().zip(plans) {
            if !results.order.contains(&key(layer, plan)) {
                results.order.push(key(layer, plan));
                jobs.push((layer, plan));
            }
        }
    }
    conversion
        .progress
        .event(&Event::Planned { layers: jobs.len() });
    let at_once = conversion.workers.jobs().get().min(LAYERS_AT_ONCE);
    let settled = futures_util::stream::iter(jobs)
        .map(|(layer, plan)| async move {
            let settled = settle_one(conversion, layer, plan, earlier).await?;
            conversion.progress.event(&Event::LayerFinished {
                report: &settled.report,
            });
            Ok::<_, ConvertError>((key(layer, plan), settled))
        })
        .buffer_unordered(at_once);
    results.by_layer = settled.try_collect().await?;
    Ok(results)
}

async fn settle_one(
    conversion: &Conversion,
    layer: &Descriptor,
    plan: &LayerPlan,
    earlier: &Earlier,
) -> Result<Settled, ConvertError> {
    let diff_id = match plan {
        LayerPlan::Copy(reason) => return Ok(kept(layer, Action::Copied, reason)),
        LayerPlan::Reuse { diff_id, .. } if !conversion.reuse => *diff_id,
        LayerPlan::Reuse { location, diff_id } => {
            match verify_index(conversion, layer, location, *diff_id).await? {
                Ok(chunk_target) => {
                    let mut reason = String::from("it is in Larder's form already");
                    if chunk_target != conversion.workers.options().chunk_target() {
                        let note = ", with chunks of another size; --no-cache converts it again";
                        reason.push_str(note);
                    }
                    return Ok(kept(layer, Action::Reused, &reason));
                }
                Err(reason) => {
                    let note = format!(
                        "layer {} says it is in Larder's form, but {reason}; converting it again",
                        layer.digest
                    );
                    conversion.progress.event(&Event::Note(&note));
                }
            }
            *diff_id
        }
        LayerPlan::Convert { diff_id } => *diff_id,
    };
    let cached = conversion.cache.get(&layer.digest, &diff_id);
    if let Some(Entry::Unrepresentable { reason }) = &cached {
        return Ok(kept(layer, Action::Copied, reason));
    }
    let cached = cached.as_ref().and_then(Entry::replacement);
    if let Some((new, tar_len, places)) = cached
        && is_there(conversion, &new, places).await?
    {
        return Ok(reused(layer, new, Some(tar_len)));
    }
    if let Some(new) = earlier.layers.get(&(layer.digest, Some(diff_id)))
        && is_there(conversion, new, &[]).await?
    {
        return Ok(reused(layer, *new, None));
    }
    convert(conversion, layer, diff_id).await
}

/// Whether the destination has a converted layer, or takes it from one of `places`.
async fn is_there(
    conversion: &Conversion,
    new: &Replacement,
    places: &[String],
) -> Result<bool, ConvertError> {
    let destination = &conversion.destination;
    if destination.has_blob(&new.digest, new.size).await? {
        return Ok(true);
    }
    for place in places.iter().rev() {
        let Ok(reference) = place.parse::<Reference>() else {
            continue;
        };
        let from = conversion.access.client.repository(&reference);
        // A repository that is gone or closed to us is only a place that does not help.
        if matches!(destination.mount(&new.digest, &from).await, Ok(true)) {
            return Ok(true);
        }
    }
    Ok(false)
}

async fn convert(
    conversion: &Conversion,
    layer: &Descriptor,
    diff_id: Digest,
) -> Result<Settled, ConvertError> {
    let Descriptor { digest, size, .. } = *layer;
    conversion.progress.event(&Event::LayerStarted {
        layer: digest,
        size,
    });
    let blob = conversion.source.blob(&digest).await?;
    let dir = conversion.destination.spool_dir();
    let file = spool::create(&dir).map_err(|error| ConvertError::Local {
        doing: format!("create a file in {}", dir.display()),
        error,
    })?;
    let stays = conversion.destination.keeps_files();
    let output = LayerOutput { file, stays };
    let (workers, cancel) = (Arc::clone(&conversion.workers), conversion.cancel.clone());
    let progress = Arc::clone(&conversion.progress);
    let outcome = blocking(move || {
        let input = LayerInput {
            digest,
            size,
            diff_id,
            blob,
        };
        let advance = |bytes| {
            progress.event(&Event::LayerAdvanced {
                layer: digest,
                bytes,
            });
        };
        convert_layer(input, &workers, output, &cancel, &advance)
    })
    .await
    .map_err(|error| unwritten(error, conversion, &dir))?;
    let new = match outcome {
        Outcome::Converted(new) => new,
        Outcome::Unrepresentable(reason) => {
            let entry = Entry::Unrepresentable {
                reason: reason.clone(),
            };
            conversion.cache.put(&digest, &diff_id, entry);
            return Ok(kept(layer, Action::Copied, &reason));
        }
    };
    let replacement = Replacement {
        digest: new.digest,
        size: new.size,
        location: new.location,
    };
    let mut settled = reused(layer, replacement, Some(new.tar_len));
    settled.report.action = Action::Converted;
    settled.report.reason = None;
    settled.report.chunks = Some(new.chunks);
    settled.file = Some(Arc::new(new.file));
    Ok(settled)
}

/// Names the directory that could not be written to, and what to do if it is full.
fn unwritten(error: LayerError, conversion: &Conversion, dir: &Path) -> ConvertError {
    let LayerError::Write { layer, error } = error else {
        return error.into();
    };
    let full = error.kind() == std::io::ErrorKind::StorageFull;
    let advice = match (full, conversion.destination.repository()) {
        (false, _) => "",
        (true, None) => "; free some space there",
        (true, Some(_)) => "; free some space there, or set TMPDIR to another directory",
    };
    ConvertError::Local {
        doing: format!("write layer {layer} to {}", dir.display()),
        error: std::io::Error::new(error.kind(), format!("{error}{advice}")),
    }
}

fn kept(layer: &Descriptor, action: Action, reason: &str) -> Settled {
    let report = LayerReport {
        source: layer.digest.to_string(),
        digest: layer.digest.to_string(),
        action,
        reason: Some(reason.into()),
        size_before: layer.size,
        size_after: layer.size,
        tar_size: None,
        chunks: None,
    };
    Settled {
        report,
        new: None,
        file: None,
    }
}

fn reused(layer: &Descriptor, new: Replacement, tar_size: Option<u64>) -> Settled {
    let mut settled = kept(
        layer,
        Action::Reused,
        "its conversion is at the destination already",
    );
    settled.report.digest = new.digest.to_string();
    settled.report.size_after = new.size;
    settled.report.tar_size = tar_size.filter(|&len| len > 0);
    settled.new = Some(new);
    settled
}

/// Checks that a layer which says it is in Larder's form has the index it names, and the footer;
/// the size its chunks were cut at, bytes.
async fn verify_index(
    conversion: &Conversion,
    layer: &Descriptor,
    location: &IndexLocation,
    diff_id: Digest,
) -> Result<Result<u32, String>, ConvertError> {
    if location.offset > layer.size {
        return Ok(Err("its annotation points beyond its end".into()));
    }
    let tail = conversion
        .source
        .range(&layer.digest, location.offset..layer.size)
        .await?;
    let check = || {
        let index = tail::open(&tail, location, layer.size)?;
        larder_proto::erofs::Image::open(index.metadata(), index.tar_len())
            .map_err(|error| error.to_string())?;
        if index.diff_id() != diff_id {
            return Err(format!("its index is for diffID {}", index.diff_id()));
        }
        Ok(index.chunk_target())
    };
    Ok(check())
}
