//! The daemon is killed at every place where a crash may separate two steps, while snapshots are made,
//! committed and removed at random. A model says what there has to be afterwards.
#![expect(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod daemon;
mod ops;

use std::collections::BTreeSet;
use std::path::Path;

use daemon::Daemon;
use larder_proto::grpc::snapshots::Kind;
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::registry::{FakeRegistry, Settings};
use larder_test_support::tar::{Entry, TarBuilder};
use ops::{Images, Model, Op, Random, lazy, removable};

/// Every place, in the order of a snapshot's life.
const PLACES: [&str; 18] = [
    "create: directory made",
    "create: not committed",
    "create: committed",
    "commit: not committed",
    "commit: committed",
    "lazy: nothing added",
    "lazy: added",
    "lazy: directory made",
    "lazy: mounted",
    "lazy: not committed",
    "lazy: committed",
    "remove: not committed",
    "remove: committed",
    "reap: unmounted",
    "reap: layer forgotten",
    "reap: layer freed",
    "reap: directory deleted",
    "reap: noted",
];

/// Calls made at most until somebody comes by a place; some need a lazy layer to be removed.
const CALLS_MAX: usize = 200;

/// Rounds over all places: in CI, and the seed. `scripts/soak snapshots` sets others.
const COUNT: (&str, usize) = ("LARDER_COUNT", 1);
const SEED: (&str, usize) = ("LARDER_SEED", 1);

fn setting((name, default): (&str, usize)) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

struct World {
    daemon: Daemon,
    images: Images,
    model: Model,
    random: Random,
    number: usize,
}

impl World {
    async fn new(driver: &str, seed: usize) -> Self {
        let registry = FakeRegistry::start_now(Settings::default());
        let layers = (0..4).map(|number: usize| {
            let file = Entry::file(format!("file-{number}"), format!("layer {number}"));
            let layer = LayerFixture::new(TarBuilder::new().entry(file).finish());
            registry.push_blob(layer.blob.clone());
            layer
        });
        let layers = layers.collect();
        Self {
            daemon: Daemon::start(driver).await,
            images: Images { registry, layers },
            model: Model::new(),
            random: Random(seed as u64),
            number: 0,
        }
    }

    /// Makes a call and compares what there is then; whether the daemon died meanwhile.
    async fn step(&mut self, op: &Op) -> bool {
        let answer = op.call(&self.daemon, &self.images, &self.model).await;
        // A call may be answered and its effects kill the daemon a moment later.
        let listed = self.daemon.list().await;
        if self.daemon.is_dead() {
            self.recover(op, answer.is_ok()).await;
            return true;
        }
        assert!(answer.is_ok(), "{op:?}: {answer:?}; {}", self.daemon.log());
        let found = listed.expect("a living daemon lists its snapshots");
        self.is_explained(op, &found);
        self.model = found;
        false
    }

    fn is_explained(&self, op: &Op, found: &Model) {
        assert!(
            op.explains(&self.model, found, &self.images),
            "{op:?} made of {:#?} this: {found:#?}",
            self.model
        );
    }

    /// Starts the daemon again: the call was made or was not, nothing between; then it is repeated.
    async fn recover(&mut self, op: &Op, was_answered: bool) {
        self.daemon.revive().await;
        let found = self.daemon.list().await.unwrap();
        let is_done = op.explains(&self.model, &found, &self.images);
        if !is_done {
            assert!(!was_answered, "{op:?} was answered and is lost");
            assert_eq!(found, self.model, "{op:?} is half done");
        }
        let repeated = op.call(&self.daemon, &self.images, &self.model).await;
        let code = repeated.map_or_else(|status| status.code(), |()| tonic::Code::Ok);
        let expected = if is_done {
            op.answer_if_done()
        } else {
            tonic::Code::Ok
        };
        assert_eq!(code, expected, "{op:?}, repeated");
        let found = self.daemon.list().await.unwrap();
        self.is_explained(op, &found);
        self.model = found;
        self.is_intact().await;
    }

    /// Nothing leaked, and what is there can be mounted and read.
    async fn is_intact(&self) {
        let (snapshots, lazy) = (self.model.len(), lazy(&self.model));
        self.daemon.has_nothing_else(snapshots, lazy).await;
        let used = self
            .model
            .iter()
            .filter(|(_, one)| one.kind == Kind::Active);
        for (key, _) in used {
            let lowers = self.daemon.lowers(key).await;
            for lower in lowers {
                let files = std::fs::read_dir(&lower).unwrap();
                for file in files {
                    let file = file.unwrap();
                    let number = file.file_name().into_string().unwrap();
                    let number = number.strip_prefix("file-").unwrap().to_owned();
                    let content = std::fs::read_to_string(file.path()).unwrap();
                    assert_eq!(content, format!("layer {number}"));
                }
            }
        }
    }

    /// Random calls until the daemon dies at `place`.
    async fn die_at(&mut self, place: &str) {
        self.daemon.arm(place);
        for _ in 0..CALLS_MAX {
            self.number += 1;
            let op = Op::any(&mut self.random, &self.model, &self.images, self.number);
            if self.step(&op).await {
                return;
            }
        }
        // Perhaps a moment after the last call.
        self.daemon.dies(place).await;
        self.daemon.revive().await;
        self.is_intact().await;
    }

    async fn remove_all(&mut self) {
        while let Some(op) = removable(&self.model) {
            assert!(!self.step(&op).await, "died without a reason");
        }
        self.daemon.has_nothing_else(0, 0).await;
    }
}

/// Promise: a daemon that is killed at any place of Prepare, Commit and Remove, or while what was removed is
/// freed, loses no snapshot and leaks no directory and no mount; the call that was cut off was made or was
/// not, and can be repeated.
async fn a_kill_at_any_place_loses_and_leaks_nothing(driver: larder_fuse::DriverChoice) {
    let driver = match driver {
        larder_fuse::DriverChoice::Erofs => "erofs",
        _ => "fuse",
    };
    let (seed, count) = (setting(SEED), setting(COUNT));
    println!("replay: {}={seed} {}={count}", SEED.0, COUNT.0);
    let mut world = World::new(driver, seed).await;
    for _ in 0..count {
        for place in PLACES {
            world.die_at(place).await;
        }
    }
    world.remove_all().await;
    println!("{} kills, {} calls", world.daemon.kills, world.number);
    assert_eq!(world.daemon.kills as usize, count * PLACES.len());
}

on_both_drivers!(a_kill_at_any_place_loses_and_leaks_nothing);

/// Promise: no place is left out.
#[test]
fn the_daemon_is_killed_at_every_place_there_is() {
    fn look(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, found);
            } else {
                let text = std::fs::read_to_string(path).unwrap();
                let places = text.split("failpoint(\"").skip(1);
                found.extend(places.map(|place| place.split('"').next().unwrap().to_owned()));
            }
        }
    }
    let mut found = BTreeSet::new();
    look(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    assert_eq!(found, PLACES.map(str::to_owned).into());
}
