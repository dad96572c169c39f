//! Whether the enumeration finds mistakes: every sync left out, made too early, and made too late.

use super::record::{FileId, Op};
use super::states::{Random, is_sync, keeps, states};
use super::{SEED, Scene, seed};

/// States after each operation, each time it is their turn.
const EACH: usize = 6;

/// How often it is the turn of each, until the mistake is found: mostly in the first.
const TURNS: usize = 100;

/// The same where nothing is expected.
const TURNS_HARMLESS: usize = 12;

/// For how many operations a mistake is looked for: what relies on a sync comes soon after it.
const FAR: usize = 16;

/// What breaks no promise, and why.
const HARMLESS: [(&str, &str); 4] = [
    (
        "sync 1, of device, before what it keeps",
        "the last that it keeps are zeros, which are there by their digest",
    ),
    (
        "sync 2, of pins.new, behind what relies on it",
        "it is the first list: none is lost with it, and it was not answered yet",
    ),
    (
        "sync 6, of the names in \"\", behind what relies on it",
        "it still comes before the answer, and a lie that was not answered is found anew",
    ),
    (
        "sync 7, of 30e9190d7fdfc50d3621e24455a9eafed652c8571a7ddabf75018c1fbe9d73a9.new, behind what relies on it",
        "it still comes before the answer, and until then the name alone says that the index lied",
    ),
];

/// A trace with a mistake in it.
struct Mistake {
    /// Which sync, and what is wrong with it.
    name: String,
    /// The first operation that is another one, and the last.
    from: usize,
    to: usize,
    trace: Vec<Op>,
}

/// The three mistakes with each sync.
fn mistakes(trace: &[Op]) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let syncs = (0..trace.len()).filter(|&at| is_sync(&trace[at]));
    for (number, at) in syncs.enumerate() {
        let sync = &trace[at];
        let name = format!("sync {number}, of {}", called(trace, at));
        let mut add = |what: &str, to: Option<usize>| {
            let mut trace = trace.to_vec();
            trace[at] = Op::Nothing;
            if let Some(to) = to {
                trace.remove(at);
                trace.insert(to, sync.clone());
            }
            mistakes.push(Mistake {
                name: format!("{name}, {what}"),
                from: to.map_or(at, |to| to.min(at)),
                to: to.filter(|&to| to > at).unwrap_or(trace.len() - 1),
                trace,
            });
        };
        add("left out", None);
        let before = trace[..at].iter().rposition(|op| keeps(sync, op));
        add(
            "before what it keeps",
            Some(before.expect("it keeps nothing")),
        );
        // What relies on the bytes of a file is its next name, or that of its bits.
        let next = trace[at + 1..].iter().position(|op| match sync {
            Op::Sync(_) => matches!(op, Op::Rename(..)),
            _ => true,
        });
        if let Some(next) = next {
            add("behind what relies on it", Some(at + 1 + next));
        }
    }
    mistakes
}

/// What a sync is of: its directory, or the last name of its file by then.
fn called(trace: &[Op], at: usize) -> String {
    let name = |file: FileId| {
        let mut named = trace[..at].iter().rev();
        named.find_map(|op| match op {
            Op::Create(path, id) if *id == file => path.file_name(),
            _ => None,
        })
    };
    match &trace[at] {
        Op::Sync(file) => name(*file).unwrap_or_default().display().to_string(),
        Op::SyncNames(directory) => format!("the names in {:?}", directory.display().to_string()),
        other => panic!("{other:?} is no sync"),
    }
}

/// After how many states a mistake is found, and as what.
fn find(
    scene: &Scene,
    mistake: &Mistake,
    turns: usize,
    random: &mut Random,
) -> Option<(usize, String)> {
    let last = mistake.to.min(mistake.from + FAR) + 1;
    let mut looked = 0;
    for _ in 0..turns {
        for state in states(&mistake.trace, mistake.from + 1..=last, EACH, random) {
            looked += 1;
            if let Err(why) = scene.check(&state) {
                return Some((looked, why));
            }
        }
    }
    None
}

/// Promise: the enumeration of what a power cut leaves would find each sync that is left out, and each
/// that comes before what it keeps or after what relies on it, but for those that break nothing.
#[test]
fn a_sync_left_out_or_out_of_its_place_is_found() {
    let seed = seed();
    println!("replay with {SEED}={seed}");
    let (scene, mut random) = (Scene::new(), Random::new(seed));
    let mistakes = mistakes(&scene.trace);
    let mut wrong = Vec::new();
    for mistake in &mistakes {
        let harmless = HARMLESS.iter().find(|(name, _)| *name == mistake.name);
        let turns = harmless.map_or(TURNS, |_| TURNS_HARMLESS);
        match (find(&scene, mistake, turns, &mut random), harmless) {
            (Some((looked, why)), None) => println!("{}: state {looked}: {why}", mistake.name),
            (None, Some((_, why))) => println!("{}: harmless: {why}", mistake.name),
            (Some((_, why)), Some(_)) => wrong.push(format!("{}: {why}", mistake.name)),
            (None, None) => wrong.push(format!("{}: not found", mistake.name)),
        }
    }
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
    let known = |name: &str| mistakes.iter().any(|mistake| mistake.name == name);
    assert!(HARMLESS.iter().all(|(name, _)| known(name)));
}
