//! What the store says of its chunks, under the orders of events that shuttle comes to.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use larder_proto::index::Chunk;
use larder_proto::verified::Verified;
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};
use shuttle::rand::Rng;
use shuttle::thread;

use super::presence::{ChunkState, Presence};
use super::{Disk, NewLayer, Published, StdDisk, StoreRoot};
use crate::sync::{Mutex, schedules};

const ROWS: usize = 3;

/// Promise: whatever is noted at once of some chunks, afterwards the bits are what was noted last and
/// the layer counts as complete exactly when all of them are there.
#[test]
fn a_layer_is_complete_exactly_when_all_its_chunks_are_there() {
    schedules(|| {
        let presence = Arc::new(Presence::empty(ROWS));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let presence = presence.clone();
                thread::spawn(move || {
                    for _ in 0..3 {
                        let row = shuttle::rand::thread_rng().gen_range(0..ROWS);
                        match shuttle::rand::thread_rng().gen_range(0..4) {
                            0 => presence.set_absent(row),
                            1 => presence.set_claimed(row),
                            _ => presence.set_verified(row),
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let verified = presence.rows(|state| state == ChunkState::Verified).count();
        assert_eq!(
            presence.all_verified(),
            verified == ROWS,
            "{verified} of {ROWS}"
        );
        let again = Presence::decode(&presence.encode(), ROWS).unwrap();
        let known = |presence: &Presence| {
            presence
                .rows(|state| state != ChunkState::Absent)
                .collect::<Vec<_>>()
        };
        assert_eq!(known(&again), known(&presence));
    });
}

/// A disk that knows which chunks of one layer it was given, and which of them it keeps for sure.
#[derive(Debug)]
struct Noting {
    chunks: Vec<Chunk>,
    state: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    device: Option<i32>,
    given: BTreeSet<usize>,
    durable: BTreeSet<usize>,
    told: BTreeSet<usize>,
}

impl Disk for Noting {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        StdDisk.write_at(file, bytes, offset)?;
        let mut state = self.state.lock().unwrap();
        if state.device == Some(file.as_raw_fd()) {
            // Content without zeros is written by one call.
            let row = self
                .chunks
                .iter()
                .position(|chunk| chunk.end() == offset + bytes.len() as u64);
            state.given.extend(row);
        }
        Ok(())
    }

    fn sync_data(&self, _: &File) -> io::Result<()> {
        let at_the_beginning = self.state.lock().unwrap().given.clone();
        // What is given to the disk meanwhile may be lost.
        thread::yield_now();
        self.state.lock().unwrap().durable.extend(at_the_beginning);
        Ok(())
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if path.ends_with("present") {
            let presence = Presence::decode(bytes, self.chunks.len()).unwrap();
            let mut state = self.state.lock().unwrap();
            state.told = presence.rows(|chunk| chunk != ChunkState::Absent).collect();
            let early: Vec<_> = state.told.difference(&state.durable).collect();
            assert!(
                early.is_empty(),
                "chunks {early:?} are told before they are durable"
            );
        }
        StdDisk.replace(path, bytes)
    }
}

/// Promise: the bits on the disk never speak of a chunk whose bytes a power cut could still take, and
/// when all is quiet, they speak of all of them.
#[test]
fn no_bit_reaches_the_disk_before_its_bytes() {
    let file = |name: &str| Entry::file(name, vec![name.as_bytes()[0]; 65_536]);
    let tar = TarBuilder::new().entry(file("a")).entry(file("b")).finish();
    let fixture = LayerFixture::new(tar);
    let place = |at: u64| usize::try_from(at).unwrap();
    let stored = &fixture.blob[place(fixture.index.offset)..][..place(fixture.index.stored_len)];
    let index = larder_proto::index::open_stored(stored, &fixture.index).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    schedules(move || {
        // The files of `a` and `b`; the other chunks have zeros, or nothing else, which needs no disk.
        let (whole, other): (Vec<_>, Vec<_>) =
            (0..fixture.chunks.len()).partition(|&row| fixture.chunks[row].len >= 65_536);
        assert_eq!(whole.len(), 2);
        let disk = Arc::new(Noting {
            chunks: fixture.chunks.clone(),
            state: Mutex::new(Kept {
                durable: other.into_iter().collect(),
                ..Kept::default()
            }),
        });
        let directory = scratch
            .path()
            .join("store")
            .join(fixture.index.digest.hex());
        for left in ["device", "present"] {
            drop(std::fs::remove_file(directory.join(left)));
        }
        let root = StoreRoot::open(scratch.path(), disk.clone(), 0, None).unwrap();
        let layer = root.add(&NewLayer {
            blob: fixture.digest,
            location: fixture.index,
            index: &index,
            slot: 1,
        });
        let layer = Arc::new(layer.unwrap());
        disk.state.lock().unwrap().device = Some(layer.device_file().as_raw_fd());
        let publishing = whole.iter().map(|&row| {
            let (layer, chunk) = (layer.clone(), fixture.chunks[row]);
            let content = fixture.tar[place(chunk.offset)..place(chunk.end())].to_vec();
            thread::spawn(move || {
                let content = Verified::check(content, &chunk.content).unwrap();
                assert_eq!(layer.publish(row, &chunk, &content), Published::Stored);
            })
        });
        let syncing = layer.clone();
        let syncing = thread::spawn(move || (0..2).for_each(|_| syncing.sync().unwrap()));
        for publisher in publishing.collect::<Vec<_>>() {
            publisher.join().unwrap();
        }
        syncing.join().unwrap();
        layer.sync().unwrap();
        let told = &disk.state.lock().unwrap().told;
        assert!(
            whole.iter().all(|row| told.contains(row)),
            "{told:?} of {whole:?}"
        );
    });
}
