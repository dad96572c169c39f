//! What a power cut may leave of a store, state by state.
//!
//! A real fill, with evictions, a pin, an orderly end and a second start, is recorded through the
//! [`Disk`] seam. After each operation the power may go: what was synced is there, of the rest any
//! subset, of one write any of its sectors, the others being zeros or what lay on the disk before.
//! Nothing but a sync orders anything, names included, which is less than any file system promises.
//! Each state is opened, completed as a fetcher would, and compared byte by byte.

mod record;
mod states;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_proto::digest::Digest;
use larder_proto::verified::Verified;
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};

use self::record::Recorder;
use self::states::{Random, states};
use super::*;

/// States looked at in CI: some ten seconds, unoptimised.
const COUNT: usize = 1500;

/// Replays one seed, or makes it longer: `scripts/soak crash`.
const SEED: &str = "LARDER_CRASH_SEED";
const COUNTED: &str = "LARDER_CRASH_COUNT";

const LIMITS: Limits = Limits {
    bytes_max: 0,
    min_free_percent: 0,
};

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(|| random.next().to_le_bytes()[1])
        .take(len)
        .collect()
}

/// Data, holes, and both within one chunk.
fn fixtures() -> [LayerFixture; 2] {
    let mut mixed = vec![0; 100_000];
    mixed[30_000..40_000].copy_from_slice(&noise(1, 10_000));
    let first = TarBuilder::new()
        .entry(Entry::file("mixed", mixed))
        .entry(Entry::file("noise", noise(2, 200_000)))
        .entry(Entry::file("zeros", vec![0; 80_000]))
        .entry(Entry::file("small", "a few bytes"));
    let second = TarBuilder::new().entry(Entry::file("other", noise(3, 70_000)));
    [first, second].map(|tar| LayerFixture::new(tar.finish()))
}

fn add(root: &StoreRoot, fixture: &LayerFixture) -> StoredLayer {
    let index = larder_proto::index::open_stored(&stored_index(fixture), &fixture.index).unwrap();
    let new = NewLayer {
        blob: fixture.digest,
        location: fixture.index,
        index: &index,
        slot: root.new_slot().unwrap(),
    };
    root.add(&new).unwrap()
}

fn stored_index(fixture: &LayerFixture) -> Vec<u8> {
    let place = |at: u64| usize::try_from(at).unwrap();
    let (from, len) = (place(fixture.index.offset), place(fixture.index.stored_len));
    fixture.blob[from..from + len].to_vec()
}

fn publish(layer: &StoredLayer, fixture: &LayerFixture, row: usize) -> Published {
    let chunk = layer.index().chunk(row).unwrap();
    let place = |at: u64| usize::try_from(at).unwrap();
    let content = fixture.tar[place(chunk.offset)..place(chunk.end())].to_vec();
    let content = Verified::check(content, &chunk.content).unwrap();
    layer.publish(row, &chunk, &content, true)
}

/// After how many operations what must not be forgotten was answered with success.
#[derive(Debug, Clone, Copy)]
struct Answered {
    pin: usize,
    lie: usize,
}

/// A life of a store, with everything that writes.
fn live(path: &Path, disk: &Arc<Recorder>) -> Answered {
    let [first, second] = fixtures();
    let open = || StoreRoot::open(path, disk.clone(), LIMITS, None).unwrap();
    let root = open();
    let layer = add(&root, &first);
    let rows = layer.index().chunk_count();
    for row in 0..rows / 2 {
        publish(&layer, &first, row);
    }
    layer.sync().unwrap();
    for row in rows / 2..rows {
        publish(&layer, &first, row);
    }
    layer.sync().unwrap();
    layer.set_proof(Proof::Proven).unwrap();
    root.pins().pin(&[first.index.digest], "kept").unwrap();
    let pin = disk.trace().len();
    let lies = Lies::new(root.root(), disk.clone());
    lies.remember(&liar(), "other mode of /bin/su").unwrap();
    let lie = disk.trace().len();
    for _ in 0..2 {
        layer.evict_cold(100_000).unwrap();
    }
    publish(&layer, &first, 1);
    layer.sync().unwrap();
    root.end();
    drop((layer, root));

    let root = open();
    let (_, layer) = root.layers().remove(0);
    for (row, chunk) in first.chunks.iter().enumerate() {
        if layer.verify(row, chunk) != Checked::Intact {
            publish(&layer, &first, row);
        }
    }
    assert!(layer.begin_direct());
    layer.sync().unwrap();
    drop(layer.evict_all().unwrap());
    publish(&layer, &first, 0);
    let other = add(&root, &second);
    publish(&other, &second, 0);
    other.sync().unwrap();
    layer.sync().unwrap();
    root.end();
    drop(layer);
    root.remove(&first.index.digest);
    Answered { pin, lie }
}

