//! Bytes that the disk changed: found before they are read, where that can be.
//!
//! What we read ourselves is verified whenever it comes from the disk. A file that the
//! kernel reads past us cannot be looked at before each of its reads; it is read through in the
//! background, and what is damaged is fetched again and written over the wrong bytes, while new mounts
//! go through FUSE. Metadata images are read past us always, and are written over from the index; an index is
//! mapped, and fetched again. See `docs/adr/0009-bounded-store.md`.

use std::fs::File;
use std::path::Path;
use std::sync::Weak;
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::Plane;
use crate::fetch::Priority;
use crate::layer::Layer;
use crate::store::Checked;

/// Pause after each chunk: at 256 KiB a chunk, at most 5 MB/s of the disk go to this.
const PAUSE: Duration = Duration::from_millis(50);

/// How long after a start a round that is due begins: containers start then, and need the disk.
const FIRST: Duration = Duration::from_mins(10);

/// When a round ended last, as the time of this file of the root: a daemon that is followed by another one every day would never begin
/// one by its own clock.
const SCRUBBED: &str = "scrubbed";

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
    let Some(root) = plane.upgrade().map(|plane| plane.store.root().to_owned()) else {
        return;
    };
    let place = root.join(SCRUBBED);
    let mut pause = due(&place, every, SystemTime::now());
    loop {
        tokio::time::sleep(std::mem::replace(&mut pause, every)).await;
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
        // Where it cannot be noted, on a full disk, the next daemon begins sooner than it needs to.
        let place = place.clone();
        let note = move || File::create(place)?.set_modified(SystemTime::now());
        drop(tokio::task::spawn_blocking(note).await);
    }
}

/// How long from `now` until a round is due, of which the last one is noted at `place`.
fn due(place: &Path, every: Duration, now: SystemTime) -> Duration {
    let noted = place.metadata().and_then(|found| found.modified());
    // A clock that was set back since is no reason to wait for longer than ever.
    let ago = noted.map(|noted| now.duration_since(noted).unwrap_or_default());
    let left = ago.map(|ago| every.saturating_sub(ago)).unwrap_or_default();
    left.max(every.min(FIRST))
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

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use super::*;

    /// Promise: daemons that follow each other sooner than a round is due do not put it off; none begins right at the start, and a
    /// clock that was set back delays it by one round at most.
    #[test]
    fn a_round_is_due_whoever_ended_the_last_one() {
        const HOUR: Duration = Duration::from_hours(1);
        let scratch = tempfile::tempdir().unwrap();
        let (place, now) = (scratch.path().join(SCRUBBED), SystemTime::now());
        assert_eq!(due(&place, 24 * HOUR, now), FIRST);
        let file = File::create(&place).unwrap();
        for (noted, left) in [
            (now - 20 * HOUR, 4 * HOUR),
            (now - 24 * HOUR, FIRST),
            (now - 900 * HOUR, FIRST),
            (now + 900 * HOUR, 24 * HOUR),
        ] {
            file.set_modified(noted).unwrap();
            assert_eq!(due(&place, 24 * HOUR, now), left);
        }
        assert_eq!(
            due(&place, Duration::from_secs(1), now),
            Duration::from_secs(1)
        );
    }
}
