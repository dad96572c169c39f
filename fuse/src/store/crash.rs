//! What a power cut may leave of a store, state by state.
//!
//! A real fill, with evictions, a pin, an orderly end and a second start, is recorded through the
//! [`Disk`] seam. After each operation the power may go: what was synced is there, of the rest any
//! subset, of one write any of its sectors, the others being zeros or what lay on the disk before.
//! Nothing but a sync orders anything, names included, and that of a directory keeps no names but its
//! own: less than any file system promises. Each state is opened, completed as a fetcher would, and
//! compared byte by byte. That this finds mistakes is shown in [`mistakes`].

mod mistakes;
mod record;
mod states;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_proto::digest::Digest;
use larder_proto::verified::Verified;
use larder_test_support::layer::LayerFixture;
use larder_test_support::tar::{Entry, TarBuilder};

use self::record::{Op, Recorder};
use self::states::{Random, State, states};
use super::presence::Presence;
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
#[derive(Debug)]
struct Answered {
    pins: [usize; 2],
    lie: usize,
    bits: [Bits; 2],
}

/// What was written of the bits of a layer, and what was taken away from it.
#[derive(Debug, Default)]
struct Bits {
    /// The files, and by when each was written.
    written: Vec<(Vec<u8>, usize)>,
    /// From when on which rows may be gone, whatever bits of before say.
    evicted: Vec<(usize, BTreeSet<usize>)>,
}

impl Bits {
    fn note(&mut self, layer: &StoredLayer, now: usize) {
        let bits = std::fs::read(layer.directory().join("present")).unwrap();
        self.written.push((bits, now));
    }

    /// The rows that need not be there `after` so many operations, if those are the bits on the disk.
    fn may_lie(&self, bits: &[u8], after: usize) -> Result<BTreeSet<usize>, String> {
        let mut written = self.written.iter();
        let (_, at) = written
            .find(|(known, _)| known == bits)
            .ok_or("bits that nobody wrote")?;
        let evicted = self
            .evicted
            .iter()
            .filter(|(then, _)| then >= at && *then <= after);
        Ok(evicted.flat_map(|(_, rows)| rows.iter().copied()).collect())
    }
}

/// A life of a store, with everything that writes.
fn live(path: &Path, disk: &Arc<Recorder>) -> Answered {
    let [first, second] = fixtures();
    let open = || StoreRoot::open(path, disk.clone(), LIMITS, None).unwrap();
    let root = open();
    let now = || disk.trace().len();
    let mut bits = [Bits::default(), Bits::default()];
    let layer = add(&root, &first);
    let rows = layer.index().chunk_count();
    // The last chunk is not there before the second start, so that no two files of bits are alike.
    for some in [0..rows / 2, rows / 2..rows - 1] {
        for row in some {
            publish(&layer, &first, row);
        }
        layer.sync().unwrap();
        bits[0].note(&layer, now());
    }
    layer.set_proof(Proof::Proven).unwrap();
    let pins = [(&first, "kept"), (&second, "kept, too")].map(|(fixture, name)| {
        root.pins().pin(&[fixture.index.digest], name).unwrap();
        now()
    });
    let lies = Lies::new(root.root(), disk.clone());
    lies.remember(&liar(), "other mode of /bin/su").unwrap();
    let lie = now();
    for _ in 0..2 {
        layer.evict_cold(100_000).unwrap();
    }
    let absent = layer.presence().rows(|state| state == ChunkState::Absent);
    bits[0].evicted.push((lie, absent.collect()));
    publish(&layer, &first, 1);
    layer.sync().unwrap();
    bits[0].note(&layer, now());
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
    bits[0].note(&layer, now());
    let other = add(&root, &second);
    publish(&other, &second, 0);
    other.sync().unwrap();
    bits[1].note(&other, now());
    bits[0].evicted.push((now() + 1, (0..rows).collect()));
    drop(layer.evict_all().unwrap());
    publish(&layer, &first, 0);
    layer.sync().unwrap();
    bits[0].note(&layer, now());
    root.end();
    drop(layer);
    root.remove(&first.index.digest);
    Answered { pins, lie, bits }
}

/// An index that lied.
fn liar() -> Digest {
    Digest::of(b"liar")
}

/// Whether what was answered by the time of the state is known to the next start.
fn remembers(
    root: &StoreRoot,
    fixtures: &[LayerFixture],
    answered: &Answered,
    after: usize,
) -> Result<(), String> {
    for (fixture, pin) in fixtures.iter().zip(answered.pins) {
        if after >= pin && !root.pins().has(&fixture.index.digest) {
            return Err("a pin is forgotten".into());
        }
    }
    let told = Lies::new(root.root(), Arc::new(StdDisk)).told(&liar());
    if after >= answered.lie && told.as_deref() != Some("other mode of /bin/su") {
        return Err(format!("a lie is forgotten: {told:?}"));
    }
    Ok(())
}

