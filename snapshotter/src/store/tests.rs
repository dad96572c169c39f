//! The semantics of the store: what containerd relies on, call by call.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use larder_proto::digest::Digest;

use super::*;
use crate::filter::Filter;

struct World {
    dir: tempfile::TempDir,
    store: Store,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    /// As after a kill: no farewell, the same files.
    fn restart(self) -> Self {
        let Self { dir, store } = self;
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        Self { dir, store }
    }

    fn active(&self, key: &str, parent: &str) -> Result<Chain, StoreError> {
        let labels = labels(&[("prepared", "yes")]);
        self.store.create(&New {
            key,
            parent,
            kind: Kind::Active,
            labels,
            eager: None,
        })
    }

    fn view(&self, key: &str, parent: &str) -> Result<Chain, StoreError> {
        self.store.create(&New {
            key,
            parent,
            kind: Kind::View,
            labels: BTreeMap::new(),
            eager: None,
        })
    }

    fn committed(&self, name: &str, parent: &str) -> Record {
        let key = format!("{name}-active");
        self.active(&key, parent).unwrap();
        self.store.commit(name, &key, BTreeMap::new(), "").unwrap()
    }

    fn names(&self) -> Vec<String> {
        let page = self
            .store
            .list(&Filter::default(), None, usize::MAX)
            .unwrap();
        page.entries.into_iter().map(|(name, _)| name).collect()
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn prepare_refuses_what_containerd_expects_to_be_refused() {
    let world = World::new();
    world.committed("base", "");
    world.active("busy", "base").unwrap();
    assert!(matches!(
        world.active("busy", "base"),
        Err(StoreError::Exists(_))
    ));
    assert!(matches!(world.view("busy", ""), Err(StoreError::Exists(_))));
    assert!(matches!(
        world.active("a", "none"),
        Err(StoreError::MissingParent(_))
    ));
    assert!(matches!(
        world.active("a", "busy"),
        Err(StoreError::ParentNotCommitted(_))
    ));
    assert!(matches!(world.active("", ""), Err(StoreError::EmptyName)));
    assert_eq!(
        world.names(),
        ["base", "busy"],
        "a refused call leaves nothing"
    );
    let directories = fs::read_dir(world.dir.path().join("snapshots"))
        .unwrap()
        .count();
    assert_eq!(directories, 2);
}

#[test]
fn commit_renames_once_and_takes_the_new_labels_alone() {
    let world = World::new();
    let before = world.active("key", "").unwrap().record;
    assert_eq!(before.created, before.updated);
    let after = world
        .store
        .commit("name", "key", labels(&[("new", "1")]), "")
        .unwrap();
    assert_eq!(after.id, before.id);
    assert!(after.created > before.created);
    assert_eq!(after.created, after.updated);
    assert_eq!(after.labels, labels(&[("new", "1")]));
    assert!(matches!(
        world.store.stat("key"),
        Err(StoreError::Missing(_))
    ));
    let again = world.store.commit("name2", "key", BTreeMap::new(), "");
    assert!(matches!(again, Err(StoreError::Missing(_))));
}

#[test]
fn commit_refuses_views_taken_names_and_exchanged_parents() {
    let world = World::new();
    world.committed("base", "");
    world.committed("other", "");
    world.view("view", "base").unwrap();
    world.active("key", "base").unwrap();
    let commit = |name, key, parent| world.store.commit(name, key, BTreeMap::new(), parent);
    assert!(matches!(
        commit("n", "view", ""),
        Err(StoreError::NotActive(_))
    ));
    assert!(matches!(
        commit("n", "base", ""),
        Err(StoreError::NotActive(_))
    ));
    assert!(matches!(
        commit("other", "key", ""),
        Err(StoreError::Exists(_))
    ));
    assert!(matches!(
        commit("n", "key", "other"),
        Err(StoreError::ParentFixed(_))
    ));
    assert!(matches!(commit("", "key", ""), Err(StoreError::EmptyName)));
    assert_eq!(commit("n", "key", "base").unwrap().parent, "base");
}

/// Promise: who did not hear the answer, because the daemon died, may ask again; nobody else gets that
/// name.
#[test]
fn a_commit_whose_answer_was_lost_succeeds_again() {
    let world = World::new();
    let done = world.committed("name", "");
    let world = world.restart();
    let again = |name, key| world.store.commit(name, key, BTreeMap::new(), "");
    assert_eq!(again("name", "name-active").unwrap(), done);
    for (name, key) in [("name", "other"), ("other", "name-active")] {
        assert!(
            matches!(again(name, key), Err(StoreError::Missing(_))),
            "{name} {key}"
        );
    }
}

/// Promise: containerd 2.2's Commit may set the parent of a snapshot made without one.
#[test]
fn commit_may_give_a_parent_to_a_snapshot_without_one() {
    let world = World::new();
    world.committed("base", "");
    world.active("key", "").unwrap();
    let missing = world.store.commit("n", "key", BTreeMap::new(), "none");
    assert!(matches!(missing, Err(StoreError::MissingParent(_))));
    world
        .store
        .commit("n", "key", BTreeMap::new(), "base")
        .unwrap();
    assert!(matches!(
        world.store.remove("base"),
        Err(StoreError::HasChildren(_))
    ));
}

#[test]
fn only_leaves_are_removed_and_their_names_are_free_at_once() {
    let world = World::new();
    let base = world.committed("base", "");
    world.active("leaf", "base").unwrap();
    assert!(matches!(
        world.store.remove("base"),
        Err(StoreError::HasChildren(_))
    ));
    let leaf = world.store.remove("leaf").unwrap();
    assert!(matches!(
        world.store.remove("leaf"),
        Err(StoreError::Missing(_))
    ));
    let again = world.active("leaf", "base").unwrap().record;
    assert_ne!(again.id, leaf.id, "a path means one snapshot");
    world.store.remove("leaf").unwrap();
    world.store.remove("base").unwrap();
    assert_eq!(world.store.removed().unwrap(), [base.id, leaf.id, again.id]);
    assert!(
        world.store.fs(leaf.id).exists(),
        "removal only touches the record"
    );
    world.store.forget(&[base.id, leaf.id, again.id]).unwrap();
    assert_eq!(world.store.removed().unwrap(), [] as [u64; 0]);
}

#[test]
fn labels_are_replaced_set_and_deleted() {
    let world = World::new();
    world.active("key", "").unwrap();
    let relabel = |pairs: &[(&str, &str)], keys: Option<&[&str]>| {
        let keys: Option<Vec<String>> =
            keys.map(|keys| keys.iter().map(ToString::to_string).collect());
        world
            .store
            .relabel("key", labels(pairs), keys.as_deref())
            .unwrap()
    };
    assert_eq!(
        relabel(&[("a", "1"), ("b", "2")], None).labels,
        labels(&[("a", "1"), ("b", "2")])
    );
    let partial = relabel(&[("a", "3"), ("c", "unasked")], Some(&["a", "b"]));
    assert_eq!(partial.labels, labels(&[("a", "3")]));
    let emptied = relabel(&[("a", "")], Some(&["a"]));
    assert_eq!(emptied.labels, labels(&[]));
    assert!(emptied.updated > emptied.created);
    let missing = world.store.relabel("none", BTreeMap::new(), None);
    assert!(matches!(missing, Err(StoreError::Missing(_))));
}

#[test]
fn directories_have_the_modes_and_owner_containerd_gives_them() {
    let world = World::new();
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let base = world.active("base-active", "").unwrap().record;
    nix::sys::stat::umask(before);
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(world.store.fs(base.id)), 0o755);
    assert_eq!(mode(world.store.directories().work(base.id)), 0o711);
    std::os::unix::fs::chown(world.store.fs(base.id), Some(1000), Some(1001)).unwrap();
    world
        .store
        .commit("base", "base-active", BTreeMap::new(), "")
        .unwrap();
    let child = world.view("child", "base").unwrap().record;
    let found = fs::metadata(world.store.fs(child.id)).unwrap();
    assert_eq!((found.uid(), found.gid()), (1000, 1001));
    assert!(
        !world.store.directories().work(child.id).exists(),
        "a view is never written"
    );
}

/// Promise: after kill -9 every snapshot is back, at the same path.
#[test]
fn a_restart_changes_nothing() {
    let world = World::new();
    world.committed("base", "");
    world.active("key", "base").unwrap();
    let (before, removed) = (
        world.store.chain("key").unwrap(),
        world.committed("gone", ""),
    );
    world.store.remove("gone").unwrap();
    let world = world.restart();
    assert_eq!(world.store.chain("key").unwrap(), before);
    assert_eq!(world.store.removed().unwrap(), [removed.id]);
    let newest = world.active("later", "").unwrap().record.id;
    assert!(newest > removed.id, "ids are not reused");
}

#[test]
fn a_crash_between_directory_and_record_leaves_an_orphan_that_is_found() {
    let world = World::new();
    let kept = world.active("key", "").unwrap().record.id;
    let orphan = world.store.reserve().unwrap();
    fs::create_dir(world.dir.path().join("snapshots/not-ours")).unwrap();
    let world = world.restart();
    assert_eq!(world.store.orphans().unwrap(), [orphan]);
    let next = world.active("later", "").unwrap().record.id;
    assert!(next > orphan && orphan > kept);
}

#[test]
fn a_second_process_is_refused() {
    let world = World::new();
    assert!(matches!(
        Store::open(world.dir.path()),
        Err(StoreError::InUse(_))
    ));
}

#[test]
fn a_database_of_a_newer_build_is_refused() {
    let world = World::new();
    let txn = world.store.database.begin_write().unwrap();
    txn.open_table(META).unwrap().insert("version", 99).unwrap();
    txn.commit().unwrap();
    let World { dir, store } = world;
    drop(store);
    let refused = Store::open(dir.path()).unwrap_err();
    assert!(matches!(refused, StoreError::TooNew { found: 99, .. }));
    assert!(refused.to_string().contains("put the later build back"));
}

/// Promise: what a later build adds to database and records keeps nobody from going back to this one.
#[test]
fn a_database_of_a_later_build_is_used_if_it_says_so() {
    let world = World::new();
    world.active("kept", "").unwrap();
    let txn = world.store.database.begin_write().unwrap();
    {
        let mut meta = txn.open_table(META).unwrap();
        meta.insert("version", 99).unwrap();
        meta.insert("readable_since", 1).unwrap();
        let mut records = txn.open_table(SNAPSHOTS).unwrap();
        let written = records.get("kept").unwrap().unwrap().value().to_vec();
        let mut record: serde_json::Value = serde_json::from_slice(&written).unwrap();
        record["unheard of"] = 1.into();
        let written = serde_json::to_vec(&record).unwrap();
        records.insert("kept", written.as_slice()).unwrap();
    }
    txn.commit().unwrap();
    let World { dir, store } = world;
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.stat("kept").unwrap().kind, Kind::Active);
}

