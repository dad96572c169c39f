//! Tars made to harm who reads them, each with the answer it must get.
//!
//! One table for everything that meets a layer: the converter (`converter/tests/hostile`), containerd
//! as the oracle, and a node that mounts what was accepted (`tests/tests/containerd_unpack`).

#![expect(clippy::too_many_lines, reason = "tables, which formatting stretches")]

mod canary;
mod links;
mod names;
mod records;
mod streams;

use std::path::Path;

use crate::tar::{Entry, TarBuilder};

pub use canary::Canary;

/// What has to become of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is converted, and shows the tree that containerd unpacks.
    SameTree,
    /// It is refused as broken, with these words; containerd refuses it, too.
    Broken(&'static str),
    /// The same, but containerd takes it.
    BrokenToUs(&'static str),
    /// It is copied unconverted for a reason with these words; containerd refuses it, too.
    Copied(&'static str),
    /// The same, but containerd takes it.
    CopiedByUs(&'static str),
}

impl Answer {
    /// Whether Larder makes a tree of it.
    pub fn is_accepted(self) -> bool {
        self == Self::SameTree
    }
}

/// A layer that wants to harm.
#[derive(Debug, Clone)]
pub struct HostileTar {
    /// What it tries.
    pub name: &'static str,
    /// Its bytes.
    pub tar: Vec<u8>,
    /// What has to become of it.
    pub answer: Answer,
}

/// A layer whose bytes are not a tar at first sight: compressed with malice, or something else.
#[derive(Debug, Clone)]
pub struct HostileBlob {
    /// What it tries.
    pub name: &'static str,
    /// Its bytes as they lie in the registry.
    pub blob: Vec<u8>,
    /// Words of the refusal.
    pub refusal: &'static str,
}

/// The tars. They aim at `canary`, a directory outside of everything that may be touched.
///
/// # Panics
/// If the path is not UTF-8, or as long as a tar's name.
pub fn tars(canary: &Path) -> Vec<HostileTar> {
    let canary = canary.to_str().expect("a path of this test's");
    assert!(canary.len() < 60, "TMPDIR is too long for tar names");
    let mut table = Table(Vec::new());
    names::fill(&mut table, canary);
    links::fill(&mut table, canary);
    records::fill(&mut table);
    table.0
}

/// The way from any directory to the root, and further.
fn up() -> String {
    "../".repeat(30)
}

/// The blobs.
pub fn blobs() -> Vec<HostileBlob> {
    streams::blobs()
}

struct Table(Vec<HostileTar>);

impl Table {
    fn add(
        &mut self,
        name: &'static str,
        answer: Answer,
        entries: impl IntoIterator<Item = Entry>,
    ) {
        let builder = entries.into_iter();
        let tar = builder.fold(TarBuilder::new(), TarBuilder::entry).finish();
        self.raw(name, answer, tar);
    }

    fn raw(&mut self, name: &'static str, answer: Answer, tar: Vec<u8>) {
        self.0.push(HostileTar { name, tar, answer });
    }
}
