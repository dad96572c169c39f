//! Taking chunks away from a layer, whoever reads it meanwhile.
//!
//! The order is told at [`StoredLayer::read_there`]. Index, metadata image and record stay, so that
//! a layer that is mounted goes on lazily: what is read again is fetched and verified again.

use std::fs::File;
use std::io;
use std::sync::{Arc, PoisonError};

use larder_proto::index::Chunk;

use super::claims::{claim_zeros, may_be_zeros};
use super::presence::ChunkState;
use super::stored::StoredLayer;

impl StoredLayer {
    /// Takes away chunks that nobody read since the hand last passed, about `bytes` of them, each
    /// with its place on the disk; how many bytes that freed. Chunks that were read are passed.
    ///
    /// Nothing of a file that the kernel reads past us.
    pub(crate) fn evict_cold(&self, bytes: u64) -> io::Result<u64> {
        let _alone = self.writing.write().unwrap_or_else(PoisonError::into_inner);
        if self.direct.is_set() {
            return Ok(0);
        }
        let mut cold = Vec::new();
        let mut found = 0;
        for row in self.uses.round() {
            let Some(chunk) = self.index.chunk(row) else {
                continue;
            };
            let is_there = self.presence.state(row) != ChunkState::Absent;
            // Zeros take no room, and would have to be fetched again.
            if is_there && !may_be_zeros(&chunk) && !self.uses.pass(row) {
                cold.push((row, chunk));
                found += u64::from(chunk.len);
            }
            if found >= bytes {
                break;
            }
        }
        cold.sort_by_key(|(row, _)| *row);
        self.take_away(&cold)
    }

    fn take_away(&self, chunks: &[(usize, Chunk)]) -> io::Result<u64> {
        if chunks.is_empty() {
            return Ok(0);
        }
        for (row, _) in chunks {
            self.presence.set_absent(*row);
        }
        self.begin_eviction(true);
        let before = self.measure().device;
        let neighbours = chunks.chunk_by(|(a, _), (b, _)| a + 1 == *b);
        let mut cleared = Ok(());
        for run in neighbours {
            if let (Some((_, first)), Some((_, last))) = (run.first(), run.last()) {
                cleared = cleared.and(self.device.clear(first.offset..last.end()));
            }
        }
        let after = self.measure().device;
        cleared.map(|()| before.saturating_sub(after))
    }

    /// Takes away all chunks, by an empty file in place of the device: the kernel may still read
    /// the old one, which is given back and frees its blocks when nobody has it open any more. The
    /// caller has made sure that nobody mounts the layer meanwhile.
    pub(crate) fn evict_all(&self) -> io::Result<Arc<File>> {
        let _alone = self.writing.write().unwrap_or_else(PoisonError::into_inner);
        for row in self.presence.rows(|state| state != ChunkState::Absent) {
            self.presence.set_absent(row);
        }
        self.begin_eviction(true);
        let last = self.uses.last();
        self.unbind();
        let replaced = self.device.replace(&self.directory().join("device"));
        self.bind();
        let old = replaced?;
        // A new file is not a new use.
        let _ = self.device.file().set_modified(last);
        self.unmark_direct();
        claim_zeros(&self.presence, &self.index);
        self.measure();
        Ok(old)
    }

    /// Forgets a chunk that turned out damaged. A file that the kernel reads past us gets no hole,
    /// but the right bytes over the wrong ones as soon as they come.
    pub(super) fn forget(&self, row: usize, chunk: &Chunk) {
        let was_known = !self.presence.is_guessed(row);
        self.presence.set_absent(row);
        self.begin_eviction(was_known);
        // Where the table rots, it is not known what would be taken away.
        if !self.direct.is_set()
            && self.index.is_in_place(row)
            && let Err(error) = self.device.clear(chunk.offset..chunk.end())
        {
            self.clear_failed(&error);
        }
    }

    /// Lets the kernel read the device past us, if all of it is there and verified; from then on no
    /// chunk of it is taken away singly. Says whether it may.
    pub(crate) fn begin_direct(&self) -> bool {
        let _alone = self.writing.write().unwrap_or_else(PoisonError::into_inner);
        self.presence.all_verified() && self.mark_direct()
    }