#[test]
fn a_listing_comes_in_pages_without_gaps() {
    let world = World::new();
    for number in 0..25 {
        world.active(&format!("key-{number:02}"), "").unwrap();
    }
    let filter = Filter::parse(&["name!=key-03".to_owned()]).unwrap();
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let page = world.store.list(&filter, after.as_deref(), 10).unwrap();
        assert!(page.entries.len() <= 10);
        names.extend(page.entries.into_iter().map(|(name, _)| name));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let expected: Vec<String> = (0..25)
        .filter(|n| *n != 3)
        .map(|n| format!("key-{n:02}"))
        .collect();
    assert_eq!(names, expected);
}

/// Promise: 32 parallel Prepare calls of one key make one snapshot.
#[test]
fn of_32_parallel_prepares_of_one_key_one_wins() {
    let world = Arc::new(World::new());
    let calls: Vec<_> = (0..32)
        .map(|_| {
            let world = Arc::clone(&world);
            std::thread::spawn(move || world.active("key", "").is_ok())
        })
        .collect();
    let won = calls
        .into_iter()
        .filter(|_| true)
        .map(|call| call.join().unwrap());
    assert_eq!(won.filter(|won| *won).count(), 1);
    assert_eq!(
        fs::read_dir(world.dir.path().join("snapshots"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn usage_is_kept_for_committed_snapshots_only() {
    let world = World::new();
    world.active("key", "").unwrap();
    let usage = Usage {
        bytes: 1,
        inodes: 2,
    };
    world.store.set_usage("key", usage).unwrap();
    assert_eq!(world.store.stat("key").unwrap().usage, None);
    world.committed("base", "");
    world.store.set_usage("base", usage).unwrap();
    assert_eq!(world.store.stat("base").unwrap().usage, Some(usage));
}

fn facts() -> LayerFacts {
    LayerFacts {
        blob: Digest::of(b"blob").to_string(),
        location: "1:2:3".to_owned(),
        origins: vec![Origin {
            host: "h:5000".to_owned(),
            repository: "r".to_owned(),
            plain_http: true,
        }],
        namespace: "default".to_owned(),
        implied: vec![ImpliedEntry {
            path: b"usr/\xff".to_vec(),
            mode: 0o1777,
            owner: Owner {
                uid: 1,
                gid: u32::MAX,
            },
            xattrs: vec![(b"user.a".to_vec(), vec![0, 255])],
        }],
    }
}

#[test]
fn a_lazy_layer_is_found_by_chain_and_survives_a_restart() {
    let world = World::new();
    let id = world.store.reserve().unwrap();
    let owner = Owner { uid: 7, gid: 8 };
    let content = Content::Layer {
        index: Digest::of(b"index").to_string(),
        owner,
    };
    let chain = labels(&[(REF_LABEL, "sha256:chain")]);
    world
        .store
        .adopt(id, "lazy", "", chain.clone(), content.clone(), &facts())
        .unwrap();
    let again = world.store.adopt(id, "lazy", "", chain, content, &facts());
    assert!(matches!(again, Err(StoreError::Exists(_))));
    let world = world.restart();
    let found = world.store.completing("sha256:chain", "").unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1.layer(), Some(Digest::of(b"index")));
    assert!(
        world
            .store
            .completing("sha256:chain", "other")
            .unwrap()
            .is_empty()
    );
    assert_eq!(world.store.layer_facts(id).unwrap(), Some(facts()));
    assert_eq!(world.store.layers().unwrap().len(), 1);
    let child = world.active("child", "lazy").unwrap().record;
    assert_eq!(fs::metadata(world.store.fs(child.id)).unwrap().uid(), 7);
    world.store.remove("child").unwrap();
    world.store.remove("lazy").unwrap();
    assert!(
        world
            .store
            .completing("sha256:chain", "")
            .unwrap()
            .is_empty()
    );
    world.store.forget_layer(id).unwrap();
    assert_eq!(world.store.layer_facts(id).unwrap(), None);
}

/// Promise: what Larder keeps is for root alone, also where an earlier build or an operator left it
/// open to others.
#[test]
fn root_and_database_are_closed_to_others() {
    let outer = tempfile::tempdir().unwrap();
    let root = outer.path().join("larder");
    let database = root.join("snapshots.redb");
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    drop(Store::open(&root).unwrap());
    assert_eq!((mode(&root), mode(&database)), (0o700, 0o600));
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&database, fs::Permissions::from_mode(0o644)).unwrap();
    drop(Store::open(&root).unwrap());
    assert_eq!((mode(&root), mode(&database)), (0o700, 0o600));
}

/// Promise: records of builds that did not keep the reason are read, and written without it.
#[test]
fn records_without_a_reason_are_understood() {
    let record = Record::new(1, Kind::Active, "", BTreeMap::new());
    let bytes = record.encode().unwrap();
    assert!(!String::from_utf8_lossy(&bytes).contains("eager"));
    assert_eq!(Record::decode(&bytes).unwrap(), record);
    let long = Eager::new("c", &"x".repeat(100_000));
    assert!(long.reason.len() < 2000);
}

/// Promise: a database that is damaged is named, with what to do, and the directories it spoke of stay; one
/// that is empty is not taken for a new one.
#[test]
fn a_damaged_database_is_named_and_nothing_is_made_anew_over_what_is_there() {
    let world = World::new();
    world.active("writable", "").unwrap();
    let World { dir, store } = world;
    let id = store.chain("writable").unwrap().record.id;
    fs::write(store.fs(id).join("written"), "by a container").unwrap();
    let written = store.fs(id).join("written");
    drop(store);
    let path = dir.path().join("snapshots.redb");
    let whole = fs::read(&path).unwrap();
    let half = whole[..whole.len() / 2].to_vec();
    let noise = vec![0xa5; whole.len()];
    for damaged in [Vec::new(), half, noise] {
        fs::write(&path, &damaged).unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("put it back from a copy"), "{error}");
        assert_eq!(fs::read(&written).unwrap(), b"by a container");
    }
    fs::remove_file(&path).unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("it is not there"), "{error}");
    assert_eq!(fs::read(&written).unwrap(), b"by a container");
    assert!(!path.exists(), "nothing was made anew");
    std::os::unix::fs::symlink(&written, &path).unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("it is a link"), "{error}");
    assert_eq!(fs::read(&written).unwrap(), b"by a container");
    fs::remove_file(&path).unwrap();
    fs::write(&path, &whole).unwrap();
    assert_eq!(
        Store::open(dir.path())
            .unwrap()
            .chain("writable")
            .unwrap()
            .record
            .id,
        id
    );
}

/// Regression: a database that was cut off, or in which a page changed, ended the process with a panic of its reader. It opens with
/// what was in it, or is refused by the sentence.
#[test]
fn no_damage_of_the_database_is_a_panic() {
    let world = World::new();
    for number in 0..40 {
        world.active(&format!("writable-{number}"), "").unwrap();
    }
    let World { dir, store } = world;
    drop(store);
    let path = dir.path().join("snapshots.redb");
    let whole = fs::read(&path).unwrap();
    let cut = (1..64).map(|part| whole[..whole.len() / 64 * part].to_vec());
    let changed = (0..whole.len()).step_by(2048).map(|at| {
        let mut bytes = whole.clone();
        bytes[at..at + 16].iter_mut().for_each(|byte| *byte ^= 0xa5);
        bytes
    });
    let mut refused = 0;
    for damaged in cut.chain(changed) {
        fs::write(&path, &damaged).unwrap();
        match Store::open(dir.path()) {
            Ok(store) => drop(store),
            Err(error) => {
                refused += 1;
                let error = error.to_string();
                assert!(error.contains(&path.display().to_string()), "{error}");
                assert!(error.contains("put it back from a copy"), "{error}");
            }
        }
    }
    assert!(refused > 60, "{refused}");
}
