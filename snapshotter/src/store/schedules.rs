//! The snapshot store under the orders of events that shuttle comes to: calls made at once come out
//! as if one had been made after the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex as StdMutex};

use larder_schedules::schedules;
use larder_schedules::shuttle::rand::{Rng, thread_rng};
use larder_schedules::shuttle::thread;
use redb::backends::InMemoryBackend;

use super::*;
use crate::filter::Filter;

/// A call, and the names it is about.
#[derive(Debug, Clone, Copy)]
enum Call {
    Create(&'static str, &'static str),
    Commit(&'static str, &'static str),
    Remove(&'static str),
    Relabel(&'static str),
}

use Call::{Commit, Create, Relabel, Remove};

/// What is made at once, per thread: a layer made twice, a container made while its image is removed, a
/// chain that grows while its ends are removed.
const STORIES: [[&[Call]; 3]; 3] = [
    [
        &[Create("a", ""), Commit("base", "a")],
        &[Create("b", ""), Commit("base", "b"), Remove("b")],
        &[Create("c", "base"), Remove("base")],
    ],
    [
        &[Create("a", ""), Commit("base", "a"), Remove("base")],
        &[Create("b", "base"), Remove("b")],
        &[Relabel("base"), Create("a", "")],
    ],
    [
        &[Create("a", ""), Commit("one", "a"), Create("x", "one")],
        &[Create("b", "one"), Commit("two", "b"), Remove("one")],
        &[Create("c", "two"), Remove("two"), Remove("c")],
    ],
];

/// What a call came to: how often a name was labelled, or why it was refused.
type Answer = Result<usize, &'static str>;

fn name_of(error: &StoreError) -> &'static str {
    match error {
        StoreError::Exists(_) => "exists",
        StoreError::Missing(_) => "missing",
        StoreError::MissingParent(_) => "missing parent",
        StoreError::ParentNotCommitted(_) => "parent not committed",
        StoreError::NotActive(_) => "not active",
        StoreError::HasChildren(_) => "has children",
        other => panic!("{other}"),
    }
}

fn labels(times: usize) -> BTreeMap<String, String> {
    BTreeMap::from([("times".to_owned(), times.to_string())])
}

fn make(store: &Store, call: Call) -> Answer {
    let done = match call {
        Create(key, parent) => store
            .create(&New {
                key,
                parent,
                kind: Kind::Active,
                labels: BTreeMap::new(),
                eager: None,
            })
            .map(|chain| assert!(store.fs(chain.record.id).is_dir())),
        Commit(name, key) => store.commit(name, key, BTreeMap::new(), "").map(drop),
        Remove(key) => store.remove(key).map(drop),
        Relabel(key) => store.relabel(key, labels(1), None).map(drop),
    };
    done.map(|()| 0).map_err(|error| name_of(&error))
}

/// What the store must be: name → (committed, parent, the key it was committed from).
type Model = BTreeMap<&'static str, (bool, &'static str, &'static str)>;

fn expect(model: &mut Model, call: Call) -> Answer {
    let committed = |model: &Model, parent: &str| match model.get(parent) {
        None if parent.is_empty() => Ok(()),
        None => Err("missing parent"),
        Some((true, ..)) => Ok(()),
        Some((false, ..)) => Err("parent not committed"),
    };
    match call {
        Create(key, _) if model.contains_key(key) => return Err("exists"),
        Create(key, parent) => {
            committed(model, parent)?;
            model.insert(key, (false, parent, ""));
        }
        Commit(name, key) => {
            let Some(&(is_committed, parent, _)) = model.get(key) else {
                // Asked again, because the first answer was lost.
                let done = model.get(name).is_some_and(|&(_, _, from)| from == key);
                return if done { Ok(0) } else { Err("missing") };
            };
            if is_committed {
                return Err("not active");
            }
            if model.contains_key(name) {
                return Err("exists");
            }
            model.remove(key);
            model.insert(name, (true, parent, key));
        }
        Remove(key) => {
            model.get(key).ok_or("missing")?;
            if model.values().any(|(_, parent, _)| *parent == key) {
                return Err("has children");
            }
            model.remove(key);
        }
        Relabel(key) => drop(model.get(key).ok_or("missing")?),
    }
    Ok(0)
}

/// Whether some order of the calls, each thread's in its own order, has these answers and this end.
fn is_explained(model: &Model, left: &[&[(Call, Answer)]; 3], end: &Model) -> bool {
    if left.iter().all(|calls| calls.is_empty()) {
        return model == end;
    }
    (0..left.len()).any(|thread| {
        let Some(((call, answer), rest)) = left[thread].split_first() else {
            return false;
        };
        let mut after = model.clone();
        if expect(&mut after, *call) != *answer {
            return false;
        }
        let mut left = *left;
        left[thread] = rest;
        is_explained(&after, &left, end)
    })
}

/// What is in the store, with the directory of each record there.
fn found(store: &Store, known: &[&'static str]) -> Model {
    let page = store.list(&Filter::default(), None, usize::MAX).unwrap();
    let entries = page.entries.into_iter().map(|(name, record)| {
        assert!(store.fs(record.id).is_dir(), "{name} has no directory");
        let word = |text: &str| *known.iter().find(|known| **known == text).unwrap_or(&"");
        (
            word(&name),
            (
                record.kind == Kind::Committed,
                word(&record.parent),
                word(record.committed_from.as_deref().unwrap_or_default()),
            ),
        )
    });
    entries.collect()
}

/// Promise: calls that are made at once have the answers and leave the store as some order of them
/// would, one after the other; no snapshot is without its directory, and no two share one.
#[test]
fn calls_at_once_come_out_as_one_after_the_other() {
    let scratch = Arc::new(StdMutex::new(tempfile::tempdir().unwrap()));
    schedules(move || {
        let story = STORIES[thread_rng().gen_range(0..STORIES.len())];
        let root = tempfile::tempdir_in(scratch.lock().unwrap().path()).unwrap();
        let store = Store::open_with(root.path(), |builder, path| {
            drop(std::fs::File::create(path));
            builder.create_with_backend(InMemoryBackend::new())
        });
        let store = Arc::new(store.unwrap());
        let threads = story.map(|calls| {
            let store = store.clone();
            thread::spawn(move || {
                let made = calls.iter().map(|call| (*call, make(&store, *call)));
                made.collect::<Vec<_>>()
            })
        });
        let answers = threads.map(|thread| thread.join().unwrap());
        let known = ["a", "b", "c", "x", "base", "one", "two"];
        let end = found(&store, &known);
        let left = [&answers[0][..], &answers[1], &answers[2]];
        assert!(
            is_explained(&Model::new(), &left, &end),
            "no order explains {answers:?}, which left {end:?}"
        );
        let ids = store.directories().ids().unwrap();
        let orphans = store.orphans().unwrap();
        let removed = store.removed().unwrap();
        assert!(
            orphans.iter().all(|id| removed.contains(id)),
            "{orphans:?} of {ids:?}"
        );
    });
}
