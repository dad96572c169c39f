//! Lazily loaded layers in the store: what it takes to mount each again without the network.

use std::collections::BTreeMap;

use redb::{ReadableDatabase, ReadableTable};
use serde::{Deserialize, Serialize};

use crate::failpoint::failpoint;

use super::tables::{self, CHAINS, LAYERS, SNAPSHOTS};
use super::{Content, Eager, Kind, Owner, REF_LABEL, Record, Store, StoreError};

/// Where a layer's blob can be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Origin {
    /// Registry, `host` or `host:port`.
    pub host: String,
    /// Repository.
    pub repository: String,
    /// Whether whoever named it asked for plain HTTP. Kept, so that a restart needs no entry in the
    /// configuration to go on fetching.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plain_http: bool,
}

/// Attributes of a directory that the layer implies and its parents define.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImpliedEntry {
    /// Path without a leading slash. Not text: file names are bytes.
    pub path: Vec<u8>,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub owner: Owner,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A lazily loaded layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// Digest of the layer's blob.
    pub blob: String,
    /// Where in the blob the index is: the value of the `larder.index` annotation.
    pub location: String,
    /// Where the blob can be fetched, best first.
    pub origins: Vec<Origin>,
    /// containerd namespace of the image that brought the layer.
    pub namespace: String,
    /// Implied directories as the parents define them.
    pub implied: Vec<ImpliedEntry>,
}

impl Store {
    /// Reserves an id and makes the directory a lazily loaded layer will be mounted at.
    pub fn reserve(&self) -> Result<u64, StoreError> {
        let id = self.take_id();
        self.directories.make(id, Kind::Committed, Owner::ROOT)?;
        failpoint("lazy: directory made");
        Ok(id)
    }

    /// Records the layer that was mounted at a reserved id as the committed snapshot `name`.
    pub fn adopt(
        &self,
        id: u64,
        name: &str,
        parent: &str,
        labels: BTreeMap<String, String>,
        content: Content,
        facts: &LayerFacts,
    ) -> Result<Record, StoreError> {
        let (_turn, txn) = self.begin()?;
        if tables::find(&txn, name)?.is_some() {
            return Err(StoreError::Exists(name.to_owned()));
        }
        tables::parents(&txn.open_table(SNAPSHOTS)?, parent)?;
        let mut record = Record::new(id, Kind::Committed, parent, labels);
        record.content = content;
        let facts = serde_json::to_vec(facts)?;
        txn.open_table(LAYERS)?.insert(id, facts.as_slice())?;
        self.insert(&txn, name, &record)?;
        failpoint("lazy: not committed");
        txn.commit()?;
        failpoint("lazy: committed");
        Ok(record)
    }

    /// Committed snapshots that complete `chain` on `parent`, with their names.
    pub fn completing(
        &self,
        chain: &str,
        parent: &str,
    ) -> Result<Vec<(String, Record)>, StoreError> {
        let txn = self.database.begin_read()?;
        let snapshots = txn.open_table(SNAPSHOTS)?;
        let mut found = Vec::new();
        for name in txn.open_multimap_table(CHAINS)?.get((chain, parent))? {
            let name = name?;
            if let Some(record) = tables::read(&snapshots, name.value())? {
                found.push((name.value().to_owned(), record));
            }
        }
        Ok(found)
    }

    /// Takes its chain from a snapshot whose layer is not that of the chain, as `lie` says: no image
    /// adopts it any more. `status` goes on telling it.
    pub fn disown(&self, name: &str, lie: &str) -> Result<(), StoreError> {
        let (_turn, txn) = self.begin()?;
        let mut record = tables::get(&txn, name)?;
        tables::delete(&txn, name, &record)?;
        if let Some(chain) = record.labels.remove(REF_LABEL) {
            record.eager = Some(Eager::new(&chain, lie));
        }
        record.touch();
        self.insert(&txn, name, &record)?;
        txn.commit()?;
        Ok(())
    }

    /// What is known of the lazily loaded layer `id`.
    pub fn layer_facts(&self, id: u64) -> Result<Option<LayerFacts>, StoreError> {
        let table = self.database.begin_read()?.open_table(LAYERS)?;
        let facts = table.get(id)?;
        Ok(facts
            .map(|facts| serde_json::from_slice(facts.value()))
            .transpose()?)
    }

    /// Forgets the facts of a layer that is no longer mounted.
    pub fn forget_layer(&self, id: u64) -> Result<(), StoreError> {
        let (_turn, txn) = self.begin()?;
        txn.open_table(LAYERS)?.remove(id)?;
        txn.commit()?;
        failpoint("reap: layer forgotten");
        Ok(())
    }

    /// All lazily loaded layers with their names, oldest first: parents before children.
    pub fn layers(&self) -> Result<Vec<(String, Record)>, StoreError> {
        let table = self.database.begin_read()?.open_table(SNAPSHOTS)?;
        let mut layers = Vec::new();
        for entry in table.iter()? {
            let (name, value) = entry?;
            let record = Record::decode(value.value())?;
            if record.layer().is_some() {
                layers.push((name.value().to_owned(), record));
            }
        }
        layers.sort_by_key(|(_, record)| record.id);
        Ok(layers)
    }
}
