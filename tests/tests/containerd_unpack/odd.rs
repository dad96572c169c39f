//! Hand-made tars, one oddity each.

#![expect(clippy::too_many_lines, reason = "tables, which formatting stretches")]

mod attributes;
mod forms;
mod links;
mod names;
mod whiteouts;

use larder_test_support::tar::{Entry, TarBuilder};

use crate::{Case, Expected};

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    attributes::cases(&mut cases);
    forms::cases(&mut cases);
    links::cases(&mut cases);
    names::cases(&mut cases);
    whiteouts::cases(&mut cases);
    cases
}

fn add<const N: usize>(cases: &mut Vec<Case>, name: &str, expected: Expected, entries: [Entry; N]) {
    let tar = entries
        .into_iter()
        .fold(TarBuilder::new(), TarBuilder::entry);
    raw(cases, name, expected, tar.finish());
}

fn raw(cases: &mut Vec<Case>, name: &str, expected: Expected, tar: Vec<u8>) {
    cases.push(Case {
        name: name.to_owned(),
        tar,
        expected,
    });
}

fn file(name: &str) -> Entry {
    Entry::file(name, name)
}

fn dir(name: &str) -> Entry {
    Entry::directory(name).mtime(1_000)
}