/// An index that lied.
fn liar() -> Digest {
    Digest::of(b"liar")
}

/// Whether what was answered by the time of the state is known to the next start.
fn remembers(
    root: &StoreRoot,
    pinned: &Digest,
    answered: Answered,
    after: usize,
) -> Result<(), String> {
    if after >= answered.pin && !root.pins().has(pinned) {
        return Err("a pin is forgotten".into());
    }
    let told = Lies::new(root.root(), Arc::new(StdDisk)).told(&liar());
    if after >= answered.lie && told.as_deref() != Some("other mode of /bin/su") {
        return Err(format!("a lie is forgotten: {told:?}"));
    }
    Ok(())
}

/// Opens what is at `path`, brings it up as a fetcher would, and compares it; how many chunks were
/// still there and right.
fn check(
    path: &Path,
    fixtures: &[LayerFixture],
    answered: Answered,
    after: usize,
) -> Result<usize, String> {
    let disk = Arc::new(StdDisk);
    let root =
        StoreRoot::open(path, disk, LIMITS, None).map_err(|error| format!("no start: {error}"))?;
    remembers(&root, &fixtures[0].index.digest, answered, after)?;
    let mut opened = root.layers();
    let mut kept = 0;
    for fixture in fixtures {
        let id = fixture.index.digest;
        let known = opened.iter().position(|(known, _)| *known == id);
        let layer = match known {
            Some(at) => opened.swap_remove(at).1,
            None => add(&root, fixture),
        };
        for (row, chunk) in fixture.chunks.iter().enumerate() {
            let is_there = layer.presence().state(row) != ChunkState::Absent;
            if is_there && layer.verify(row, chunk) == Checked::Intact {
                kept += 1;
            } else if publish(&layer, fixture, row) != Published::Stored {
                return Err(format!("chunk {row} cannot be stored"));
            }
        }
        let mut found = vec![0; fixture.tar.len()];
        let read = layer.read_there(0..fixture.chunks.len(), |device| device.read(&mut found, 0));
        if !matches!(read, Ok(true)) {
            return Err(format!("cannot be read: {read:?}"));
        }
        if found != fixture.tar {
            let at = (0..found.len()).find(|&at| found[at] != fixture.tar[at]);
            return Err(format!("byte {at:?} is wrong"));
        }
    }
    Ok(kept)
}

/// Promise: whatever a power cut leaves, the next start works without an operator, and every byte
/// that is read is right: what is torn, lost or of zero length is fetched again. Pins, and which indexes
/// lied, are known as soon as they were answered.
#[test]
fn no_power_cut_leaves_wrong_bytes_or_a_store_that_does_not_start() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number(SEED).unwrap_or_else(|| {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        now.as_secs()
    });
    let count = number(COUNTED).map_or(COUNT, |count| usize::try_from(count).unwrap());
    println!("replay with {SEED}={seed} {COUNTED}={count}");
    // In memory where there is such a place: 1,500 stores are made and removed.
    let memory = Path::new("/dev/shm");
    let temporary = std::env::temp_dir();
    let place = if memory.is_dir() { memory } else { &temporary };
    let scratch = tempfile::tempdir_in(place).unwrap();
    let (life, root) = (scratch.path().join("life"), scratch.path().join("state"));
    let disk = Arc::new(Recorder::new(&life));
    let answered = live(&life, &disk);
    let trace = disk.trace();
    let (fixtures, mut random) = (fixtures(), Random::new(seed));
    let (mut looked, mut kept, mut places) = (0, BTreeSet::new(), BTreeSet::new());
    let mut slowest = Duration::ZERO;
    for state in states(&trace, count, &mut random) {
        state.make(&root);
        let started = Instant::now();
        let found = check(&root, &fixtures, answered, state.after);
        slowest = slowest.max(started.elapsed());
        match found {
            Ok(found) => kept.insert(found),
            Err(why) => panic!("{why}; seed {seed}, state {looked}:\n{state}"),
        };
        places.insert(state.after);
        looked += 1;
    }
    println!(
        "{looked} states after {} operations, the slowest took {slowest:?}",
        trace.len()
    );
    // The states differ, and the store makes use of what is left.
    assert!(looked >= count.min(COUNT) && places.len() > trace.len() / 2);
    assert!(kept.len() >= 4, "{kept:?}");
}
