//! Bytes that the disk changed: found before they are read, where that can be.
//!
//! What we read ourselves is verified again before its first use of every hour. A file that the
//! kernel reads past us cannot be looked at before each of its reads; it is read through in the
//! background, and what is damaged is fetched again and written over the wrong bytes, while new mounts
//! go through FUSE. Metadata images are read past us always, and are written over from the index; an index is
//! mapped, and fetched again. See `docs/adr/0009-bounded-store.md`.

use std::sync::Weak;
use std::time::Duration;

use tracing::{info, warn};

use super::Plane;
use crate::fetch::Priority;
use crate::layer::Layer;
use crate::store::Checked;

/// Pause after each chunk: at 256 KiB a chunk, at most 5 MB/s of the disk go to this.
const PAUSE: Duration = Duration::from_millis(50);

/// Lets what was verified long ago be verified again, until the plane is gone. What a daemon before
/// verified may be due sooner than what this one does.
pub(super) async fn expire_now_and_then(plane: Weak<Plane>, first: Duration, every: Duration) {
    let mut next = first;
    loop {
        tokio::time::sleep(std::mem::replace(&mut next, every)).await;
        let Some(plane) = plane.upgrade() else { return };
        for layer in plane.lock_layers().values() {
            layer.stored().presence().expire();
        }
    }
}

/// Reads through what the kernel reads past us, until the plane is gone.
pub(super) async fn scrub_now_and_then(plane: Weak<Plane>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let layers: Vec<Layer> = {
            let Some(plane) = plane.upgrade() else { return };
            plane.lock_layers().values().cloned().collect()
        };
        for layer in layers {
            tokio::time::sleep(every.min(PAUSE)).await;
            // First: the metadata is mended from it.
            scrub_index(&plane, &layer).await;
            scrub_metadata(&layer).await;
            if layer.stored().is_direct() {
                scrub(&layer, every.min(PAUSE)).await;
            }
        }
    }
}

async fn scrub_index(plane: &Weak<Plane>, layer: &Layer) {
    let stored = layer.stored().clone();
    let looked = tokio::task::spawn_blocking(move || stored.is_index_right()).await;
    let Some(plane) = plane.upgrade().filter(|_| matches!(looked, Ok(false))) else {
        return;
    };
    layer.0.fetcher.context().counts.damage();
    match plane.mend_index(layer).await {
        Ok(()) => warn!(
            layer = %layer.blob(),
            "the disk changed the index of a layer; it was fetched again and is right. Reads of the layer may have \
             failed meanwhile: see to the disk"
        ),
        Err(error) => warn!(
            layer = %layer.blob(), %error,
            "the disk changed the index of a layer, and it cannot be fetched now: reads of the layer may fail. Reload \
             the service when its registry is there, and see to the disk"
        ),
    }
}

async fn scrub_metadata(layer: &Layer) {
    let own = layer.clone();
    let look = move || own.stored().mend_metadata(|key| own.patch_again(key));
    let looked = tokio::task::spawn_blocking(look).await;
    for (path, mended) in looked.unwrap_or_default() {
        layer.0.fetcher.context().counts.damage();
        let path = path.display();
        match mended {
            Ok(()) => warn!(
                layer = %layer.blob(), %path,
                "the disk changed metadata that the kernel reads directly; it is right again. What was seen of it \
                 meanwhile was wrong: restart the containers of the image, and see to the disk"
            ),
            Err(error) => warn!(
                layer = %layer.blob(), %path, %error,
                "the disk changed metadata that the kernel reads directly; the next daemon mends it: reload the \
                 service, then restart the containers of the image, and see to the disk"
            ),
        }
    }
}

async fn scrub(layer: &Layer, pause: Duration) {
    for row in 0..layer.stored().index().chunk_count() {
        tokio::time::sleep(pause).await;
        let stored = layer.stored().clone();
        let look = move || Some(stored.scrub(row, &stored.index().chunk(row)?));
        match tokio::task::spawn_blocking(look).await {
            Ok(Some(Checked::Damaged)) => {}
            Ok(_) => continue,
            Err(_) => return,
        }
        warn!(
            layer = %layer.blob(), chunk = row,
            "the disk changed a chunk that the kernel reads directly; fetching it again. What was read of \
             it meanwhile was wrong: restart the containers of the image, and see to the disk"
        );
        let fetcher = &layer.0.fetcher;
        let came = fetcher
            .request(row..row + 1, Priority::Background)
            .stored()
            .await;
        if let Err(error) = came {
            warn!(layer = %layer.blob(), chunk = row, %error, "it cannot be fetched now");
            continue;
        }
        info!(layer = %layer.blob(), chunk = row, "the chunk is right again");
    }
}
