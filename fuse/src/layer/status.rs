//! What there is to tell about a layer.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use larder_proto::digest::Digest;

use super::{Layer, LayerId, Trust};
use crate::store::{ChunkState, OnDisk};

/// How much of a layer is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    /// Some chunks will be fetched when they are read.
    Lazy,
    /// All are in the store.
    Complete,
}

/// A layer at one moment.
#[derive(Debug, Clone)]
pub struct LayerStatus {
    /// Its name.
    pub id: LayerId,
    /// Digest of its blob.
    pub blob: Digest,
    /// Length of the tar, bytes.
    pub bytes_total: u64,
    /// Bytes of the tar that are in the store.
    pub bytes_present: u64,
    /// Whether that is all.
    pub state: LayerState,
    /// Whether the index was found true, in this run or a former one.
    pub proven: bool,
    /// Whether all of it was verified in this run, too: the store file is mounted directly.
    pub direct: bool,
    /// Why there are no new mounts of it, if so.
    pub quarantined: Option<String>,
    /// What its files take on the disk.
    pub on_disk: OnDisk,
    /// When it was last read.
    pub last_used: SystemTime,
    /// Whether it is mounted, or the kernel has anything of it open.
    pub in_use: bool,
    /// The names it is pinned by.
    pub pins: Vec<String>,
    /// Its sources in order.
    pub sources: Vec<SourceStatus>,
}

/// What came of asking a source, since it was set.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    /// Its name.
    pub name: String,
    /// Bytes of the blob that came and were right.
    pub bytes: u64,
    /// Of those, which host sent how many: a registry may have mirrors. At most eight are told apart.
    pub hosts: Vec<(String, u64)>,
    /// Range requests made.
    pub requests: u64,
    /// Requests that brought nothing usable.
    pub failures: u64,
    /// Why the latest of them failed.
    pub last_failure: Option<String>,
}

impl Layer {
    /// How long its index has been in the store, by the clock on the wall.
    pub fn age(&self) -> Duration {
        let index = self.stored().directory().join("index");
        let came = std::fs::metadata(index).and_then(|found| found.modified());
        let age = came.ok().and_then(|came| came.elapsed().ok());
        age.unwrap_or_default()
    }

    /// What there is to tell now.
    pub fn status(&self) -> LayerStatus {
        let stored = self.stored();
        let index = stored.index();
        let there = stored.presence().rows(|state| state != ChunkState::Absent);
        let bytes_present = there
            .filter_map(|row| index.chunk(row))
            .map(|chunk| u64::from(chunk.len))
            .sum();
        let state = if bytes_present == index.tar_len() {
            LayerState::Complete
        } else {
            LayerState::Lazy
        };
        let sources = self.0.fetcher.sources().all();
        let sources = sources.iter().map(|tracked| {
            let (tally, delivered) = (tracked.tally(), tracked.deliveries());
            SourceStatus {
                name: tracked.source.name().to_owned(),
                bytes: delivered.bytes,
                hosts: delivered.hosts,
                requests: tally.requests,
                failures: tally.failures,
                last_failure: tally.last_failure,
            }
        });
        let plane = self.0.plane.upgrade();
        LayerStatus {
            id: self.id(),
            blob: self.blob(),
            bytes_total: index.tar_len(),
            bytes_present,
            state,
            proven: self.trust() == Trust::Proven,
            direct: self.0.proven.load(Ordering::Acquire),
            quarantined: self.quarantine(),
            on_disk: stored.measure(),
            last_used: stored.last_used(),
            in_use: plane.as_ref().is_some_and(|plane| plane.is_used(self)),
            pins: plane.map_or_else(Vec::new, |plane| plane.pins(&self.id())),
            sources: sources.collect(),
        }
    }
}
