//! The states a power cut may leave, made from a trace.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::record::{FileId, Op};

/// What a disk writes at once; a write of more may be torn between any two.
const SECTOR: usize = 512;

/// What a file system allocates, and hence the smallest hole.
const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;

/// A subset of at most this many operations is enumerated whole.
const SUBSETS_MAX: usize = 1 << 12;

/// Numbers that look random, the same for the same seed.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub(super) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap_or(0)
    }
}

/// How one write is torn.
#[derive(Debug, Clone, Copy)]
struct Tear {
    /// Its place in the trace.
    op: usize,
    /// The pieces it is torn into, bytes.
    piece: usize,
    /// Chooses the pieces that were written.
    choice: u64,
    /// Whether the others hold what lay on the disk before.
    junk: bool,
}

/// One state.
#[derive(Debug)]
pub(super) struct State<'a> {
    trace: &'a [Op],
    /// Operations that happened before the power went.
    pub(super) after: usize,
    /// Of those, the ones that are lost.
    lost: Vec<usize>,
    tear: Option<Tear>,
}

/// `each` states after each of so many operations.
pub(super) fn states<'a>(
    trace: &'a [Op],
    places: RangeInclusive<usize>,
    each: usize,
    random: &mut Random,
) -> impl Iterator<Item = State<'a>> {
    places.flat_map(move |after| {
        let pending = pending(&trace[..after]);
        let all = 1_usize.checked_shl(u32::try_from(pending.len()).unwrap_or(u32::MAX));
        let is_all = all.is_some_and(|all| all <= SUBSETS_MAX.min(each));
        let mut lost: Vec<Vec<usize>> = if is_all {
            (0..all.unwrap_or(1))
                .map(|set| subset(&pending, set as u64))
                .collect()
        } else {
            vec![Vec::new(), pending.clone()]
        };
        while lost.len() < each {
            lost.push(match random.below(4) {
                // All but one, and just one: what most mistakes need.
                0 => one(&pending, random).collect(),
                1 => {
                    let kept: Vec<_> = one(&pending, random).collect();
                    let mut others = pending.clone();
                    others.retain(|op| !kept.contains(op));
                    others
                }
                // Half of them, or a few.
                2 => some(&pending, 2, random),
                _ => some(&pending, 8, random),
            });
        }
        let states: Vec<_> = lost
            .into_iter()
            .map(|lost| {
                let tear = tear(trace, &pending, &lost, random);
                State {
                    trace,
                    after,
                    lost,
                    tear,
                }
            })
            .collect();
        states
    })
}

fn subset(of: &[usize], set: u64) -> Vec<usize> {
    let chosen = of.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1);
    chosen.map(|(_, op)| *op).collect()
}

/// One in `odds`.
fn some(of: &[usize], odds: u64, random: &mut Random) -> Vec<usize> {
    let ops = of.iter().copied();
    ops.filter(|_| random.next().is_multiple_of(odds)).collect()
}

/// One of them, mostly one of the last: nothing relies on the others any more that did not before.
fn one(of: &[usize], random: &mut Random) -> impl Iterator<Item = usize> + use<> {
    let late = match random.below(4) {
        0 => of.len(),
        _ => of.len().min(8),
    };
    let at = of.len() - late + random.below(late);
    of.get(at).copied().into_iter()
}

/// Three of four states have a torn write, if there is one to tear.
fn tear(trace: &[Op], pending: &[usize], lost: &[usize], random: &mut Random) -> Option<Tear> {
    let kept = pending.iter().copied().filter(|op| !lost.contains(op));
    let writes: Vec<_> = kept
        .filter(|&op| matches!(trace[op], Op::Write(..)))
        .collect();
    let op = *writes.get(random.below(writes.len()))?;
    let choice = random.next();
    let (how, pieces) = (random.below(4), [SECTOR, SECTOR * 8]);
    (how > 0).then(|| Tear {
        op,
        piece: pieces[how % 2],
        choice,
        junk: how == 3,
    })
}

/// The operations that no sync has made durable.
fn pending(trace: &[Op]) -> Vec<usize> {
    let is_durable = |at: usize, op: &Op| trace[at + 1..].iter().any(|later| keeps(later, op));
    let ops = trace.iter().enumerate();
    ops.filter(|(at, op)| !is_sync(op) && !is_durable(*at, op))
        .map(|(at, _)| at)
        .collect()
}

pub(super) fn is_sync(op: &Op) -> bool {
    matches!(op, Op::Sync(_) | Op::SyncNames(_) | Op::Nothing)
}

