//! The snapshot store on a disk that fails once, or from then on, at every place in turn.

use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use redb::StorageBackend;
use redb::backends::FileBackend;

use super::*;
use crate::filter::Filter;

const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// More places than the calls of the test have; the loop ends before.
const PLACES_MAX: usize = 2000;

/// Fails its `nth` change, counted from 0, and the later ones if it is `broken` for good.
#[derive(Debug)]
struct Failing {
    file: FileBackend,
    nth: usize,
    broken: bool,
    errno: i32,
    changes: Arc<AtomicUsize>,
}

impl Failing {
    fn change(&self, change: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let place = self.changes.fetch_add(1, Ordering::Relaxed);
        if place == self.nth || (self.broken && place > self.nth) {
            return Err(io::Error::from_raw_os_error(self.errno));
        }
        change()
    }
}

impl StorageBackend for Failing {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|| self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(|| self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(|| self.file.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }
}

fn new<'a>(key: &'a str, parent: &'a str) -> New<'a> {
    New {
        key,
        parent,
        kind: Kind::Active,
        labels: BTreeMap::new(),
        eager: None,
    }
}

/// What each call answered; `None` for those after a start that failed.
#[derive(Debug, Default)]
struct Answers {
    committed: Option<bool>,
    removed: Option<bool>,
    child: Option<bool>,
}

/// The calls of a pull, a run and a removal.
fn live(store: &Store) -> Answers {
    drop(store.create(&new("a", "")));
    let committed = store.commit("base", "a", BTreeMap::new(), "").is_ok();
    drop(store.create(&new("b", "base")));
    let removed = store.remove("b").is_ok();
    let child = store.create(&new("c", "base")).is_ok();
    Answers {
        committed: Some(committed),
        removed: Some(removed),
        child: Some(child),
    }
}

fn names(store: &Store) -> Vec<String> {
    let page = store.list(&Filter::default(), None, usize::MAX).unwrap();
    page.entries.into_iter().map(|(name, _)| name).collect()
}

/// Promise: wherever a write, sync or truncation of the database fails, with EIO or ENOSPC, once or
/// from then on: no panic; what was answered with success is there after the next start, each
/// snapshot with its directory; and that start works.
#[test]
fn a_failing_write_at_any_place_loses_nothing_that_was_answered() {
    for (errno, broken) in [(EIO, false), (ENOSPC, true)] {
        let mut places = 0;
        for nth in 0..PLACES_MAX {
            let dir = tempfile::tempdir().unwrap();
            let changes = Arc::new(AtomicUsize::new(0));
            let opened = Store::open_with(dir.path(), |builder, path| {
                let mut options = OpenOptions::new();
                options.read(true).write(true).create(true).truncate(false);
                let file = FileBackend::new(options.open(path)?)?;
                builder.create_with_backend(Failing {
                    file,
                    nth,
                    broken,
                    errno,
                    changes: Arc::clone(&changes),
                })
            });
            let answers = opened.map(|store| live(&store)).unwrap_or_default();

            let context = format!("errno {errno}, place {nth}, broken {broken}: {answers:?}");
            let store = Store::open(dir.path()).unwrap_or_else(|e| panic!("{context}: {e}"));
            let names = names(&store);
            let has = |name: &str| names.iter().any(|known| known == name);
            for name in &names {
                let id = store.stat(name).unwrap().id;
                assert!(store.fs(id).is_dir(), "{context}: {name}");
            }
            if answers.committed == Some(true) {
                assert!(has("base") && !has("a"), "{context}: {names:?}");
            }
            if answers.removed == Some(true) {
                assert!(!has("b"), "{context}: {names:?}");
            }
            if answers.child == Some(true) {
                assert!(has("c"), "{context}: {names:?}");
            }
            store.create(&new("new", "")).unwrap();
            if changes.load(Ordering::Relaxed) <= nth {
                places = nth;
                break;
            }
        }
        assert!(
            places > 15,
            "only {places} places; does redb use its backend?"
        );
    }
}
