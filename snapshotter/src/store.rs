//! The snapshots of this node: one transactional record of each, and a directory.
//!
//! ```text
//! <root>/snapshots.redb        what exists (see `tables`)
//! <root>/snapshots/<id>/fs     files of an ordinary snapshot, mount point of a lazy layer
//! <root>/snapshots/<id>/work   overlayfs's work directory, of active snapshots only
//! ```
//!
//! A record without its directory never exists: the directory is made before the transaction that
//! records it commits, and is deleted after the one that forgets it. What a crash leaves between
//! the two is a directory without a record, which [`Store::orphans`] finds at the next start. Ids
//! are never reused while the process lives, so that a path means one snapshot.

mod directories;
mod error;
mod intact;
mod layers;
mod listing;
mod mend;
mod met;
mod record;
mod tables;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use crate::failpoint::failpoint;
use larder_fuse::stderr::caught;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase, ReadableMultimapTable, ReadableTable,
    WriteTransaction,
};

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};
pub use directories::{Directories, DirectoryError};
pub use error::StoreError;
pub use layers::{ImpliedEntry, LayerFacts, Origin};
pub use record::{Content, Eager, Kind, Owner, Record, Timestamp, Usage};
use tables::{CHILDREN, META, NEXT_ID, REMOVED, SNAPSHOTS};

/// Label that names the chain of layers a snapshot completes.
pub const REF_LABEL: &str = "containerd.io/snapshot.ref";

/// Memory redb may use for pages, bytes. The whole database of a busy node, a thousand snapshots
/// of about 1 KB, fits; the default would be a gigabyte.
const CACHE_BYTES_MAX: usize = 4 << 20;

/// The snapshot store of one root directory.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Database,
    /// Who changes the database: redb lets the others wait too, but out of sight of the tests that
    /// try orders of events.
    turn: Mutex<()>,
    directories: Directories,
    next_id: AtomicU64,
}

/// A snapshot with its parents.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    /// The snapshot itself.
    pub record: Record,
    /// Its parents, nearest first.
    pub parents: Vec<Record>,
}

/// A snapshot that is to be made.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// Its name.
    pub key: &'a str,
    /// A committed snapshot, or empty.
    pub parent: &'a str,
    /// [`Kind::Active`] or [`Kind::View`].
    pub kind: Kind,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Why it is unpacked, if it is a layer.
    pub eager: Option<Eager>,
}