    /// Whether the kernel may be reading the device past us.
    pub(crate) fn is_direct(&self) -> bool {
        self.direct.is_set()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use larder_proto::index::open_stored;
    use larder_proto::verified::Verified;
    use larder_test_support::layer::LayerFixture;
    use larder_test_support::tar::{Entry, TarBuilder};

    use super::super::device::Published;
    use super::super::disk::{Disk, StdDisk};
    use super::super::root::{Limits, StoreRoot};
    use super::super::stored::{Checked, NewLayer};
    use super::*;

    const LIMITS: Limits = Limits {
        bytes_max: 0,
        min_free_percent: 0,
    };

    pub(in crate::store) fn fixture() -> LayerFixture {
        let bytes: Vec<u8> = (1..=250).cycle().take(600_000).collect();
        LayerFixture::new(TarBuilder::new().entry(Entry::file("data", bytes)).finish())
    }

    pub(in crate::store) fn layer(
        root: &Path,
        fixture: &LayerFixture,
        disk: Arc<dyn Disk>,
    ) -> (StoreRoot, StoredLayer) {
        let root = StoreRoot::open(root, disk, LIMITS, None).unwrap();
        let (from, len) = (fixture.index.offset, fixture.index.stored_len);
        let place = |at: u64| usize::try_from(at).unwrap();
        let stored = &fixture.blob[place(from)..place(from + len)];
        let new = NewLayer {
            blob: fixture.digest,
            location: fixture.index,
            index: &open_stored(stored, &fixture.index).unwrap(),
            slot: 1,
        };
        let layer = root.add(&new).unwrap();
        (root, layer)
    }

    pub(in crate::store) fn publish(
        layer: &StoredLayer,
        fixture: &LayerFixture,
        row: usize,
    ) -> Published {
        let chunk = fixture.chunks[row];
        let place = |at: u64| usize::try_from(at).unwrap();
        let content = fixture.tar[place(chunk.offset)..place(chunk.end())].to_vec();
        let content = Verified::check(content, &chunk.content).unwrap();
        layer.publish(row, &chunk, &content, true)
    }

    /// Writes, doubts and verifies every second row until the end.
    fn write(layer: &StoredLayer, fixture: &LayerFixture, from: usize, is_over: &AtomicBool) {
        for row in (from..fixture.chunks.len()).step_by(2).cycle() {
            if is_over.load(Ordering::Relaxed) {
                return;
            }
            match layer.presence().state(row) {
                ChunkState::Absent => {
                    assert_eq!(publish(layer, fixture, row), Published::Stored);
                }
                // As after an error of the disk.
                ChunkState::Verified => layer.presence().set_claimed(row),
                ChunkState::Claimed => {
                    let checked = layer.verify(row, &fixture.chunks[row]);
                    assert_ne!(checked, Checked::Damaged, "{row}");
                }
            }
        }
    }

    /// Evicts until the end; the bytes that freed.
    fn evict(layer: &StoredLayer, is_over: &AtomicBool) -> u64 {
        let mut freed = 0;
        for round in 1.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            freed += layer.evict_cold(200_000).unwrap();
            if round % 50 == 0 {
                drop(layer.evict_all().unwrap());
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        freed
    }

    /// Reads until the end; how many reads got their bytes, and how many were told that they did not.
    fn read(layer: &StoredLayer, fixture: &LayerFixture, is_over: &AtomicBool) -> (u64, u64) {
        let (mut right, mut refused) = (0, 0);
        let mut found = vec![0; fixture.tar.len()];
        let place = |at: u64| usize::try_from(at).unwrap();
        for row in (0..fixture.chunks.len()).cycle() {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let chunk = &fixture.chunks[row];
            let (from, to) = (place(chunk.offset), place(chunk.end()));
            let read = layer.read_there(row..=row, |device| {
                device.read(&mut found[from..to], chunk.offset);
                Ok(())
            });
            if read.unwrap() {
                assert!(found[from..to] == fixture.tar[from..to], "chunk {row}");
                right += 1;
            } else {
                refused += 1;
            }
        }
        (right, refused)
    }

    /// Promise: however reading, writing, verifying and evicting of the same chunks meet, what a read
    /// takes for a chunk's bytes are its bytes and never the zeros of a hole.
    #[test]
    fn a_chunk_that_is_evicted_while_it_is_read_is_never_read_as_zeros() {
        let scratch = tempfile::tempdir().unwrap();
        let fixture = fixture();
        let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
        let is_over = AtomicBool::new(false);
        let (layer, fixture, is_over) = (&layer, &fixture, &is_over);
        let (right, refused, evicted) = std::thread::scope(|scope| {
            let writers =
                [0, 1].map(|from| scope.spawn(move || write(layer, fixture, from, is_over)));
            let evictor = scope.spawn(move || evict(layer, is_over));
            let readers = [0, 1].map(|_| scope.spawn(move || read(layer, fixture, is_over)));
            std::thread::sleep(Duration::from_secs(3));
            is_over.store(true, Ordering::Relaxed);
            for writer in writers {
                writer.join().unwrap();
            }
            let [one, other] = readers.map(|reader| reader.join().unwrap());
            (one.0 + other.0, one.1 + other.1, evictor.join().unwrap())
        });
        let counts = format!("{right} right, {refused} refused, {evicted} bytes evicted");
        assert!(right > 100 && refused > 100 && evicted > 0, "{counts}");
    }

    /// Promise: what the kernel may read past us gets no hole, whatever is evicted or found damaged;
    /// only the whole file is replaced, and the old one keeps its bytes.
    #[test]
    fn a_file_the_kernel_reads_gets_no_hole() {
        let scratch = tempfile::tempdir().unwrap();
        let fixture = fixture();
        let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
        assert!(!layer.begin_direct(), "it is not complete");
        for row in 0..fixture.chunks.len() {
            publish(&layer, &fixture, row);
        }
        assert!(layer.begin_direct());
        for _ in 0..3 {
            assert_eq!(layer.evict_cold(u64::MAX).unwrap(), 0);
        }
        let chunk = &fixture.chunks[2];
        let device = layer.device.file();
        StdDisk.write_at(&device, b"rot", chunk.offset + 9).unwrap();
        layer.presence().set_claimed(2);
        assert_eq!(layer.verify(2, chunk), Checked::Damaged);
        let mut found = [0; 3];
        StdDisk
            .read_at(&device, &mut found, chunk.offset + 9)
            .unwrap();
        assert_eq!(
            &found, b"rot",
            "a hole would read as zeros, which nobody notices"
        );
        assert_eq!(publish(&layer, &fixture, 2), Published::Stored);
        let old = layer.evict_all().unwrap();
        assert!(!layer.is_direct());
        let mut found = vec![0; fixture.tar.len()];
        StdDisk.read_at(&old, &mut found, 0).unwrap();
        assert!(
            found == fixture.tar,
            "the right bytes went over the wrong ones"
        );
    }

    /// Promise: where an eviction could not be written down, its hole is no damage; changed bytes are.
    #[test]
    fn a_chunk_that_was_evicted_unnoted_is_no_damage() {
        let scratch = tempfile::tempdir().unwrap();
        let fixture = fixture();
        let (_root, layer) = layer(scratch.path(), &fixture, Arc::new(StdDisk));
        let device = layer.device.file();
        for row in [1, 2] {
            publish(&layer, &fixture, row);
        }
        // As the next daemon finds them.
        let presence = layer.presence();
        let present = presence.encode();
        let known = presence.encode_known(&present);
        for row in [1, 2] {
            presence.set_absent(row);
            presence.claim(row);
        }
        assert!(presence.know(&known, &present));
        let [hole, rotten] = [1, 2].map(|row| &fixture.chunks[row]);
        // Whole blocks, as evictions leave them.
        StdDisk.punch(&device, hole.offset..hole.end()).unwrap();
        StdDisk
            .write_at(&device, b"rot", rotten.offset + 9)
            .unwrap();
        assert_eq!(layer.verify(2, rotten), Checked::Damaged);
        assert_eq!(layer.verify(1, hole), Checked::Evicted);
        assert_eq!(layer.damaged(), 1);
        assert_eq!(layer.presence().state(1), ChunkState::Absent);
    }
}
