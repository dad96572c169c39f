//! What the store says of its chunks, under the orders of events that shuttle comes to.

mod eviction;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_proto::index::Chunk;
use larder_proto::verified::Verified;
use larder_schedules::shuttle::rand::{Rng, thread_rng};
use larder_schedules::shuttle::thread;
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};
use tempfile::TempDir;

use super::presence::{ChunkState, Presence};
use super::{Disk, Limits, NewLayer, Published, StdDisk, StoreRoot, StoredLayer};
use crate::sync::{Mutex, schedules};

const UNLIMITED: Limits = Limits {
    bytes_max: 0,
    min_free_percent: 0,
};

/// Bytes of each file of the layer: a chunk of its own.
const FILE: usize = 65_536;

/// A layer of some files in a store, made once and emptied for each schedule.
struct Prepared {
    fixture: LayerFixture,
    index: Vec<u8>,
    /// The rows of the files; the other chunks have zeros, or next to nothing else.
    files: Vec<usize>,
    contents: Vec<Verified<Vec<u8>>>,
    scratch: TempDir,
}

impl Prepared {
    fn new(count: u8) -> Arc<Self> {
        // Not zeros, nor as short as a chunk of them when they are compressed.
        let bytes = |first: u8| (1..=250).cycle().skip(first.into()).take(FILE).collect();
        let files = (1..=count).map(|first| (char::from(b'a' + first), bytes(first)));
        let tar = files.fold(TarBuilder::new(), |tar, (name, bytes): (_, Vec<u8>)| {
            tar.entry(Entry::file(&name.to_string(), bytes))
        });
        let fixture = LayerFixture::new(tar.finish());
        let place = |at: u64| usize::try_from(at).unwrap();
        let content = |chunk: &Chunk| {
            let content = fixture.tar[place(chunk.offset)..place(chunk.end())].to_vec();
            Verified::check(content, &chunk.content).unwrap()
        };
        let is_file = |row: &usize| fixture.chunks[*row].len as usize >= FILE;
        let files: Vec<_> = (0..fixture.chunks.len()).filter(is_file).collect();
        assert_eq!(files.len(), usize::from(count));
        Arc::new(Self {
            index: fixture.decoded_index(),
            files,
            contents: fixture.chunks.iter().map(content).collect(),
            scratch: tempfile::tempdir().unwrap(),
            fixture,
        })
    }

    fn directory(&self) -> PathBuf {
        let store = self.scratch.path().join("store");
        store.join(self.fixture.index.digest.hex())
    }

    /// The layer, of which nothing is there.
    fn layer(&self, disk: Arc<dyn Disk>, limits: Limits) -> (StoreRoot, Arc<StoredLayer>) {
        for left in ["device", "present", "known"] {
            drop(std::fs::remove_file(self.directory().join(left)));
        }
        let root = StoreRoot::open(self.scratch.path(), disk, limits, None).unwrap();
        let layer = root.add(&NewLayer {
            blob: self.fixture.digest,
            location: self.fixture.index,
            index: &self.index,
            slot: 1,
        });
        let layer = Arc::new(layer.unwrap());
        (root, layer)
    }

    fn publish(&self, layer: &StoredLayer, row: usize) -> Published {
        layer.publish(row, &self.fixture.chunks[row], &self.contents[row], true)
    }
}

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
                        let row = thread_rng().gen_range(0..ROWS);
                        match thread_rng().gen_range(0..4) {
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
        // What is to be verified again is there.
        let there = presence.rows(|state| state != ChunkState::Absent).count();
        assert_eq!(presence.all_verified(), there == ROWS, "{there} of {ROWS}");
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
    present: Vec<u8>,
    known: BTreeSet<usize>,
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
            state.present = bytes.to_vec();
        }
        if path.ends_with("known") {
            let mut state = self.state.lock().unwrap();
            state.known = known(&state.present, bytes, self.chunks.len());
            assert!(state.known.is_subset(&state.told), "{state:?}");
        }
        StdDisk.replace(path, bytes)
    }
}

/// The chunks that two files of bits say are known.
fn known(present: &[u8], known: &[u8], rows: usize) -> BTreeSet<usize> {
    let Some(presence) = Presence::decode(present, rows) else {
        return BTreeSet::new();
    };
    presence.know(known, present);
    let there = presence.rows(|state| state != ChunkState::Absent);
    there.filter(|&row| !presence.is_guessed(row)).collect()
}

/// Promise: the bits on the disk never speak of a chunk whose bytes a power cut could still take, and
/// when all is quiet, they speak of all of them.
#[test]
fn no_bit_reaches_the_disk_before_its_bytes() {
    let scene = Prepared::new(2);
    schedules(move || {
        let other = (0..scene.fixture.chunks.len()).filter(|row| !scene.files.contains(row));
        let disk = Arc::new(Noting {
            chunks: scene.fixture.chunks.clone(),
            state: Mutex::new(Kept {
                durable: other.collect(),
                ..Kept::default()
            }),
        });
        let (_root, layer) = scene.layer(disk.clone(), UNLIMITED);
        disk.state.lock().unwrap().device = Some(layer.device.file().as_raw_fd());
        let publishing = scene.files.iter().map(|&row| {
            let (scene, layer) = (scene.clone(), layer.clone());
            thread::spawn(move || assert_eq!(scene.publish(&layer, row), Published::Stored))
        });
        let syncing = layer.clone();
        let syncing = thread::spawn(move || (0..2).for_each(|_| syncing.sync().unwrap()));
        for publisher in publishing.collect::<Vec<_>>() {
            publisher.join().unwrap();
        }
        syncing.join().unwrap();
        layer.sync().unwrap();
        let state = disk.state.lock().unwrap();
        let is_told = |row| state.told.contains(row) && state.known.contains(row);
        assert!(
            scene.files.iter().all(is_told),
            "{state:?} of {:?}",
            scene.files
        );
    });
}
