//! One look at what containerd has and what is here.

use std::collections::BTreeSet;
use std::path::Path;

use tracing::debug;

use super::{Heard, NAMES_MAX, Survey, lock};
use crate::containerd::{CallError, Containerd};
use crate::filter::Filter;
use crate::store::{Store, StoreError};

/// What containerd and this root directory do not agree on at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Snapshots here that were made for a containerd of before, and that the present one does not know.
    pub(super) unknown: BTreeSet<u64>,
    /// Names of snapshots that containerd has and that are not here.
    pub(super) absent: BTreeSet<String>,
    /// What containerd calls this snapshotter.
    pub(super) snapshotter: String,
}

/// Nothing can be said.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("containerd has no snapshotter at this address")]
    NoPlugin,
    #[error("containerd lists {0} snapshots and does not ask for them")]
    NotAsked(usize),
    #[error("more than {NAMES_MAX} snapshots")]
    TooMany,
}

impl Survey {
    /// Has `containerd`, which calls its root directory `identity`, list what it has of the snapshotter at
    /// `socket`.
    pub(super) async fn look(
        &self,
        store: &Store,
        containerd: &Containerd,
        socket: &Path,
        identity: &str,
    ) -> Result<Look, LookError> {
        let snapshotter = containerd.snapshotter_at(socket).await?;
        let snapshotter = snapshotter.ok_or(LookError::NoPlugin)?;
        // Before containerd lists: what is made meanwhile is not compared.
        let here = tokio::task::block_in_place(|| here(store))?;
        *lock(&self.heard) = Some(Heard::default());
        let listed = async {
            let mut listed = 0;
            for namespace in containerd.namespaces().await? {
                listed += containerd.count_snapshots(&namespace, &snapshotter).await?;
            }
            Ok::<_, CallError>(listed)
        };
        let listed = listed.await;
        let heard = lock(&self.heard).take().unwrap_or_default();
        let listed = listed?;
        if heard.known.len() + heard.absent.len() >= NAMES_MAX {
            return Err(LookError::TooMany);
        }
        if listed > 0 && heard.known.is_empty() {
            return Err(LookError::NotAsked(listed));
        }
        let knows_some = !heard.known.is_empty();
        let before = tokio::task::block_in_place(|| store.meet(identity, knows_some))?;
        let (known, absent) = (heard.known.len(), heard.absent.len());
        debug!(known, absent, "compared with what containerd has");
        let is_unknown = |id: &u64| *id < before && !heard.known.contains(id);
        Ok(Look {
            unknown: here.into_iter().filter(is_unknown).collect(),
            absent: heard.absent,
            snapshotter,
        })
    }
}

/// The ids of all snapshots.
fn here(store: &Store) -> Result<BTreeSet<u64>, StoreError> {
    let all = store.list(&Filter::default(), None, usize::MAX)?.entries;
    Ok(all.into_iter().map(|(_, record)| record.id).collect())
}

impl Look {
    pub(super) fn is_empty(&self) -> bool {
        self.unknown.is_empty() && self.absent.is_empty()
    }

    /// What both found.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self {
            unknown: &self.unknown & &other.unknown,
            absent: &self.absent & &other.absent,
            snapshotter: other.snapshotter.clone(),
        }
    }

    /// What happened, and what to do.
    pub(super) fn why(&self) -> String {
        let mut told = Vec::new();
        if !self.unknown.is_empty() {
            let name = &self.snapshotter;
            told.push(format!(
                "containerd does not know {}: its root directory was wiped or exchanged. End the \
                 containers of before; then containerd removes them with the next snapshot that it \
                 removes: `ctr snapshots --snapshotter {name} prepare larder-collect && ctr snapshots \
                 --snapshotter {name} rm larder-collect`",
                of_snapshots(self.unknown.len(), "that is here", "that are here")
            ));
        }
        if !self.absent.is_empty() {
            told.push(format!(
                "containerd has {}: this root directory was wiped or exchanged. Remove the containers \
                 and images that containerd has for this snapshotter, with `ctr images rm --sync`, and \
                 the leases that interrupted pulls left (`ctr leases ls`, `ctr leases rm`), then pull \
                 again what is needed",
                of_snapshots(self.absent.len(), "that is not here", "that are not here")
            ));
        }
        told.join("; ")
    }
}

fn of_snapshots(count: usize, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 snapshot {one}"),
        _ => format!("{count} snapshots {many}"),
    }
}
