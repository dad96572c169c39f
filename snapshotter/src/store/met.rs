//! Which containerd the snapshots were made for, as far as that is known.

use larder_proto::digest::Digest;
use redb::ReadableDatabase;

use super::tables::{MET, MET_BEFORE, META};
use super::{Store, StoreError};

impl Store {
    /// Notes that containerd answers, and what it calls its root directory. Returns the id below which
    /// snapshots are of a time before: all there are, when it is another one than the last time; 0 while
    /// it is the one that everything was made for.
    ///
    /// Of the first one nothing is known: `knows_some` says whether it knows any snapshot of here.
    pub fn meet(&self, identity: &str, knows_some: bool) -> Result<u64, StoreError> {
        let mut first = [0; 8];
        first.copy_from_slice(&Digest::of(identity.as_bytes()).as_bytes()[..8]);
        let identity = u64::from_le_bytes(first);
        let (met, before) = {
            let meta = self.database.begin_read()?.open_table(META)?;
            let number = |key| Ok::<_, StoreError>(meta.get(key)?.map(|number| number.value()));
            (number(MET)?, number(MET_BEFORE)?.unwrap_or_default())
        };
        if met == Some(identity) {
            return Ok(before);
        }
        let next = self.next_id.load(std::sync::atomic::Ordering::Relaxed);
        let before = if met.is_none() && knows_some { 0 } else { next };
        let txn = self.database.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            meta.insert(MET, identity)?;
            meta.insert(MET_BEFORE, before)?;
        }
        txn.commit()?;
        Ok(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Kind, New};

    /// Promise: snapshots are of a time before when another containerd answers than the last time, also over
    /// a restart; not those that are made for it.
    #[test]
    fn what_was_made_for_another_containerd_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let make = |store: &Store, key: &str| {
            let new = New {
                key,
                parent: "",
                kind: Kind::Active,
                labels: std::collections::BTreeMap::new(),
                eager: None,
            };
            store.create(&new).unwrap().record.id
        };
        let store = Store::open(dir.path()).unwrap();
        assert!(store.meet("first", false).unwrap() <= make(&store, "default/1/a"));
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        let of_first = make(&store, "default/2/b");
        assert!(store.meet("first", true).unwrap() <= 1);
        assert!(store.meet("second", false).unwrap() > of_first);
        let of_second = make(&store, "default/1/c");
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        let before = store.meet("second", true).unwrap();
        assert!(of_first < before && before <= of_second, "{before}");
    }

    /// Promise: a root directory that an earlier build filled is not told as one of another containerd while
    /// containerd knows what is in it.
    #[test]
    fn the_first_containerd_is_believed_by_what_it_knows() {
        for (knows_some, is_of_before) in [(true, false), (false, true)] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let new = New {
                key: "default/1/a",
                parent: "",
                kind: Kind::Active,
                labels: std::collections::BTreeMap::new(),
                eager: None,
            };
            let id = store.create(&new).unwrap().record.id;
            assert_eq!(id < store.meet("first", knows_some).unwrap(), is_of_before);
        }
    }
}
