//! Cutting the tar into chunks without copying it.

use std::collections::VecDeque;

use bytes::Bytes;

/// Holds the tar's bytes from the last cut on, in the buffers they were read into.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    start: u64,
    bytes: VecDeque<Bytes>,
}

/// The bytes of one chunk: parts of the buffers the tar was read into.
#[derive(Debug)]
pub(super) struct Chunk {
    parts: Vec<Bytes>,
    len: usize,
}

impl Cutter {
    /// Takes the next bytes of the tar.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.bytes.push_back(bytes);
    }

    /// The chunk from the last cut to `end`, which must lie within the bytes taken.
    pub(super) fn cut(&mut self, end: u64) -> Chunk {
        let len = usize::try_from(end - self.start).expect("CHUNK_BYTES_MAX fits a usize");
        self.start = end;
        let mut parts = Vec::new();
        let mut missing = len;
        while missing > 0 {
            let first = self.bytes.front_mut();
            let first = first.expect("cuts lie within the fed bytes");
            if first.len() > missing {
                parts.push(first.split_to(missing));
                break;
            }
            missing -= first.len();
            parts.extend(self.bytes.pop_front());
        }
        Chunk { parts, len }
    }
}

impl Chunk {
    /// Its length, bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Its bytes in one piece; gathered in `scratch` if they lie in several.
    pub(super) fn contiguous<'a>(&'a self, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        if let [only] = self.parts.as_slice() {
            return only;
        }
        scratch.clear();
        for part in &self.parts {
            scratch.extend_from_slice(part);
        }
        scratch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: however the tar comes, chunks hold its bytes between the cuts.
    #[test]
    fn chunks_hold_the_bytes_between_the_cuts() {
        let tar: Vec<u8> = (0..=255).collect();
        for buffer in [1, 7, 64, 100, 256] {
            let mut cutter = Cutter::default();
            for bytes in tar.chunks(buffer) {
                cutter.push(Bytes::copy_from_slice(bytes));
            }
            let (mut from, mut scratch) = (0, vec![9; 3]);
            for to in [1, 64, 128, 200, 256] {
                let chunk = cutter.cut(to as u64);
                assert_eq!(chunk.len(), to - from);
                assert_eq!(chunk.contiguous(&mut scratch), &tar[from..to]);
                from = to;
            }
        }
    }
}
