//! The blobs that stay as they are, and the push of all.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use larder_proto::digest::Digest;
use larder_registry::oci::{Descriptor, media_type};

use super::layers::LayerResults;
use super::{Conversion, ConvertError, Image, Node};
use crate::layer::verified_copy;
use crate::plan::{LayerPlan, ManifestPlan};
use crate::progress::Event;
use crate::source::blocking;
use crate::spool;

/// Blobs read or sent at the same time.
const BLOBS_AT_ONCE: usize = 4;

/// A blob that waits to be pushed.
pub(super) type Waiting = (Digest, u64, Arc<File>);

/// Reads every blob that stays as it is and that the destination lacks.
pub(super) async fn collect(
    conversion: &Conversion,
    image: &Image,
    results: &LayerResults,
) -> Result<Vec<Waiting>, ConvertError> {
    let mut blobs = Vec::new();
    for node in image.root.walk() {
        let Node::Manifest { manifest, plan, .. } = node else {
            continue;
        };
        blobs.push(&manifest.config);
        match plan {
            ManifestPlan::Copy(_) => blobs.extend(&manifest.layers),
            ManifestPlan::Layers(plans) => {
                let stays = |(layer, plan): &(&Descriptor, &LayerPlan)| {
                    results.replacement(layer, plan).is_none()
                };
                blobs.extend(
                    manifest
                        .layers
                        .iter()
                        .zip(plans)
                        .filter(stays)
                        .map(|(layer, _)| layer),
                );
            }
        }
    }
    fetch(conversion, blobs).await
}

/// Reads `blobs`, each once, unless the destination has them or takes them from the source.
pub(super) async fn fetch(
    conversion: &Conversion,
    blobs: Vec<&Descriptor>,
) -> Result<Vec<Waiting>, ConvertError> {
    let mut seen = HashSet::new();
    // Registries do not hold what is not distributable; its URLs lead to it.
    let wanted = |blob: &&Descriptor| {
        let elsewhere = media_type::is_foreign_layer(&blob.media_type) && !blob.urls.is_empty();
        !elsewhere && seen.insert(blob.digest)
    };
    let blobs: Vec<_> = blobs.into_iter().filter(wanted).collect();
    let read = futures_util::stream::iter(blobs)
        .map(|blob| fetch_one(conversion, blob))
        .buffer_unordered(BLOBS_AT_ONCE);
    let read: Vec<_> = read.try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}

async fn fetch_one(
    conversion: &Conversion,
    blob: &Descriptor,
) -> Result<Option<Waiting>, ConvertError> {
    let Descriptor { digest, size, .. } = *blob;
    if conversion.destination.has_blob(&digest, size).await? {
        return Ok(None);
    }
    if let Some(from) = conversion.source.repository()
        && conversion.destination.mount(&digest, from).await?
    {
        return Ok(None);
    }
    let reader = conversion.source.blob(&digest).await?;
    let dir = conversion.destination.spool_dir();
    let mut file = spool::create(&dir).map_err(|error| ConvertError::Local {
        doing: format!("create a file in {}", dir.display()),
        error,
    })?;
    let cancel = conversion.cancel.clone();
    let file = blocking(move || {
        verified_copy(reader, (digest, size), &mut file, &cancel, &|_| {}).map(|()| file)
    });
    Ok(Some((digest, size, Arc::new(file.await?))))
}

/// Pushes the new layers and the other blobs; how many bytes that were.
pub(super) async fn push(
    conversion: &Conversion,
    results: &LayerResults,
    copied: Vec<Waiting>,
    referrers: Vec<Waiting>,
) -> Result<u64, ConvertError> {
    let mut seen = HashSet::new();
    let all = results.files().chain(copied).chain(referrers);
    let all: Vec<_> = all.filter(|(digest, ..)| seen.insert(*digest)).collect();
    let bytes = all.iter().map(|(_, size, _)| size).sum();
    futures_util::stream::iter(all)
        .map(|(blob, size, file)| async move {
            conversion
                .progress
                .event(&Event::UploadStarted { blob, size });
            let progress = Arc::clone(&conversion.progress);
            let sent = move |sent| progress.event(&Event::UploadAdvanced { blob, sent });
            conversion
                .destination
                .put_blob(blob, size, file, sent)
                .await?;
            conversion.progress.event(&Event::UploadFinished { blob });
            Ok::<_, ConvertError>(())
        })
        .buffer_unordered(BLOBS_AT_ONCE)
        .try_collect::<()>()
        .await?;
    Ok(bytes)
}
