//! The stage that hashes the tar, walks it, and cuts it into chunks.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender};

use larder_proto::digest::Digest;
use larder_proto::scan::{LayerScan, ScanError, ScanOptions, ScannedLayer};
use sha2::Digest as _;

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
    tar: &Receiver<Vec<u8>>,
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
        cutter.push(&bytes);
        cutter.submit(&mut cuts, workers, frames)?;
    }
    let layer = match (walk, stopped) {
        (Some((scan, frames)), _) => {
            let layer = scan.finish(&mut cuts);
            if layer.is_ok() {
                cutter.submit(&mut cuts, workers, &frames)?;
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

fn digest(hasher: sha2::Sha256) -> Digest {
    Digest::from_bytes(hasher.finalize().into())
}

/// Holds the tar's bytes from the last cut on.
#[derive(Debug, Default)]
struct Cutter {
    start: u64,
    bytes: Vec<u8>,
}

impl Cutter {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Hands over the chunks that end at `cuts`, emptying the list. `None`: nobody takes them.
    fn submit(
        &mut self,
        cuts: &mut Vec<u64>,
        workers: &Workers,
        frames: &SyncSender<Pending>,
    ) -> Option<()> {
        let mut from = 0;
        for cut in cuts.drain(..) {
            let to = usize::try_from(cut - self.start).expect("cuts lie within the fed bytes");
            let chunk = self.bytes[from..to].to_vec();
            from = to;
            frames.send(workers.submit(chunk)).ok()?;
        }
        self.bytes.drain(..from);
        self.start += from as u64;
        Some(())
    }
}