/// Whether `sync` makes `op`, which came before it, durable.
pub(super) fn keeps(sync: &Op, op: &Op) -> bool {
    match (sync, op) {
        (Op::Sync(synced), Op::Write(file, ..) | Op::SetLen(file, _) | Op::Punch(file, _)) => {
            synced == file
        }
        (
            Op::SyncNames(directory),
            Op::MakeDirectory(path)
            | Op::Create(path, _)
            | Op::Rename(_, path)
            | Op::RemoveFile(path)
            | Op::RemoveDirectory(path),
        ) => path.parent() == Some(directory),
        _ => false,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Directory,
    File(FileId),
}

/// The content of a file: its blocks that are no holes.
#[derive(Debug, Default)]
struct Content {
    len: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Content {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut at = offset;
        for piece in split(offset, bytes) {
            let block = self.blocks.entry(at / BLOCK);
            let block = block.or_insert_with(|| vec![0; BLOCK_LEN]);
            let from = usize::try_from(at % BLOCK).unwrap();
            block[from..from + piece.len()].copy_from_slice(piece);
            at += piece.len() as u64;
        }
        self.len = self.len.max(at);
    }

    fn punch(&mut self, from: u64, to: u64) {
        let (first, last) = (from / BLOCK, to.div_ceil(BLOCK));
        for number in first..last {
            let (start, end) = (number * BLOCK, (number + 1) * BLOCK);
            if from <= start && end <= to {
                self.blocks.remove(&number);
            } else if let Some(block) = self.blocks.get_mut(&number) {
                let place = |at: u64| usize::try_from(at.clamp(start, end) - start).unwrap();
                block[place(from)..place(to)].fill(0);
            }
        }
    }

    fn set_len(&mut self, len: u64) {
        self.punch(len, self.len.max(len));
        self.len = len;
    }
}

/// The bytes, cut where blocks end.
fn split(offset: u64, mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    let mut room = usize::try_from(BLOCK - offset % BLOCK).unwrap();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(room.min(bytes.len()));
        pieces.push(piece);
        bytes = rest;
        room = BLOCK_LEN;
    }
    pieces
}

impl State<'_> {
    /// Makes it so at `root`.
    pub(super) fn make(&self, root: &Path) {
        let _ = std::fs::remove_dir_all(root);
        std::fs::create_dir(root).unwrap();
        let (names, contents) = self.replay();
        for (path, name) in &names {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match name {
                Name::Directory => std::fs::create_dir_all(&path).unwrap(),
                Name::File(id) => {
                    let file = File::create(&path).unwrap();
                    let Some(content) = contents.get(id) else {
                        continue;
                    };
                    for (number, block) in &content.blocks {
                        file.write_all_at(block, number * BLOCK).unwrap();
                    }
                    file.set_len(content.len).unwrap();
                }
            }
        }
    }

    fn replay(&self) -> (BTreeMap<PathBuf, Name>, HashMap<FileId, Content>) {
        // What is made without the seam, since nothing depends on it.
        let mut names = BTreeMap::from([(PathBuf::from("store"), Name::Directory)]);
        let mut contents: HashMap<FileId, Content> = HashMap::new();
        let ops = self.trace[..self.after].iter().enumerate();
        for (at, op) in ops.filter(|(at, _)| !self.lost.contains(at)) {
            match op {
                Op::MakeDirectory(path) => drop(names.insert(path.clone(), Name::Directory)),
                Op::Create(path, id) => drop(names.insert(path.clone(), Name::File(*id))),
                Op::Write(id, offset, bytes) => {
                    let content = contents.entry(*id).or_default();
                    match self.tear.filter(|tear| tear.op == at) {
                        Some(tear) => torn(content, *offset, bytes, tear),
                        None => content.write(*offset, bytes),
                    }
                }
                Op::SetLen(id, len) => contents.entry(*id).or_default().set_len(*len),
                Op::Punch(id, range) => {
                    contents
                        .entry(*id)
                        .or_default()
                        .punch(range.start, range.end);
                }
                Op::Sync(_) | Op::SyncNames(_) | Op::Nothing => {}
                Op::Rename(from, to) => rename(&mut names, from, to),
                Op::RemoveFile(path) => drop(names.remove(path)),
                Op::RemoveDirectory(path) => names.retain(|name, _| !name.starts_with(path)),
            }
        }
        // What is in a directory goes with it.
        let is_there = |path: &Path| {
            let mut above = path
                .ancestors()
                .skip(1)
                .filter(|path| *path != Path::new(""));
            above.all(|path| names.get(path) == Some(&Name::Directory))
        };
        let there = names
            .keys()
            .filter(|path| is_there(path))
            .cloned()
            .collect::<Vec<_>>();
        let named = there
            .into_iter()
            .map(|path| {
                let name = names[&path];
                (path, name)
            })
            .collect();
        (named, contents)
    }
}

fn torn(content: &mut Content, offset: u64, bytes: &[u8], tear: Tear) {
    for (number, piece) in bytes.chunks(tear.piece).enumerate() {
        let at = offset + (number * tear.piece) as u64;
        if tear.choice >> (number % 64) & 1 == 1 {
            content.write(at, piece);
        } else if tear.junk {
            content.write(at, &vec![0xa5; piece.len()]);
        }
    }
    // The length may have become durable without the bytes.
    content.len = content.len.max(offset + bytes.len() as u64);
}

/// With all below it; what has no such name, because that was lost, stays as it is.
fn rename(names: &mut BTreeMap<PathBuf, Name>, from: &Path, to: &Path) {
    let moved: Vec<_> = names
        .keys()
        .filter(|name| name.starts_with(from))
        .cloned()
        .collect();
    if moved.is_empty() {
        return;
    }
    names.retain(|name, _| !name.starts_with(to));
    for old in moved {
        if let (Some(name), Ok(rest)) = (names.remove(&old), old.strip_prefix(from)) {
            let new = if rest.as_os_str().is_empty() {
                to.to_owned()
            } else {
                to.join(rest)
            };
            names.insert(new, name);
        }
    }
}

impl fmt::Display for State<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, op) in self.trace[..self.after].iter().enumerate() {
            let mark = if self.lost.contains(&at) {
                "lost"
            } else {
                "    "
            };
            match op {
                Op::Write(id, offset, bytes) => {
                    writeln!(
                        f,
                        "{at:4} {mark} Write({id}, {offset}, {} bytes)",
                        bytes.len()
                    )?;
                }
                other => writeln!(f, "{at:4} {mark} {other:?}")?,
            }
        }
        writeln!(f, "torn: {:?}", self.tear)
    }
}
