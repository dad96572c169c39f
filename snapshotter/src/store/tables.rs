//! The tables of the database, and the few ways they change together.

use redb::{
    Database, MultimapTableDefinition, ReadOnlyTable, ReadableDatabase, ReadableTable,
    TableDefinition, TableError, WriteTransaction,
};

use super::{Kind, Record, StoreError};

/// Name → record, in JSON so that a field can be added without a new version.
pub(super) const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// Parent → children.
pub(super) const CHILDREN: MultimapTableDefinition<'_, &str, &str> =
    MultimapTableDefinition::new("children");
/// (chain, parent) → committed snapshots that complete the chain on that parent.
pub(super) const CHAINS: MultimapTableDefinition<'_, (&str, &str), &str> =
    MultimapTableDefinition::new("chains");
/// Id → what it takes to mount a lazily loaded layer again.
pub(super) const LAYERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("layers");
/// Ids of removed snapshots whose directories may still exist.
pub(super) const REMOVED: TableDefinition<'_, u64, ()> = TableDefinition::new("removed");
/// Numbers of the store as a whole.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// In [`META`]: no id at or above it was ever used.
pub(super) const NEXT_ID: &str = "next_id";
/// In [`META`]: a digest of what the containerd that was met last calls its root directory.
pub(super) const MET: &str = "containerd";
/// In [`META`]: what has an id below it was made before that containerd was met.
pub(super) const MET_BEFORE: &str = "containerd_before";
/// In [`META`]: version of the tables. Tables, and fields of records, are only ever added.
const VERSION: &str = "version";
/// In [`META`]: from which version on a build can use them; without it, from their own.
const READABLE_SINCE: &str = "readable_since";
/// The version this build writes.
const VERSION_NEWEST: u64 = 1;

/// Longest chain of parents: the kernel refuses overlays of more than 500 layers, so a longer
/// chain could not be mounted; it also ends the walk should records ever form a circle.
const PARENTS_MAX: usize = 1000;

/// Makes the tables that are missing and returns the next id. Where none is, nothing is committed: a start must not need
/// room on the disk.
pub(super) fn prepare(database: &Database) -> Result<u64, StoreError> {
    let known = if let Some(meta) = whole(database)? {
        meta
    } else {
        let txn = database.begin_write()?;
        txn.open_table(SNAPSHOTS)?;
        txn.open_multimap_table(CHILDREN)?;
        txn.open_multimap_table(CHAINS)?;
        txn.open_table(LAYERS)?;
        txn.open_table(REMOVED)?;
        let mut meta = txn.open_table(META)?;
        if !is_readable(&meta)? {
            meta.insert(VERSION, VERSION_NEWEST)?;
        }
        drop(meta);
        txn.commit()?;
        database.begin_read()?.open_table(META)?
    };
    Ok(known.get(NEXT_ID)?.map_or(1, |value| value.value()))
}

/// The table of numbers, if no table is missing and the version is one that this build can use.
fn whole(database: &Database) -> Result<Option<ReadOnlyTable<&'static str, u64>>, StoreError> {
    let txn = database.begin_read()?;
    let open = || {
        txn.open_table(SNAPSHOTS)?;
        txn.open_multimap_table(CHILDREN)?;
        txn.open_multimap_table(CHAINS)?;
        txn.open_table(LAYERS)?;
        txn.open_table(REMOVED)?;
        txn.open_table(META)
    };
    match open() {
        Ok(meta) => Ok(is_readable(&meta)?.then_some(meta)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a build that this one understands wrote the tables; not if they have no version yet.
fn is_readable(meta: &impl ReadableTable<&'static str, u64>) -> Result<bool, StoreError> {
    let number = |key| Ok::<_, StoreError>(meta.get(key)?.map(|value| value.value()));
    let Some(found) = number(VERSION)? else {
        return Ok(false);
    };
    if number(READABLE_SINCE)?.unwrap_or(found) > VERSION_NEWEST {
        return Err(StoreError::TooNew {
            found,
            newest: VERSION_NEWEST,
        });
    }
    Ok(true)
}

/// The record of `key`.
pub(super) fn read(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Record>, StoreError> {
    table
        .get(key)?
        .map(|value| Record::decode(value.value()))
        .transpose()
}

/// The record of `key` within a transaction.
pub(super) fn find(txn: &WriteTransaction, key: &str) -> Result<Option<Record>, StoreError> {
    read(&txn.open_table(SNAPSHOTS)?, key)
}

/// The record of `key` within a transaction, or [`StoreError::Missing`].
pub(super) fn get(txn: &WriteTransaction, key: &str) -> Result<Record, StoreError> {
    find(txn, key)?.ok_or_else(|| StoreError::Missing(key.to_owned()))
}

/// `parent` and its parents, nearest first, all of them committed.
pub(super) fn parents(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    parent: &str,
) -> Result<Vec<Record>, StoreError> {
    let mut parents: Vec<Record> = Vec::new();
    let mut name = parent.to_owned();
    while !name.is_empty() && parents.len() < PARENTS_MAX {
        let Some(record) = read(table, &name)? else {
            return Err(StoreError::MissingParent(name));
        };
        if record.kind != Kind::Committed {
            return Err(StoreError::ParentNotCommitted(name));
        }
        name.clone_from(&record.parent);
        parents.push(record);
    }
    Ok(parents)
}

/// Adds `record` and everything that points at it.
pub(super) fn insert(txn: &WriteTransaction, key: &str, record: &Record) -> Result<(), StoreError> {
    let bytes = record.encode()?;
    txn.open_table(SNAPSHOTS)?.insert(key, bytes.as_slice())?;
    if !record.parent.is_empty() {
        txn.open_multimap_table(CHILDREN)?
            .insert(record.parent.as_str(), key)?;
    }
    if let Some(chain) = record.chain_id() {
        txn.open_multimap_table(CHAINS)?
            .insert((chain, record.parent.as_str()), key)?;
    }
    Ok(())
}

/// Takes away `record` and everything that points at it. Its children, if any, keep naming it.
pub(super) fn delete(txn: &WriteTransaction, key: &str, record: &Record) -> Result<(), StoreError> {
    txn.open_table(SNAPSHOTS)?.remove(key)?;
    if !record.parent.is_empty() {
        txn.open_multimap_table(CHILDREN)?
            .remove(record.parent.as_str(), key)?;
    }
    if let Some(chain) = record.chain_id() {
        txn.open_multimap_table(CHAINS)?
            .remove((chain, record.parent.as_str()), key)?;
    }
    Ok(())
}
