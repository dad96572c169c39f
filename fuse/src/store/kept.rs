//! Chunks that were read from the store's disk and verified, for as long as somebody reads them.
//!
//! Readers ask for a file at a time, and a chunk has many. What the kernel keeps of a device file is no proof that anybody
//! verified it: it reads more than it is asked for when it pleases, fills holes with zeros, and takes what other programs
//! write. So a chunk is read whole and verified, and those bytes, in memory that is our own, are what readers get.

use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError};

use larder_proto::verified::Verified;
use lru::LruCache;

use crate::sync::Mutex;

/// Bytes of chunks that are kept, of all layers: 64 of the usual size, several times as many as are read at once, and
/// a sixth of the memory that a daemon has ([`docs/OPERATIONS.md`]). The last one may be 4 MiB above it.
pub(super) const BYTES_MAX: usize = 16 << 20;

/// Chunks that are kept at most, however small they are: what the table of them takes is a hundredth of the bytes.
const CHUNKS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// A chunk's content.
pub(crate) type Content = Arc<Verified<Vec<u8>>>;

/// Which layer, by a number that is never used again, and which of its chunks.
type Key = (u64, usize);

/// The chunks that are kept.
#[derive(Debug)]
pub(crate) struct Kept(Mutex<State>);

#[derive(Debug)]
struct State {
    chunks: LruCache<Key, One>,
    bytes: usize,
    layers: u64,
}

#[derive(Debug)]
struct One {
    content: Content,
    /// Asked for since the last round.
    lately: bool,
}

impl Kept {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State {
            chunks: LruCache::new(CHUNKS_MAX),
            bytes: 0,
            layers: 0,
        }))
    }

    /// A number for a layer that is opened now.
    pub(super) fn layer(&self) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.layers += 1;
        state.layers
    }

    pub(super) fn get(&self, layer: u64, row: usize) -> Option<Content> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = state.chunks.get_mut(&(layer, row))?;
        one.lately = true;
        Some(one.content.clone())
    }

    /// Keeps a chunk, and lets those go that were read the longest time ago.
    pub(super) fn put(&self, layer: u64, row: usize, content: Content) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes += len(&content);
        let one = One {
            content,
            lately: true,
        };
        if let Some((_, gone)) = state.chunks.push((layer, row), one) {
            state.bytes -= len(&gone.content);
        }
        while state.bytes > BYTES_MAX && state.chunks.len() > 1 {
            let Some((_, gone)) = state.chunks.pop_lru() else {
                break;
            };
            state.bytes -= len(&gone.content);
        }
    }

    /// Lets those go that nobody asked for since the last round.
    pub(crate) fn rest(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while state.chunks.peek_lru().is_some_and(|(_, one)| !one.lately) {
            if let Some((_, gone)) = state.chunks.pop_lru() {
                state.bytes -= len(&gone.content);
            }
        }
        for (_, one) in &mut state.chunks {
            one.lately = false;
        }
    }

    /// Bytes of what is kept.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }
}

fn len(content: &Content) -> usize {
    content.as_slice().len()
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use larder_proto::digest::Algorithm;

    use super::*;

    fn content(byte: u8, len: usize) -> Content {
        let bytes = vec![byte; len];
        let digest = Algorithm::Blake3.digest(&bytes);
        Arc::new(Verified::check(bytes, &digest).unwrap())
    }

    /// Promise: what is kept has a limit, and what was read the longest time ago goes first; one chunk is kept whatever its size.
    #[test]
    fn no_more_is_kept_than_the_limit() {
        let kept = Kept::new();
        let layer = kept.layer();
        for row in 0..200 {
            kept.put(layer, row, content(1, 256 << 10));
            assert!(kept.get(layer, 0).is_some() || row >= 64, "{row}");
            assert!(kept.bytes() <= BYTES_MAX);
        }
        assert!(kept.get(layer, 0).is_some(), "it is read all the time");
        assert!(kept.get(layer, 1).is_none());
        kept.put(layer, 7, content(2, 2 * BYTES_MAX));
        assert_eq!(kept.bytes(), 2 * BYTES_MAX);
        kept.put(layer, 7, content(3, 10));
        assert_eq!(kept.bytes(), 10);
        assert_eq!(kept.get(layer, 7).unwrap().as_slice(), [3; 10]);
        for row in 0..2_000 {
            kept.put(layer, row, content(4, 1));
        }
        assert_eq!(kept.bytes(), CHUNKS_MAX.get());
    }

    /// Promise: what nobody asks for any more goes with the second round; another layer has chunks of its own.
    #[test]
    fn what_rests_is_not_kept() {
        let kept = Kept::new();
        let (one, other) = (kept.layer(), kept.layer());
        kept.put(one, 3, content(1, 100));
        kept.put(other, 3, content(2, 100));
        kept.rest();
        assert_eq!(kept.get(other, 3).unwrap().as_slice(), [2; 100]);
        kept.rest();
        assert!(kept.get(one, 3).is_none());
        assert!(kept.get(other, 3).is_some());
        kept.rest();
        kept.rest();
        assert_eq!(kept.bytes(), 0);
    }
}