/// Whether all that the bits on the disk speak of is there, but for what was taken away since.
fn bits_are_true(
    path: &Path,
    fixture: &LayerFixture,
    known: &Bits,
    after: usize,
) -> Result<(), String> {
    let directory = path.join("store").join(fixture.index.digest.hex());
    let written = std::fs::read(directory.join("present")).unwrap_or_default();
    // Torn ones are found out.
    let Some(bits) = Presence::decode(&written, fixture.chunks.len()) else {
        return Ok(());
    };
    let may_lie = known.may_lie(&written, after)?;
    // Bits without a device are not believed.
    let Ok(mut device) = std::fs::read(directory.join("device")) else {
        return Ok(());
    };
    device.resize(fixture.tar.len(), 0);
    let place = |at: u64| usize::try_from(at).unwrap();
    for row in bits.rows(|state| state != ChunkState::Absent) {
        let chunk = fixture.chunks[row];
        let range = place(chunk.offset)..place(chunk.end());
        // Zeros are there by their digest, before anything is written over what lies in their blocks.
        let is_zeros = fixture.tar[range.clone()].iter().all(|&byte| byte == 0);
        if !is_zeros && !may_lie.contains(&row) && device[range.clone()] != fixture.tar[range] {
            return Err(format!(
                "the bit of chunk {row} was durable before its bytes"
            ));
        }
    }
    Ok(())
}

/// The rows that may be called damaged: of those that were taken away after the bits on the disk were written, a
/// power cut may have taken that note.
fn may_be_told(path: &Path, fixture: &LayerFixture, bits: &Bits, after: usize) -> BTreeSet<usize> {
    let directory = path.join("store").join(fixture.index.digest.hex());
    let written = std::fs::read(directory.join("present")).unwrap_or_default();
    // What is known belongs to bits that were written once.
    bits.may_lie(&written, after).unwrap_or_default()
}

/// Opens what is at `path`, brings it up as a fetcher would, and compares it; how many chunks were
/// still there and right.
fn check(
    path: &Path,
    fixtures: &[LayerFixture],
    answered: &Answered,
    after: usize,
) -> Result<usize, String> {
    let mut excepted = Vec::new();
    for (fixture, bits) in fixtures.iter().zip(&answered.bits) {
        bits_are_true(path, fixture, bits, after)?;
        excepted.push(may_be_told(path, fixture, bits, after));
    }
    let disk = Arc::new(StdDisk);
    let root =
        StoreRoot::open(path, disk, LIMITS, None).map_err(|error| format!("no start: {error}"))?;
    remembers(&root, fixtures, answered, after)?;
    let mut opened = root.layers();
    let mut kept = 0;
    for (fixture, excepted) in fixtures.iter().zip(excepted) {
        let id = fixture.index.digest;
        let known = opened.iter().position(|(known, _)| *known == id);
        let layer = match known {
            Some(at) => opened.swap_remove(at).1,
            None => add(&root, fixture),
        };
        for (row, chunk) in fixture.chunks.iter().enumerate() {
            let is_there = layer.presence().state(row) != ChunkState::Absent;
            let told = layer.damaged();
            let is_intact = is_there && layer.verify(row, chunk) == Checked::Intact;
            if layer.damaged() > told && !excepted.contains(&row) {
                return Err(format!("chunk {row} is called damaged"));
            }
            if is_intact {
                kept += 1;
            } else if publish(&layer, fixture, row) != Published::Stored {
                return Err(format!("chunk {row} cannot be stored"));
            }
        }
        let mut found = vec![0; fixture.tar.len()];
        let read = layer.read_there(0..fixture.chunks.len(), |device| {
            device.read(&mut found, 0);
            Ok(())
        });
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

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seed() -> u64 {
    number(SEED).unwrap_or_else(|| {
        std::time::UNIX_EPOCH
            .elapsed()
            .unwrap_or_default()
            .as_secs()
    })
}

/// A life that was recorded, and a place for its states.
struct Scene {
    root: PathBuf,
    fixtures: [LayerFixture; 2],
    answered: Answered,
    trace: Vec<Op>,
    _scratch: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        // In memory where there is such a place: thousands of stores are made and removed.
        let memory = Path::new("/dev/shm");
        let temporary = std::env::temp_dir();
        let place = if memory.is_dir() { memory } else { &temporary };
        let scratch = tempfile::tempdir_in(place).unwrap();
        let life = scratch.path().join("life");
        let disk = Arc::new(Recorder::new(&life));
        let answered = live(&life, &disk);
        Self {
            root: scratch.path().join("state"),
            fixtures: fixtures(),
            answered,
            trace: disk.trace(),
            _scratch: scratch,
        }
    }

    /// Makes a state and looks at it.
    fn check(&self, state: &State<'_>) -> Result<usize, String> {
        state.make(&self.root);
        check(&self.root, &self.fixtures, &self.answered, state.after)
    }
}

/// Promise: whatever a power cut leaves, the next start works without an operator, and every byte
/// that is read is right: what is torn, lost or of zero length is fetched again, and not called damage. No bit is
/// durable before its bytes. Pins, and which indexes lied, are known as soon as they were answered.
#[test]
fn no_power_cut_leaves_wrong_bytes_or_a_store_that_does_not_start() {
    let seed = seed();
    let count = number(COUNTED).map_or(COUNT, |count| usize::try_from(count).unwrap());
    println!("replay with {SEED}={seed} {COUNTED}={count}");
    let scene = Scene::new();
    let trace = &scene.trace;
    let mut random = Random::new(seed);
    let (mut looked, mut kept, mut places) = (0, BTreeSet::new(), BTreeSet::new());
    let mut slowest = Duration::ZERO;
    let each = count.div_ceil(trace.len());
    for state in states(trace, 1..=trace.len(), each, &mut random) {
        let started = Instant::now();
        let found = scene.check(&state);
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
