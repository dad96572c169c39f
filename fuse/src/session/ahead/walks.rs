//! Who walks a tree, and which directories come next.

use std::collections::{HashMap, HashSet};

use larder_proto::erofs::{FileType, Image, Nid};

/// Directories listed in the order of a walk before the following ones are listed ahead. One that
/// follows is often chance: who opens `a` often opens `a/b`.
const RUN_MIN: u32 = 2;

/// Directories of the first batch: what a wrong guess costs, some 100 µs each.
const BATCH_MIN: usize = 16;

/// Directories of any batch. Who lists the one left out of it earns twice as many, up to this.
const BATCH_MAX: usize = 128;

/// Depth below where a walk began that is followed: names of that many components are longer than
/// paths usually are.
const LEVELS_MAX: usize = 256;

/// Longest path, bytes: the kernel's own limit.
const PATH_BYTES_MAX: usize = 4096;

/// Slots that are watched, some 10 KiB each; there are a few per container that reads.
const WALKS_MAX: usize = 64;

/// Where the subdirectories of a tree are.
pub(super) trait Directories {
    /// The first one in `directory` from `cookie` on; its name, and the cookie after it.
    fn subdirectory(&self, directory: Nid, cookie: u64) -> Option<(Nid, &[u8], u64)>;

    /// The path of a directory, without leading slash; none if it is too long for the kernel.
    fn path(&self, directory: Nid) -> Option<Vec<u8>>;
}

impl<B: AsRef<[u8]>> Directories for Image<B> {
    fn subdirectory(&self, directory: Nid, cookie: u64) -> Option<(Nid, &[u8], u64)> {
        self.read_dir(directory, cookie)
            .find(|entry| entry.file_type == FileType::Directory && !entry.is_dot())
            .map(|entry| (entry.nid, entry.name, entry.next))
    }

    fn path(&self, directory: Nid) -> Option<Vec<u8>> {
        let (mut names, mut bytes, mut at) = (Vec::new(), 0, directory);
        while at != self.root() {
            let parent = self.lookup(at, b"..")?;
            let mut entries = self.read_dir(parent, 0);
            let entry = entries.find(|entry| entry.nid == at && !entry.is_dot())?;
            bytes += entry.name.len() + 1;
            if bytes > PATH_BYTES_MAX {
                return None;
            }
            names.push(entry.name);
            at = parent;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }
}

/// Directories of one slot to be listed, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Visit {
    pub(super) slot: u32,
    /// From the root of its tree, without leading slash.
    pub(super) paths: Vec<Vec<u8>>,
}

/// What was listed, by slot.
#[derive(Debug, Default)]
pub(super) struct Walks(HashMap<u32, Walk>);

impl Walks {
    /// A directory was listed to its end: what to list ahead, if it continues a walk.
    pub(super) fn listed(
        &mut self,
        slot: u32,
        directory: Nid,
        tree: &impl Directories,
    ) -> Option<Visit> {
        if let Some(walk) = self.0.get_mut(&slot) {
            if walk.asked[0].contains(&directory) || walk.asked[1].contains(&directory) {
                return None;
            }
            if walk.expected == Some(directory) {
                walk.run += 1;
                if walk.run < RUN_MIN {
                    walk.step(tree);
                    return None;
                }
                let paths = walk.ask(tree)?;
                return (!paths.is_empty()).then_some(Visit { slot, paths });
            }
        } else if self.0.len() >= WALKS_MAX {
            self.0.clear();
        }
        self.0.insert(slot, Walk::from(directory, tree));
        None
    }
}

/// A walk in the order of entries, each directory before what is below it.
#[derive(Debug)]
struct Walk {
    /// From where it began to the directory found last.
    levels: Vec<Level>,
    /// Who lists this one goes on as expected.
    expected: Option<Nid>,
    /// How many went on so.
    run: u32,
    /// Asked for in the batch before, and in the last one: who lists them tells nothing.
    asked: [HashSet<Nid>; 2],
    /// Directories of the next batch.
    batch: usize,
}

#[derive(Debug)]
struct Level {
    directory: Nid,
    /// Below the level before; of the first one, the path, empty until it is needed.
    name: Vec<u8>,
    /// Subdirectories before this cookie were visited.
    next: u64,
}

impl Walk {
    fn from(directory: Nid, tree: &impl Directories) -> Self {
        let level = Level {
            directory,
            name: Vec::new(),
            next: 0,
        };
        let mut walk = Self {
            levels: vec![level],
            expected: None,
            run: 0,
            asked: Default::default(),
            batch: BATCH_MIN,
        };
        walk.step(tree);
        walk
    }

    /// Expects the next directory.
    fn step(&mut self, tree: &impl Directories) {
        self.expected = self.advance(tree);
    }

    /// The directory after the one found last.
    fn advance(&mut self, tree: &impl Directories) -> Option<Nid> {
        while let Some(level) = self.levels.last_mut() {
            let Some((directory, name, next)) = tree.subdirectory(level.directory, level.next)
            else {
                self.levels.pop();
                continue;
            };
            level.next = next;
            if self.levels.len() < LEVELS_MAX {
                self.levels.push(Level {
                    directory,
                    name: name.to_vec(),
                    next: 0,
                });
                return Some(directory);
            }
        }
        None
    }

    /// The paths of the next batch. The directory in its middle is left out: when it is listed,
    /// the walker is there and has half of the batch before it, and it is time for the next one.
    fn ask(&mut self, tree: &impl Directories) -> Option<Vec<Vec<u8>>> {
        let first = self.levels.first_mut()?;
        if first.name.is_empty() {
            first.name = tree.path(first.directory)?;
        }
        self.asked.swap(0, 1);
        self.asked[1].clear();
        let mut paths = Vec::new();
        let mut marker = None;
        for place in 0..self.batch {
            let Some(directory) = self.advance(tree) else {
                break;
            };
            if place == self.batch / 2 {
                marker = Some(directory);
            } else {
                self.asked[1].insert(directory);
                paths.push(self.path());
            }
        }
        self.expected = marker;
        self.batch = (self.batch * 2).min(BATCH_MAX);
        Some(paths)
    }

    /// The path of the directory found last.
    fn path(&self) -> Vec<u8> {
        let names = self.levels.iter().map(|level| &*level.name);
        let names: Vec<_> = names.filter(|name| !name.is_empty()).collect();
        names.join(&b'/')
    }
}

#[cfg(test)]
mod tests;
