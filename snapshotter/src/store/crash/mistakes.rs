//! Whether the enumeration finds mistakes: every sync left out, made too early, and made too late.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Known, Op, Random, SEED, check, live, place, seed};

/// How often each place is looked at, until the mistake is found: mostly in the first round.
const TURNS: usize = 40;

/// The same where nothing is expected.
const TURNS_HARMLESS: usize = 1;

/// For how many operations a mistake is looked for: what relies on a sync comes soon after it.
const FAR: usize = 12;

/// The syncs, counted from the first snapshot on, with which no mistake breaks a promise, and why. All
/// are redb's, around an end: 480 states of each mistake were looked at, and each start went well.
const HARMLESS: [(usize, &str); 7] = [
    (7, "the next operation is a sync, too"),
    (8, "it keeps nothing that the one before did not"),
    (
        9,
        "without the mark of an orderly end, the next start repairs",
    ),
    (
        10,
        "the next commit keeps the mark of a start; before, nothing overwrites what is in use",
    ),
    (
        14,
        "the roots of before and after lie in what is left of the file",
    ),
    (
        15,
        "a file that is longer than it says is cut at its next end",
    ),
    (16, "as 9"),
];

/// A trace with a mistake in it.
struct Mistake {
    name: String,
    /// Which of the syncs.
    number: usize,
    /// The first operation that is another one, and the last.
    from: usize,
    to: usize,
    ops: Vec<Op>,
}

/// The three mistakes with each sync behind the first `begin` operations.
fn mistakes(ops: &[Op], begin: usize) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    let syncs = (begin..ops.len()).filter(|&at| matches!(ops[at], Op::Sync));
    for (number, at) in syncs.enumerate() {
        let is_other = |op: &Op| !matches!(op, Op::Sync);
        let before = ops[begin..at]
            .iter()
            .rposition(is_other)
            .map(|to| begin + to);
        let behind = ops[at..].iter().position(is_other).map(|to| at + to);
        let places = [
            ("left out", Some(at)),
            ("too early", before),
            ("too late", behind),
        ];
        for (what, to) in places
            .into_iter()
            .filter_map(|(what, to)| Some((what, to?)))
        {
            let mut ops = ops.to_vec();
            if to == at {
                ops[at] = Op::Nothing;
            } else {
                let sync = ops.remove(at);
                ops.insert(to, sync);
            }
            mistakes.push(Mistake {
                name: format!("sync {number}, {what}"),
                number,
                from: to.min(at),
                to: if to > at { to } else { ops.len() - 1 },
                ops,
            });
        }
    }
    mistakes
}

/// After how many states a mistake is found, and as what.
fn find(
    mistake: &Mistake,
    known: &Known,
    turns: usize,
    random: &mut Random,
) -> Option<(usize, String)> {
    let dir = place();
    let mut looked = 0;
    for _ in 0..turns {
        for after in mistake.from + 1..=mistake.to.min(mistake.from + FAR) + 1 {
            looked += 1;
            let ops = &mistake.ops[..after];
            // redb takes some states that it cannot have written for a defect of its own.
            let checked = catch_unwind(AssertUnwindSafe(|| check(dir.path(), ops, known, random)));
            match checked {
                Ok(Ok(())) => {}
                Ok(Err(why)) => return Some((looked, why)),
                Err(_) => return Some((looked, "no start: it panics".to_owned())),
            }
        }
    }
    None
}

/// Promise: the enumeration of what a power cut leaves of the database would find each sync that is
/// left out, and each that changes places with the operation before or after it, but for those that
/// break nothing.
#[test]
fn a_sync_of_the_database_left_out_or_out_of_its_place_is_found() {
    let seed = seed();
    println!("replay with {SEED}={seed}");
    let (ops, known) = live();
    let mut random = Random(seed);
    let mistakes = mistakes(&ops, known[0].0);
    let mut wrong = Vec::new();
    for mistake in &mistakes {
        let harmless = HARMLESS
            .iter()
            .find(|(number, _)| *number == mistake.number);
        let turns = harmless.map_or(TURNS, |_| TURNS_HARMLESS);
        match (find(mistake, &known, turns, &mut random), harmless) {
            (Some((looked, why)), None) => println!("{}: state {looked}: {why}", mistake.name),
            (None, Some((_, why))) => println!("{}: harmless: {why}", mistake.name),
            (Some((_, why)), Some(_)) => wrong.push(format!("{}: {why}", mistake.name)),
            (None, None) => wrong.push(format!("{}: not found", mistake.name)),
        }
    }
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
    let last = mistakes.iter().map(|mistake| mistake.number).max();
    assert_eq!(last, Some(16), "other syncs than those that were looked at");
}
