//! One snapshot, as it is kept in the database.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use larder_proto::digest::Digest;
use serde::{Deserialize, Serialize};

use super::{REF_LABEL, StoreError};

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Writable.
    Active,
    /// Read-only and never committed.
    View,
    /// Immutable; may be a parent.
    Committed,
}

impl Kind {
    /// The word filters use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::View => "view",
            Self::Committed => "committed",
        }
    }
}

/// Owner of a root directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// root:root.
    pub const ROOT: Self = Self { uid: 0, gid: 0 };
}

/// Where the files of a snapshot come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Content {
    /// They lie in its directory.
    Directory,
    /// A lazily loaded layer is mounted at its directory.
    Layer {
        /// Digest of the stored index, which names the layer in the data plane.
        index: String,
        /// Owner of the layer's root directory, kept so that nobody has to ask the mount.
        owner: Owner,
    },
}

/// Disk usage without parents.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970.
    pub seconds: u64,
    /// Nanoseconds of that second.
    pub nanos: u32,
}

impl Timestamp {
    /// The present; 1970 if the clock is before it.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = since.unwrap_or_default();
        Self {
            seconds: since.as_secs(),
            nanos: since.subsec_nanos(),
        }
    }
}

/// One snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Names its directory.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Name of its parent, or empty.
    pub parent: String,
    /// Where its files come from.
    pub content: Content,
    /// When it was made.
    pub created: Timestamp,
    /// When it was committed, or its labels changed.
    pub updated: Timestamp,
    /// Labels, those of containerd that reach a snapshotter.
    pub labels: BTreeMap<String, String>,
    /// Disk usage, once it cannot change any more and was counted.
    pub usage: Option<Usage>,
    /// Why a layer of an image is unpacked here and not loaded lazily; `None` for everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eager: Option<Eager>,
    /// The active snapshot it was committed from: whoever did not hear the answer asks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_from: Option<String>,
}

/// A layer that is unpacked in the ordinary way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eager {
    /// The chain of layers it completes. Its labels need not say so.
    pub chain: String,
    /// Why it is not loaded lazily.
    pub reason: String,
}

/// Longest reason kept, characters: what half a dozen sources said, on a few lines of a terminal.
const REASON_CHARS_MAX: usize = 1000;

impl Eager {
    /// Keeps what fits of `reason`.
    pub fn new(chain: &str, reason: &str) -> Self {
        Self {
            chain: chain.to_owned(),
            reason: reason.chars().take(REASON_CHARS_MAX).collect(),
        }
    }
}

impl Record {
    /// A new snapshot whose files lie in its directory.
    pub fn new(id: u64, kind: Kind, parent: &str, labels: BTreeMap<String, String>) -> Self {
        let now = Timestamp::now();
        Self {
            id,
            kind,
            parent: parent.to_owned(),
            content: Content::Directory,
            created: now,
            updated: now,
            labels,
            usage: None,
            eager: None,
            committed_from: None,
        }
    }

    /// Notes a change; the time never goes back, whatever the clock does.
    pub(super) fn touch(&mut self) {
        self.updated = self.updated.max(Timestamp::now());
    }

    /// The chain of layers this snapshot completes, if it is a committed layer.
    pub fn chain_id(&self) -> Option<&str> {
        (self.kind == Kind::Committed).then_some(())?;
        self.labels.get(REF_LABEL).map(String::as_str)
    }

    /// The same also for layers whose unpacker did not label them, and who so cannot be shared.
    pub fn layer_chain(&self) -> Option<&str> {
        let unlabelled = self.eager.as_ref().map(|eager| eager.chain.as_str());
        let unlabelled = unlabelled.filter(|_| self.kind == Kind::Committed);
        self.chain_id().or(unlabelled)
    }

    /// Digest of the stored index, if it is a lazily loaded layer.
    pub fn layer(&self) -> Option<Digest> {
        match &self.content {
            Content::Directory => None,
            Content::Layer { index, .. } => index.parse().ok(),
        }
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>, StoreError> {
        Ok(serde_json::to_vec(self)?)
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, StoreError> {
        Ok(serde_json::from_slice(bytes)?)
    }
}
