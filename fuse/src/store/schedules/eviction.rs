//! Taking chunks away while others read, write and verify them, and the room that they are given.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::store::Checked;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// A disk that reads, writes and makes holes in two halves, between which others come, and panics when
/// what lies in `directory` takes more than it may.
#[derive(Debug)]
struct Halves {
    steps: AtomicUsize,
    directory: PathBuf,
    bytes_max: u64,
}

impl Halves {
    fn new(scene: &Prepared, bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            steps: AtomicUsize::new(0),
            directory: scene.directory(),
            bytes_max,
        })
    }

    /// A moment at which shuttle may go on with another thread.
    fn step(&self) {
        self.steps.fetch_add(1, Ordering::SeqCst);
    }

    fn assert_bounded(&self) {
        let taken = taken(&self.directory);
        let bytes_max = self.bytes_max;
        assert!(taken <= bytes_max, "{taken} bytes of {bytes_max} are taken");
    }
}

/// Bytes on the disk of a directory and what is in it.
fn taken(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let of = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.blocks() * 512);
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    of(directory) + entries.map(|entry| of(&entry.path())).sum::<u64>()
}

impl Disk for Halves {
    fn read_at(&self, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let (first, second) = bytes.split_at_mut(bytes.len() / 2);
        self.step();
        StdDisk.read_at(file, first, offset)?;
        self.step();
        StdDisk.read_at(file, second, offset + first.len() as u64)
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        self.step();
        StdDisk.write_at(file, first, offset)?;
        self.step();
        StdDisk.write_at(file, second, offset + first.len() as u64)?;
        self.assert_bounded();
        Ok(())
    }

    fn punch(&self, file: &File, range: std::ops::Range<u64>) -> io::Result<()> {
        let middle = range.start + (range.end - range.start) / 2;
        self.step();
        StdDisk.punch(file, range.start..middle)?;
        self.step();
        StdDisk.punch(file, middle..range.end)
    }
}

/// What came of reads, over all schedules.
#[derive(Debug, Default)]
struct Reads {
    right: AtomicU64,
    /// Other bytes than the chunk's were found, and the reader was told.
    refused: AtomicU64,
}

