//! The stage that hashes the tar, walks it, and cuts it into chunks.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender};

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_proto::scan::{LayerScan, ScanError, ScanOptions, ScannedLayer};
use sha2::Digest as _;

use super::cutter::Cutter;
use super::workers::{Frame, Workers};

/// What the writer receives for each chunk, in tar order: where its frame will arrive.
pub(super) type Pending = Receiver<io::Result<Frame>>;

/// What the whole tar turned out to be.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) diff_id: Digest,
    pub(super) layer: Result<ScannedLayer, ScanError>,
}

/// Consumes the tar. `None`: the writer is gone, so there is nothing to scan for.
///
/// After an entry that cannot be represented the rest is still hashed: the layer will be copied,
/// and that must not let a wrong diffID through.
pub(super) fn scan(
    tar: &Receiver<Bytes>,
    workers: &Workers,
    frames: SyncSender<Pending>,
) -> Option<Scanned> {
    let mut hasher = sha2::Sha256::new();
    let options = ScanOptions {
        chunk_target: workers.options().chunk_target(),
    };
    let mut walk = Some((LayerScan::new(options), frames));
    let mut stopped = None;
    let mut cutter = Cutter::default();
    let mut cuts = Vec::new();
    for bytes in tar {
        hasher.update(&bytes);
        let Some((scan, frames)) = &mut walk else {
            continue;
        };
        if let Err(error) = scan.feed(&bytes, &mut cuts) {
            if matches!(error, ScanError::Malformed { .. }) {
                return Some(Scanned {
                    diff_id: digest(hasher),
                    layer: Err(error),
                });
            }
            stopped = Some(error);
            // Dropping the sender ends the writer.
            walk = None;
            continue;
        }
        cutter.push(bytes);
        submit(&mut cutter, &mut cuts, workers, frames)?;
    }
    let layer = match (walk, stopped) {
        (Some((scan, frames)), _) => {
            let layer = scan.finish(&mut cuts);
            if layer.is_ok() {
                submit(&mut cutter, &mut cuts, workers, &frames)?;
            }
            layer
        }
        (None, Some(error)) => Err(error),
        (None, None) => return None,
    };
    Some(Scanned {
        diff_id: digest(hasher),
        layer,
    })
}

/// Hands over the chunks that end at `cuts`, emptying the list. `None`: nobody takes them.
fn submit(
    cutter: &mut Cutter,
    cuts: &mut Vec<u64>,
    workers: &Workers,
    frames: &SyncSender<Pending>,
) -> Option<()> {
    for cut in cuts.drain(..) {
        frames.send(workers.submit(cutter.cut(cut))).ok()?;
    }
    Some(())
}

fn digest(hasher: sha2::Sha256) -> Digest {
    Digest::from_bytes(hasher.finalize().into())
}