impl Store {
    /// Opens the store below `root`, making it if there is none.
    ///
    /// The database file is locked for as long as the store lives, so a second process fails here.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::open_with(root, |builder, path| builder.create(path))
    }

    /// The same; `create` opens the database file, or makes it. Tests make it fail.
    fn open_with(
        root: &Path,
        create: impl Fn(&Builder, &Path) -> Result<Database, DatabaseError>,
    ) -> Result<Self, StoreError> {
        let directories = Directories::create(&root.join("snapshots"))?;
        let path = root.join("snapshots.redb");
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES_MAX);
        let open =
            |path: &Path| create(&builder, path).map_err(|error| StoreError::open(path, error));
        let highest = directories.highest()?;
        if path.is_symlink() {
            return Err(StoreError::unusable(&path, "it is a link"));
        }
        if path.exists() && !path.is_file() {
            return Err(StoreError::unusable(&path, "it is no file"));
        }
        if !path.exists() && highest > 0 {
            return Err(StoreError::unusable(&path, "it is not there"));
        }
        if !path.exists() {
            // A database whose making was interrupted is none, and would be refused for ever: it
            // gets its name when it is whole.
            let fresh = path.with_extension("new");
            drop(fs::remove_file(&fresh));
            directories::private_file(&fresh)?;
            tables::prepare(&open(&fresh)?)?;
            let named = fs::rename(&fresh, &path).and_then(|()| File::open(root)?.sync_all());
            named.map_err(|error| StoreError::open(&path, error.into()))?;
        }
        // Also a file that an earlier build left open to others.
        directories::private_file(&path)?;
        let is_empty = fs::metadata(&path).is_ok_and(|found| found.len() == 0);
        if is_empty && highest > 0 {
            return Err(StoreError::unusable(&path, "it is empty"));
        }
        intact::check(&path)?;
        let opened = caught(|| {
            let database = open(&path)?;
            let prepared = tables::prepare(&database).map_err(|error| error.of_file(&path))?;
            Ok((database, prepared))
        });
        let (database, prepared) =
            opened.unwrap_or_else(|why| Err(StoreError::damaged(&path, &why)))?;
        let next_id = prepared.max(highest + 1);
        Ok(Self {
            path,
            database,
            turn: Mutex::new(()),
            directories,
            next_id: AtomicU64::new(next_id),
        })
    }

    /// What the database takes on the disk, bytes of blocks: what `du` counts.
    pub fn database_on_disk(&self) -> u64 {
        let found = fs::metadata(&self.path);
        found.map_or(0, |found| found.blocks() * 512)
    }

    /// Where the directories of the snapshots are.
    pub fn directories(&self) -> &Directories {
        &self.directories
    }

    /// Bytes that are free where the snapshots are.
    pub fn disk_free_bytes(&self) -> Option<u64> {
        let found = rustix::fs::statvfs(self.directories.path()).ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// The directory that becomes snapshot `id`'s root: `<root>/snapshots/<id>/fs`.
    pub fn fs(&self, id: u64) -> PathBuf {
        self.directories.fs(id)
    }

    /// Makes an active snapshot or a view.
    pub fn create(&self, new: &New<'_>) -> Result<Chain, StoreError> {
        if new.key.is_empty() {
            return Err(StoreError::EmptyName);
        }
        let id = self.take_id();
        let made = self.create_at(id, new);
        if let Err(error) = &made
            && error.is_certain()
        {
            // Nothing refers to the directory; if it cannot be removed now, the next start does.
            drop(self.directories.delete(id));
        }
        made
    }

    fn create_at(&self, id: u64, new: &New<'_>) -> Result<Chain, StoreError> {
        let (_turn, txn) = self.begin()?;
        if tables::find(&txn, new.key)?.is_some() {
            return Err(StoreError::Exists(new.key.to_owned()));
        }
        let parents = tables::parents(&txn.open_table(SNAPSHOTS)?, new.parent)?;
        let owner = match parents.first() {
            Some(parent) => self.root_owner(parent)?,
            None => Owner::ROOT,
        };
        self.directories.make(id, new.kind, owner)?;
        failpoint("create: directory made");
        let mut record = Record::new(id, new.kind, new.parent, new.labels.clone());
        record.eager.clone_from(&new.eager);
        self.insert(&txn, new.key, &record)?;
        failpoint("create: not committed");
        txn.commit()?;
        failpoint("create: committed");
        Ok(Chain { record, parents })
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`, whose labels are
    /// `labels` alone. `parent` may give it a parent if it has none. Repeating a call whose answer was
    /// lost with the daemon succeeds.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        labels: BTreeMap<String, String>,
        parent: &str,
    ) -> Result<Record, StoreError> {
        if name.is_empty() {
            return Err(StoreError::EmptyName);
        }
        let (_turn, txn) = self.begin()?;
        let Some(mut record) = tables::find(&txn, key)? else {
            let done = tables::find(&txn, name)?;
            let done = done.filter(|done| done.committed_from.as_deref() == Some(key));
            return done.ok_or_else(|| StoreError::Missing(key.to_owned()));
        };
        if record.kind != Kind::Active {
            return Err(StoreError::NotActive(key.to_owned()));
        }
        if tables::find(&txn, name)?.is_some() {
            return Err(StoreError::Exists(name.to_owned()));
        }
        if !parent.is_empty() && parent != record.parent {
            if !record.parent.is_empty() {
                return Err(StoreError::ParentFixed(key.to_owned()));
            }
            tables::parents(&txn.open_table(SNAPSHOTS)?, parent)?;
        }
        tables::delete(&txn, key, &record)?;
        if !parent.is_empty() {
            parent.clone_into(&mut record.parent);
        }
        record.kind = Kind::Committed;
        record.committed_from = Some(key.to_owned());
        record.labels = labels;
        // As containerd's own stores do: a committed snapshot is a new one, and not updated yet.
        record.touch();
        record.created = record.updated;
        self.insert(&txn, name, &record)?;
        failpoint("commit: not committed");
        txn.commit()?;
        failpoint("commit: committed");
        Ok(record)
    }

    /// Forgets a snapshot without children; its directory waits for [`Store::removed`].
    pub fn remove(&self, key: &str) -> Result<Record, StoreError> {
        let (_turn, txn) = self.begin()?;
        let record = tables::get(&txn, key)?;
        if txn
            .open_multimap_table(CHILDREN)?
            .get(key)?
            .next()
            .is_some()
        {
            return Err(StoreError::HasChildren(key.to_owned()));
        }
        tables::delete(&txn, key, &record)?;
        txn.open_table(REMOVED)?.insert(record.id, ())?;
        failpoint("remove: not committed");
        txn.commit()?;
        failpoint("remove: committed");
        Ok(record)
    }

    /// Replaces labels. With `keys`, only those change, and an absent or empty value deletes;
    /// without, `labels` are all.
    pub fn relabel(
        &self,
        key: &str,
        labels: BTreeMap<String, String>,
        keys: Option<&[String]>,
    ) -> Result<Record, StoreError> {
        let (_turn, txn) = self.begin()?;
        let mut record = tables::get(&txn, key)?;
        tables::delete(&txn, key, &record)?;
        match keys {
            None => record.labels = labels,
            Some(keys) => {
                for key in keys {
                    match labels.get(key).filter(|value| !value.is_empty()) {
                        Some(value) => record.labels.insert(key.clone(), value.clone()),
                        None => record.labels.remove(key),
                    };
                }
            }
        }
        record.touch();
        self.insert(&txn, key, &record)?;
        txn.commit()?;
        Ok(record)
    }

    /// One snapshot.
    pub fn stat(&self, key: &str) -> Result<Record, StoreError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        tables::read(&table, key)?.ok_or_else(|| StoreError::Missing(key.to_owned()))
    }

    /// One snapshot with its parents.
    pub fn chain(&self, key: &str) -> Result<Chain, StoreError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        let record =
            tables::read(&table, key)?.ok_or_else(|| StoreError::Missing(key.to_owned()))?;
        let parents = tables::parents(&table, &record.parent)?;
        Ok(Chain { record, parents })
    }

    /// Whether a snapshot that was made on `parent` has a name that passes.
    pub fn has_child(&self, parent: &str, passes: fn(&str) -> bool) -> Result<bool, StoreError> {
        let table = self.database.begin_read()?.open_multimap_table(CHILDREN)?;
        for child in table.get(parent)? {
            if passes(child?.value()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `parent` and its parents, nearest first; nothing for the empty name.
    pub fn parents(&self, parent: &str) -> Result<Vec<Record>, StoreError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        tables::parents(&table, parent)
    }

    /// Keeps the disk usage of a committed snapshot, which cannot change any more.
    pub fn set_usage(&self, key: &str, usage: Usage) -> Result<(), StoreError> {
        let (_turn, txn) = self.begin()?;
        let mut record = tables::get(&txn, key)?;
        if record.kind != Kind::Committed {
            return Ok(());
        }
        record.usage = Some(usage);
        txn.open_table(SNAPSHOTS)?
            .insert(key, record.encode()?.as_slice())?;
        txn.commit()?;
        Ok(())
    }

    /// Ids of removed snapshots whose directories may still exist.
    pub fn removed(&self) -> Result<Vec<u64>, StoreError> {
        let table = self.database.begin_read()?.open_table(REMOVED)?;
        let ids = table.iter()?.map(|entry| Ok(entry?.0.value()));
        ids.collect()
    }

    /// Notes that nothing of these removed snapshots is left.
    pub fn forget(&self, ids: &[u64]) -> Result<(), StoreError> {
        let (_turn, txn) = self.begin()?;
        {
            let mut removed = txn.open_table(REMOVED)?;
            for id in ids {
                removed.remove(id)?;
            }
        }
        txn.commit()?;
        Ok(())
    }

    /// Ids of directories that no record knows: what a crash left. Only right after
    /// [`Store::open`], before anything is made.
    pub fn orphans(&self) -> Result<Vec<u64>, StoreError> {
        let mut ids = self.directories.ids()?;
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        for entry in table.iter()? {
            ids.remove(&Record::decode(entry?.1.value())?.id);
        }
        Ok(ids.into_iter().collect())
    }

    /// Begins a change, when the one before has ended.
    fn begin(&self) -> Result<(MutexGuard<'_, ()>, WriteTransaction), StoreError> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((turn, self.database.begin_write()?))
    }

    fn take_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    fn insert(&self, txn: &WriteTransaction, key: &str, record: &Record) -> Result<(), StoreError> {
        tables::insert(txn, key, record)?;
        let next = self.next_id.load(Ordering::Relaxed);
        txn.open_table(META)?.insert(NEXT_ID, next)?;
        Ok(())
    }

    /// Who owns the root directory of a committed snapshot.
    fn root_owner(&self, record: &Record) -> Result<Owner, StoreError> {
        match &record.content {
            Content::Directory => Ok(self.directories.owner(record.id)?),
            Content::Layer { owner, .. } => Ok(*owner),
        }
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod crash;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod failing;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod schedules;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;
