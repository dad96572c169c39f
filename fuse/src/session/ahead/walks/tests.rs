//! Walks over a regular tree, whose numbers are those of a walk in order.

use super::*;

const SLOT: u32 = 3;

/// `WIDTH` directories in each, `DEPTH` deep; numbers are those of a walk in order.
struct Regular;

const WIDTH: u64 = 4;
const DEPTH: u32 = 5;
const NAMES: [&[u8]; 4] = [b"a", b"b", b"c", b"d"];

/// Directories below one at a height, itself included.
fn size(height: u32) -> u64 {
    (0..=height).map(|h| WIDTH.pow(h)).sum()
}

impl Regular {
    fn height(directory: Nid) -> u32 {
        let (mut at, mut height) = (directory.0, DEPTH);
        while at > 0 {
            at = (at - 1) % size(height - 1);
            height -= 1;
        }
        height
    }
}

impl Directories for Regular {
    fn subdirectory(&self, directory: Nid, cookie: u64) -> Option<(Nid, &[u8], u64)> {
        let height = Self::height(directory);
        let found = directory.0 + 1 + cookie * size(height.checked_sub(1)?);
        let name = NAMES.get(usize::try_from(cookie).ok()?)?;
        Some((Nid(found), name, cookie + 1))
    }

    fn path(&self, directory: Nid) -> Option<Vec<u8>> {
        (directory == Nid(0)).then(Vec::new)
    }
}

/// Lists all directories in order, those ahead as soon as they are asked for; how many the walker
/// had to ask for itself, and how many were listed ahead.
fn walk(order: impl Iterator<Item = u64>) -> (usize, usize) {
    let (mut walks, mut ahead) = (Walks::default(), HashSet::new());
    let mut own = 0;
    for directory in order {
        if ahead.contains(&directory) {
            continue;
        }
        own += 1;
        if let Some(visit) = walks.listed(SLOT, Nid(directory), &Regular) {
            assert_eq!(visit.slot, SLOT);
            for path in visit.paths {
                let found = resolve(&path);
                assert!(ahead.insert(found), "{found} twice");
                assert_eq!(walks.listed(SLOT, Nid(found), &Regular), None);
            }
        }
    }
    (own, ahead.len())
}

fn resolve(path: &[u8]) -> u64 {
    let mut at = Nid(0);
    for name in path.split(|&byte| byte == b'/') {
        let cookie = u64::from(name[0] - b'a');
        at = Regular.subdirectory(at, cookie).unwrap().0;
    }
    at.0
}

/// Promise: whoever walks a tree finds nearly all of it listed, each directory once.
#[test]
fn a_walk_is_listed_ahead() {
    let all = size(DEPTH);
    let (own, ahead) = walk(0..all);
    assert_eq!(own + ahead, usize::try_from(all).unwrap());
    assert!(own < 40, "{own} of {all}");
}

/// Promise: whoever stops costs one batch at most.
#[test]
fn who_stops_is_not_followed() {
    assert_eq!(walk(0..2), (2, 0));
    assert_eq!(walk(0..3).1, BATCH_MIN - 1);
    assert_eq!(walk(0..8).1, BATCH_MIN - 1);
}

/// Promise: directories listed out of order cost nothing: imports, look-ups, a walk backwards.
#[test]
fn what_is_no_walk_brings_nothing() {
    let all = size(DEPTH);
    assert_eq!(walk((0..all).rev()).1, 0);
    assert_eq!(walk((0..all).step_by(2)).1, 0);
    assert_eq!(walk([0, 1, 400, 401, 7, 8, 0, 1].into_iter()).1, 0);
}

/// Promise: the walker and the one ahead may both be anywhere: what is asked for is no news.
#[test]
fn a_walker_that_is_as_fast_goes_on() {
    let mut walks = Walks::default();
    let mut visits = 0;
    for directory in 0..size(DEPTH) {
        visits += usize::from(walks.listed(SLOT, Nid(directory), &Regular).is_some());
    }
    assert!(visits > 8, "{visits}");
}

/// Promise: many slots and deep trees are bounded.
#[test]
fn memory_is_bounded() {
    struct Endless;
    impl Directories for Endless {
        fn subdirectory(&self, directory: Nid, cookie: u64) -> Option<(Nid, &[u8], u64)> {
            (cookie == 0).then_some((Nid(directory.0 + 1), &b"d"[..], 1))
        }

        fn path(&self, _: Nid) -> Option<Vec<u8>> {
            Some(b"begin".into())
        }
    }
    let mut walks = Walks::default();
    for slot in 0..1000 {
        for directory in 0..1000 {
            walks.listed(slot, Nid(directory), &Endless);
        }
    }
    assert!(walks.0.len() <= WALKS_MAX);
    for walk in walks.0.values() {
        assert!(walk.levels.len() <= LEVELS_MAX);
        assert!(walk.asked.iter().all(|asked| asked.len() <= BATCH_MAX));
    }
}
