//! Directories that a power cut took although their records are there.
//!
//! A directory is made before its record is committed, and only the database is synced. Journaling file
//! systems keep that order; btrfs need not. What was empty anyway is made again; what held files is lost,
//! and told.

use tracing::warn;

use super::directories::{FS, WORK};
use super::{Content, Kind, Owner, Store, StoreError};
use crate::filter::Filter;

impl Store {
    /// Makes again what is missing and was empty: mount points of lazily loaded layers, and snapshots of
    /// containers. Only right after [`Store::open`]. Returns how many.
    pub fn mend(&self) -> Result<usize, StoreError> {
        let all = self.list(&Filter::default(), None, usize::MAX)?.entries;
        let mut made = 0;
        for (name, record) in all {
            let names = self.directories.names(record.id);
            let has = |name: &str| names.iter().any(|one| one == name);
            if has(FS) && (record.kind != Kind::Active || has(WORK)) {
                continue;
            }
            if record.kind == Kind::Committed && record.content == Content::Directory {
                warn!(
                    snapshot = name,
                    "the files of an unpacked layer are gone, as after a power cut: remove the images \
                     that have it, and pull them again"
                );
                continue;
            }
            let owner = match self.parents(&record.parent)?.first() {
                Some(parent) if record.content == Content::Directory => {
                    self.root_owner(parent).unwrap_or(Owner::ROOT)
                }
                _ => Owner::ROOT,
            };
            self.directories.complete(record.id, record.kind, owner)?;
            made += 1;
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;
    use crate::store::{LayerFacts, New};

    fn create(store: &Store, key: &str, parent: &str) -> u64 {
        let new = New {
            key,
            parent,
            kind: Kind::Active,
            labels: BTreeMap::new(),
            eager: None,
        };
        store.create(&new).unwrap().record.id
    }

    /// Promise: where a power cut took directories and kept their records, what was empty is there again after
    /// the next start; files of an unpacked layer are not replaced by nothing.
    #[test]
    fn directories_that_a_power_cut_took_are_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let unpacked = create(&store, "a", "");
        store.commit("base", "a", BTreeMap::new(), "").unwrap();
        let (lost, half) = (create(&store, "b", "base"), create(&store, "c", "base"));
        let kept = create(&store, "d", "base");
        fs::write(store.fs(kept).join("own"), "kept").unwrap();
        let lazy = store.reserve().unwrap();
        let content = Content::Layer {
            index: "none".into(),
            owner: Owner::ROOT,
        };
        let facts = LayerFacts {
            blob: String::new(),
            location: String::new(),
            origins: Vec::new(),
            namespace: String::new(),
            implied: Vec::new(),
        };
        let labels = BTreeMap::new();
        store
            .adopt(lazy, "lazy", "", labels, content, &facts)
            .unwrap();
        let directories = store.directories();
        for id in [unpacked, lost, lazy] {
            directories.delete(id).unwrap();
        }
        fs::remove_dir(directories.work(half)).unwrap();
        fs::write(store.fs(half).join("own"), "kept").unwrap();
        assert_eq!(store.mend().unwrap(), 3);
        for id in [lost, half, lazy] {
            assert!(directories.fs(id).is_dir(), "{id}");
        }
        assert!(directories.work(lost).is_dir() && directories.work(half).is_dir());
        assert!(
            !directories.fs(unpacked).exists(),
            "what is lost is not made up"
        );
        for id in [kept, half] {
            assert!(directories.fs(id).join("own").exists(), "{id}");
        }
        assert_eq!(store.mend().unwrap(), 0);
    }
}
