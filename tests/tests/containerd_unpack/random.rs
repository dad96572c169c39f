//! Random tars from few names, so that entries meet.

use larder_test_support::tar::{Entry, TarBuilder};

use crate::{Case, Expected};

/// A small generator of pseudo-random numbers (xorshift64*), for reproducible cases.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn number(&mut self, bound: u32) -> i64 {
        i64::try_from(self.below(bound as usize)).expect("less than 2^32")
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const PARTS: [&str; 9] = ["a", "b", "c", "l", "m", "a", "b", "..", "."];
const TARGETS: [&str; 14] = [
    "a", "b", "/a", "/b", "a/b", "../a", "../b", ".", "..", "/", "l", "m", "a/../b", "../l/a",
];

/// `count` tars; the same seed gives the same ones.
pub(crate) fn cases(seed: u64, count: usize) -> Vec<Case> {
    let mut random = Random(seed | 1);
    (0..count)
        .map(|i| Case {
            name: format!("random-{i:04}"),
            tar: tar(&mut random),
            expected: Expected::AsContainerd,
        })
        .collect()
}

fn tar(random: &mut Random) -> Vec<u8> {
    // Half of all short tars unpack; of longer ones, too few would.
    let entries = 2 + random.below(9);
    (0..entries)
        .fold(TarBuilder::new(), |tar, _| tar.entry(entry(random)))
        .finish()
}

fn path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let parts: Vec<&str> = (0..depth).map(|_| random.pick(&PARTS)).collect();
    parts.join("/")
}

fn entry(random: &mut Random) -> Entry {
    let name = path(random);
    let entry = match random.below(16) {
        0..=4 => Entry::directory(name),
        5..=7 => Entry::file(name, "x".repeat(random.below(1_200))),
        8..=11 => Entry::symlink(name, random.pick(&TARGETS)),
        12 => Entry::hard_link(name, path(random)),
        13 => Entry::new(b'6', name),
        14 => Entry::file(format!("{name}/.wh.{}", random.pick(&PARTS)), ""),
        _ => Entry::file(format!("{name}/.wh..wh..opq"), ""),
    };
    let entry = entry
        .mode([0o644, 0o755, 0o2755, 0o4711][random.below(4)])
        .owner(random.number(3), random.number(3))
        .mtime(random.number(1_000));
    match random.below(6) {
        0 => entry.xattr("user.a", "1"),
        1 => entry.xattr("security.b", "2"),
        _ => entry,
    }
}
