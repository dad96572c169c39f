//! Decoding indexes in bounded memory.
//!
//! A stored index of a few kilobytes may decompress to [`limits::INDEX_BYTES_MAX`], and an image may
//! have hundreds of them; containerd prepares the layers of several images at a time.

use std::sync::Arc;

use bytes::Bytes;
use larder_proto::annotation::IndexLocation;
use larder_proto::index::{StoredError, open_stored};
use larder_proto::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Decoded indexes in memory at once, bytes: one of the largest. Those of real layers, 1 % of their
/// tars, all fit together.
const DECODED_BYTES_MAX: u64 = limits::INDEX_BYTES_MAX;

/// Bytes that one permit stands for.
const UNIT: u64 = 4096;

/// The memory for decoded indexes.
#[derive(Debug)]
pub(super) struct Decoding(Arc<Semaphore>);

/// A decoded index, verified against its location, and the memory it was granted.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) bytes: Vec<u8>,
    _memory: OwnedSemaphorePermit,
}

impl Default for Decoding {
    fn default() -> Self {
        Self(Arc::new(
            Semaphore::new(permits(DECODED_BYTES_MAX) as usize),
        ))
    }
}

impl Decoding {
    /// Decodes `stored`, on a thread that may take its time, once there is room for the result.
    /// `None` when the runtime goes away.
    pub(super) async fn open(
        &self,
        stored: Bytes,
        location: IndexLocation,
    ) -> Option<Result<Decoded, StoredError>> {
        let wanted = permits(location.len.min(DECODED_BYTES_MAX));
        let memory = Arc::clone(&self.0).acquire_many_owned(wanted).await.ok()?;
        let opened = tokio::task::spawn_blocking(move || open_stored(&stored, &location));
        let opened = opened.await.ok()?;
        Some(opened.map(|bytes| Decoded {
            bytes,
            _memory: memory,
        }))
    }
}

fn permits(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_proto::digest::Digest;

    fn bomb(len: u64) -> (Bytes, IndexLocation) {
        let zeros = vec![0; usize::try_from(len).unwrap()];
        let stored = zstd::bulk::compress(&zeros, 1).unwrap();
        let location = IndexLocation {
            offset: 0,
            stored_len: stored.len() as u64,
            len,
            digest: Digest::of(&stored),
        };
        (stored.into(), location)
    }

    /// Promise: small indexes that become large ones wait for each other's memory.
    #[tokio::test]
    async fn large_indexes_are_decoded_one_after_another() {
        let decoding = Decoding::default();
        let (stored, location) = bomb(DECODED_BYTES_MAX - UNIT);
        assert!(stored.len() < 100_000);
        let first = decoding
            .open(stored.clone(), location)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(first.bytes.len() as u64, location.len);
        let (small, small_location) = bomb(UNIT);
        let beside = decoding
            .open(small.clone(), small_location)
            .await
            .unwrap()
            .unwrap();
        let waiting = decoding.open(stored, location);
        tokio::pin!(waiting);
        let soon = std::time::Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, &mut waiting).await.is_err());
        drop((first, beside));
        assert!(waiting.await.unwrap().is_ok());
    }
}