impl Reads {
    fn read(&self, scene: &Prepared, layer: &StoredLayer, row: usize) {
        let expected = scene.contents[row].as_slice();
        // As long as nothing is read into it, it is right.
        let mut found = expected.to_vec();
        let at = scene.fixture.chunks[row].offset;
        let is_there = layer.read_there(std::iter::once(row), |device| {
            device.read(&mut found, at);
            Ok(())
        });
        let is_right = found == expected;
        if is_there.unwrap() {
            assert!(is_right, "chunk {row} is read as something else");
            self.right.fetch_add(1, Ordering::Relaxed);
        } else if !is_right {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes what is not there, and verifies what is.
fn write(scene: &Prepared, layer: &StoredLayer, row: usize) {
    match layer.presence().state(row) {
        ChunkState::Absent => assert_eq!(scene.publish(layer, row), Published::Stored),
        // As after an hour, or an error of the disk.
        ChunkState::Verified => layer.presence().set_claimed(row),
        ChunkState::Claimed => {
            let checked = layer.verify(row, &scene.fixture.chunks[row]);
            assert_ne!(checked, Checked::Damaged, "chunk {row}");
        }
    }
}

/// Promise: however readers, writers, who evicts the same chunks and who gives back their pages meet, nobody takes the bytes of a
/// hole, or of a chunk half written, for a chunk's; what is said to be there at the end is there.
#[test]
fn no_read_sees_a_hole() {
    let scene = Prepared::new(2);
    let reads = Arc::new(Reads::default());
    let counted = reads.clone();
    schedules(move || {
        let (_root, layer) = scene.layer(Halves::new(&scene, u64::MAX), UNLIMITED);
        for &row in &scene.files {
            scene.publish(&layer, row);
        }
        let start = |story: fn(&Prepared, &StoredLayer, &Reads)| {
            let (scene, layer, reads) = (scene.clone(), layer.clone(), reads.clone());
            thread::spawn(move || story(&scene, &layer, &reads))
        };
        let read: fn(&Prepared, &StoredLayer, &Reads) = |scene, layer, reads| {
            for &row in scene.files.iter().chain(&scene.files) {
                reads.read(scene, layer, row);
            }
        };
        let threads = [
            start(read),
            start(read),
            start(|scene, layer, _| {
                for &row in scene.files.iter().cycle().take(4) {
                    write(scene, layer, row);
                }
            }),
            start(|_, layer, _| {
                // The first round finds that all were just used.
                for _ in 0..3 {
                    layer.evict_cold(u64::MAX).unwrap();
                }
                if thread_rng().gen_bool(0.5) {
                    drop(layer.evict_all().unwrap());
                }
            }),
            start(|_, layer, _| {
                for _ in 0..3 {
                    layer.give_back_pages();
                    thread::yield_now();
                }
            }),
        ];
        for thread in threads {
            thread.join().unwrap();
        }
        for &row in &scene.files {
            reads.read(&scene, &layer, row);
        }
    });
    let both = [&counted.right, &counted.refused].map(|count| count.load(Ordering::Relaxed));
    assert!(both.iter().all(|&count| count > 0), "{counted:?}");
}

/// A disk that looks, before it makes a hole, at what is said to be known.
#[derive(Debug)]
struct Looking {
    directory: PathBuf,
    chunks: Vec<Chunk>,
    holes: AtomicU64,
}

impl Disk for Looking {
    fn sync_data(&self, _: &File) -> io::Result<()> {
        // Chunks go meanwhile.
        thread::yield_now();
        Ok(())
    }

    fn punch(&self, file: &File, range: std::ops::Range<u64>) -> io::Result<()> {
        let read = |name| std::fs::read(self.directory.join(name)).unwrap_or_default();
        let known = known(&read("present"), &read("known"), self.chunks.len());
        let is_met = |row: &&usize| range.contains(&self.chunks[**row].offset);
        let met: Vec<_> = known.iter().filter(is_met).collect();
        assert!(met.is_empty(), "{met:?} are known and become holes");
        self.holes.fetch_add(1, Ordering::Relaxed);
        StdDisk.punch(file, range)
    }
}

/// Promise: whenever a chunk is taken away, nothing on the disk says any more that it is known to be there, whoever
/// writes bits down at that time; and when all is quiet, what is there is known again.
#[test]
fn what_is_taken_away_is_not_known_to_be_there() {
    let scene = Prepared::new(2);
    let holes = Arc::new(AtomicU64::new(0));
    let counted = holes.clone();
    schedules(move || {
        let disk = Arc::new(Looking {
            directory: scene.directory(),
            chunks: scene.fixture.chunks.clone(),
            holes: AtomicU64::new(0),
        });
        let (_root, layer) = scene.layer(disk.clone(), UNLIMITED);
        for &row in &scene.files {
            scene.publish(&layer, row);
        }
        let writing = {
            let (scene, layer) = (scene.clone(), layer.clone());
            thread::spawn(move || {
                for &row in &scene.files {
                    layer.sync().unwrap();
                    scene.publish(&layer, row);
                }
                layer.sync().unwrap();
            })
        };
        let evicting = {
            let layer = layer.clone();
            thread::spawn(move || {
                // The first round finds that all were just written.
                for _ in 0..3 {
                    layer.evict_cold(u64::MAX).unwrap();
                }
            })
        };
        writing.join().unwrap();
        evicting.join().unwrap();
        layer.sync().unwrap();
        let read = |name| std::fs::read(scene.directory().join(name)).unwrap_or_default();
        let known = known(&read("present"), &read("known"), disk.chunks.len());
        for &row in &scene.files {
            // Also one to be verified again, since its neighbour went from a page they share.
            let is_there = layer.presence().state(row) != ChunkState::Absent;
            assert_eq!(known.contains(&row), is_there, "chunk {row}");
        }
        holes.fetch_add(disk.holes.load(Ordering::Relaxed), Ordering::Relaxed);
    });
    assert!(counted.load(Ordering::Relaxed) > 0);
}

/// Promise: room is given once: whoever writes at the same time, and whatever is taken away meanwhile,
/// the files of a store never take more than they may, and in the end there is room again.
#[test]
fn room_is_given_once() {
    // Two of three chunks have room, with what `Ledger::reserve` takes beside each.
    const ROOM: u64 = 2 * (65_536 + (16 << 10)) + 4096;
    let scene = Prepared::new(3);
    let (refused, freed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let counted = [refused.clone(), freed.clone()];
    schedules(move || {
        let (root, layer) = scene.layer(Arc::new(StdDisk), UNLIMITED);
        drop((root, layer));
        let bytes_max = taken(&scene.directory()) + ROOM;
        let limits = Limits {
            bytes_max,
            ..UNLIMITED
        };
        let disk = Halves::new(&scene, bytes_max);
        let (root, layer) = scene.layer(disk.clone(), limits);
        let ledger = root.rules().ledger.clone();
        let writing = scene.files.iter().map(|&row| {
            let (scene, layer, refused) = (scene.clone(), layer.clone(), refused.clone());
            thread::spawn(move || {
                for _ in 0..2 {
                    if scene.publish(&layer, row) == Published::NotStored {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        });
        let evicting = {
            let (layer, freed) = (layer.clone(), freed.clone());
            thread::spawn(move || {
                for _ in 0..4 {
                    let wanted = ledger.excess();
                    // The first round finds that all were just written.
                    let rounds = if wanted > 0 { 2 } else { 0 };
                    for _ in 0..rounds {
                        freed.fetch_add(layer.evict_cold(wanted).unwrap(), Ordering::Relaxed);
                    }
                }
            })
        };
        for writer in writing.collect::<Vec<_>>() {
            writer.join().unwrap();
        }
        evicting.join().unwrap();
        disk.assert_bounded();
        drop(layer.evict_all().unwrap());
        // Nothing that was reserved is kept: each chunk finds room, one after the other.
        assert_eq!(scene.publish(&layer, scene.files[0]), Published::Stored);
        assert_eq!(scene.publish(&layer, scene.files[1]), Published::Stored);
    });
    let counts = counted.map(|count| count.load(Ordering::Relaxed));
    assert!(counts.iter().all(|&count| count > 0), "{counts:?}");
}
