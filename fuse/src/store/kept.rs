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

/// Buffers of chunks that went, for those that come: as many as threads read at once on a small node. Memory that is new costs
/// about as much as the chunk's digest.
const SPARE_MAX: usize = 4;

/// Bytes of a spare buffer at most: a chunk of the usual size, which ends where a file does. Larger ones are rare.
const SPARE_BYTES_MAX: usize = 1 << 20;

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
    spare: Vec<Vec<u8>>,
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
            spare: Vec::new(),
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
            state.let_go(gone);
        }
        while state.bytes > BYTES_MAX && state.chunks.len() > 1 {
            let Some((_, gone)) = state.chunks.pop_lru() else {
                break;
            };
            state.let_go(gone);
        }
    }

    /// A buffer of `len` bytes of whatever it held before.
    pub(super) fn buffer(&self, len: usize) -> Vec<u8> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = state.spare.pop().unwrap_or_default();
        drop(state);
        buffer.resize(len, 0);
        buffer
    }

    /// Lets those go that nobody asked for since the last round.
    pub(crate) fn rest(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while state.chunks.peek_lru().is_some_and(|(_, one)| !one.lately) {
            if let Some((_, gone)) = state.chunks.pop_lru() {
                state.let_go(gone);
            }
        }
        state.spare.clear();
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

impl State {
    /// Of a chunk that nobody reads just now, the buffer stays for another one.
    fn let_go(&mut self, gone: One) {
        self.bytes -= len(&gone.content);
        if self.spare.len() < SPARE_MAX
            && let Ok(content) = Arc::try_unwrap(gone.content)
        {
            let buffer = content.into_inner();
            if buffer.capacity() <= SPARE_BYTES_MAX {
                self.spare.push(buffer);
            }
        }
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

    /// Promise: buffers of chunks that went are used again, a few; one that is still read is not, nor do they stay when all rests.
    #[test]
    fn buffers_are_used_again() {
        let kept = Kept::new();
        let layer = kept.layer();
        kept.put(layer, 0, content(7, BYTES_MAX / 16));
        let read = kept.get(layer, 0).unwrap();
        for row in 1..40 {
            kept.put(layer, row, content(1, BYTES_MAX / 16));
        }
        assert!(kept.get(layer, 0).is_none());
        let spare = |bytes: u8| kept.buffer(9).starts_with(&[bytes]);
        assert!((0..SPARE_MAX).all(|_| spare(1)));
        assert!(spare(0));
        assert_eq!(read.as_slice()[..9], [7; 9]);
        for row in 0..40 {
            kept.put(layer, row, content(1, BYTES_MAX / 16));
        }
        (0..2).for_each(|_| kept.rest());
        assert!(spare(0));
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
