//! What a power cut may leave of the database, state by state.
//!
//! The calls of a pull, a run and a removal are recorded below redb. After each write the power may
//! go: what was synced is there, of the rest any subset, of one write any of its sectors. Each state
//! is opened as the next start would, and must hold what was answered with success. That this finds
//! mistakes is shown in [`mistakes`].

mod mistakes;

use std::fs::OpenOptions;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::UNIX_EPOCH;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;
use crate::filter::Filter;

/// States looked at in CI: some seconds.
const COUNT: usize = 600;

/// Replays one seed, or makes it longer: `scripts/soak crash`.
const SEED: &str = "LARDER_CRASH_SEED";
const COUNTED: &str = "LARDER_CRASH_COUNT";

/// What a disk writes at once.
const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Op {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Sync,
    /// In place of a sync that is left out.
    Nothing,
}

type Trace = Arc<Mutex<Vec<Op>>>;

#[derive(Debug)]
struct Recorder {
    file: FileBackend,
    trace: Trace,
}

impl StorageBackend for Recorder {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.trace.lock().unwrap().push(Op::SetLen(len));
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.trace.lock().unwrap().push(Op::Sync);
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let op = Op::Write(offset, data.to_vec());
        self.trace.lock().unwrap().push(op);
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

fn names(store: &Store) -> Vec<String> {
    let page = store.list(&Filter::default(), None, usize::MAX).unwrap();
    page.entries.into_iter().map(|(name, _)| name).collect()
}

fn create(store: &Store, key: &str, parent: &str) {
    let labels = BTreeMap::from([("label".to_owned(), "x".repeat(600))]);
    let (kind, eager) = (Kind::Active, None);
    store
        .create(&New {
            key,
            parent,
            kind,
            labels,
            eager,
        })
        .unwrap();
}

/// After how many operations which names were there for certain.
type Known = Vec<(usize, Vec<String>)>;

/// A store below `root` whose calls are recorded.
fn recorded(root: &Path, trace: &Trace) -> Store {
    let opened = Store::open_with(root, |builder, path| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = FileBackend::new(options.open(path)?)?;
        let trace = Arc::clone(trace);
        builder.create_with_backend(Recorder { file, trace })
    });
    opened.unwrap()
}

/// What is recorded, and after how many operations which names were there for certain.
fn live() -> (Vec<Op>, Known) {
    let dir = tempfile::tempdir().unwrap();
    let trace = Trace::default();
    let open = || recorded(dir.path(), &trace);
    let store = open();
    let mut known = Vec::new();
    let mut note = |store: &Store| known.push((trace.lock().unwrap().len(), names(store)));
    note(&store);
    create(&store, "a", "");
    note(&store);
    store.commit("base", "a", BTreeMap::new(), "").unwrap();
    note(&store);
    for key in ["b", "c", "d"] {
        create(&store, key, "base");
        note(&store);
    }
    store.remove("c").unwrap();
    note(&store);
    drop(store);
    let store = open();
    note(&store);
    store.forget(&store.removed().unwrap()).unwrap();
    note(&store);
    create(&store, "e", "base");
    note(&store);
    drop(store);
    let ops = trace.lock().unwrap().clone();
    (ops, known)
}

/// Regression: each start committed, and needed room on the disk for that.
///
/// Promise: a start that changes nothing commits nothing: redb marks the file as open, in its first page, and no more.
#[test]
fn a_start_that_changes_nothing_commits_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let trace = Trace::default();
    let store = recorded(dir.path(), &trace);
    create(&store, "a", "");
    drop(store);
    trace.lock().unwrap().clear();
    let store = recorded(dir.path(), &trace);
    assert_eq!(store.orphans().unwrap(), [0; 0]);
    let ops = trace.lock().unwrap().clone();
    for op in &ops {
        let is_mark = match op {
            Op::Write(at, bytes) => at + bytes.len() as u64 <= 4096,
            Op::SetLen(_) => false,
            Op::Sync | Op::Nothing => true,
        };
        assert!(is_mark, "{op:?}");
    }
    assert!(ops.len() <= 3, "{ops:?}");
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// The file after `ops`, of which those after the last sync may be lost or torn.
fn state(ops: &[Op], random: &mut Random) -> Vec<u8> {
    let durable = ops.iter().rposition(|op| matches!(op, Op::Sync));
    let durable = durable.map_or(0, |at| at + 1);
    // Half of the states lose half of the operations, the others one in eight.
    let odds = if random.next() & 1 == 0 { 2 } else { 8 };
    let mut file = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        let is_lost = at >= durable && random.next().is_multiple_of(odds);
        match op {
            _ if is_lost => {}
            Op::SetLen(len) => file.resize(usize::try_from(*len).unwrap(), 0),
            Op::Write(offset, data) => {
                let offset = usize::try_from(*offset).unwrap();
                let is_torn = at >= durable && random.next().is_multiple_of(2);
                // A write that comes before its file was made longer makes it so.
                if file.len() < offset + data.len() {
                    file.resize(offset + data.len(), 0);
                }
                for (number, piece) in data.chunks(SECTOR).enumerate() {
                    if !is_torn || random.next().is_multiple_of(2) {
                        let at = offset + number * SECTOR;
                        file[at..at + piece.len()].copy_from_slice(piece);
                    }
                }
            }
            Op::Sync | Op::Nothing => {}
        }
    }
    file
}

/// A place for states, in memory where there is such a place: each start waits for its disk.
fn place() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let temporary = std::env::temp_dir();
    let place = if memory.is_dir() { memory } else { &temporary };
    tempfile::tempdir_in(place).unwrap()
}

/// Makes a state in `dir` and looks at it as the next start would.
fn check(dir: &Path, ops: &[Op], known: &Known, random: &mut Random) -> Result<(), String> {
    let after = ops.len();
    std::fs::write(dir.join("snapshots.redb"), state(ops, random)).unwrap();
    let store = Store::open(dir).map_err(|error| format!("no start: {error}"))?;
    let found = names(&store);
    let at = known.iter().rposition(|(at, _)| *at <= after).unwrap();
    let next = known.get(at + 1).map(|(_, names)| names);
    if found != known[at].1 && Some(&found) != next {
        return Err(format!("{found:?}, not {:?} or {next:?}", known[at].1));
    }
    for name in &found {
        let chain = store.chain(name);
        chain.map_err(|error| format!("{name}: {error}"))?;
    }
    create(&store, "new", "");
    Ok(())
}

/// A number of the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn seed() -> u64 {
    number(SEED).unwrap_or_else(|| UNIX_EPOCH.elapsed().unwrap_or_default().as_secs())
}

/// Promise: whatever a power cut leaves of the database, the next start works without an operator;
/// what was answered with success is there, and what was not is there whole or not at all.
#[test]
fn no_power_cut_loses_a_snapshot_that_was_answered() {
    let seed = seed();
    let count = number(COUNTED).map_or(COUNT, |count| usize::try_from(count).unwrap());
    println!("replay with {SEED}={seed} {COUNTED}={count}");
    let (ops, known) = live();
    let mut random = Random(seed);
    let dir = place();
    // Before the first note the file has another name, and a start makes it anew.
    let begin = known[0].0;
    for looked in 0..count {
        let after = begin + looked % (ops.len() - begin) + 1;
        if let Err(why) = check(dir.path(), &ops[..after], &known, &mut random) {
            panic!(
                "{why}; seed {seed}, state {looked}, after {after} of {}",
                ops.len()
            );
        }
    }
    println!("{count} states after {} operations", ops.len() - begin);
}
