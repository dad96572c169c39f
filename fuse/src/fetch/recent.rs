//! Chunks that arrived while the store had no room.

use std::sync::{Arc, PoisonError};

use larder_proto::digest::Digest;
use larder_proto::verified::Verified;
use lru::LruCache;

use crate::sync::Mutex;

/// Bytes of such chunks kept, for all layers together. A reader takes a chunk in pieces, one
/// request of the kernel each; a few dozen chunks serve all of them with one fetch.
const BYTES_MAX: usize = 8 << 20;

/// The last few of them.
#[derive(Debug)]
pub(crate) struct Recent(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    chunks: LruCache<(Digest, usize), Arc<Verified<Vec<u8>>>>,
    bytes: usize,
}

impl Recent {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Kept {
            chunks: LruCache::unbounded(),
            bytes: 0,
        }))
    }

    pub(super) fn get(&self, layer: &Digest, row: usize) -> Option<Arc<Verified<Vec<u8>>>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.chunks.is_empty() {
            return None;
        }
        kept.chunks.get(&(*layer, row)).cloned()
    }

    pub(super) fn put(&self, layer: Digest, row: usize, content: Arc<Verified<Vec<u8>>>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += content.as_slice().len();
        if let Some((_, old)) = kept.chunks.push((layer, row), content) {
            kept.bytes -= old.as_slice().len();
        }
        while kept.bytes > BYTES_MAX {
            let Some((_, old)) = kept.chunks.pop_lru() else {
                break;
            };
            kept.bytes -= old.as_slice().len();
        }
    }

    /// Lets go of a chunk that was stored from here. The others stay: who reads them now stores them, too.
    pub(super) fn forget(&self, layer: &Digest, row: usize) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = kept.chunks.pop(&(*layer, row)) {
            kept.bytes -= old.as_slice().len();
        }
    }

    /// Lets go of all of them: what is fetched finds room in the store again.
    pub(super) fn clear(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.bytes > 0 {
            kept.chunks.clear();
            kept.bytes = 0;
        }
    }
}
