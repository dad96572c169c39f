//! Layers that are believed and not proven, and who else names them.
//!
//! Until its proof, a lazily loaded layer is a claim of the manifest that brought it. Where another
//! image says something else of the same chain, the claim has to be proved before anybody acts on it:
//!
//! ```text
//! Prepare of a layer, chain known by another index   prove; wait; else unpack in the ordinary way
//! Prepare of a container, namespace names another    prove; wait; else come again later
//! ```
//!
//! The second is needed because containerd does not ask for a chain that the namespace has.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::future::join_all;
use larder_proto::annotation;
use larder_proto::digest::Digest;
use tokio::time::{Instant as Moment, timeout_at};

use super::{Lazy, Reason, blocking};
use crate::store::{Record, Store};

/// A layer that nothing new may be mounted on.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Its index lied.
    #[error(
        "layer {chain} is quarantined: its index does not describe it: {lie}; remove the images \
         that have it, and pull those that are wanted again"
    )]
    Quarantined {
        /// The chain it was to complete, or its snapshot's number.
        chain: String,
        /// In which way.
        lie: String,
    },
    /// Images of one namespace say different things of it.
    #[error(
        "layer {chain} is loaded lazily, and another image of this namespace names it with other \
         content than the one that brought it: it is being completed and proved, ask again later \
         ({present} of {total} bytes are here)"
    )]
    Contested {
        /// The chain it completes.
        chain: String,
        /// Bytes on this node.
        present: u64,
        /// Bytes of its tar.
        total: u64,
    },
    /// It took too long to look.
    #[error(
        "layer {chain} is not proven, and containerd did not say in time whether another image \
         names it with other content: ask again"
    )]
    Unknown {
        /// The chain it completes.
        chain: String,
    },
}

impl Lazy {
    /// Whether anybody may use a snapshot that is there: containerd checked what it unpacked
    /// itself; a lazily loaded layer is a claim of the manifest that brought it until all of it is
    /// here and was compared.
    pub(super) fn trusted(&self, record: &Record) -> bool {
        let proven = |layer| {
            self.plane
                .progress(&layer)
                .is_some_and(|progress| progress.proven)
        };
        record.layer().is_none_or(proven)
    }

    /// In which way the layer of a snapshot lied, if it did.
    fn lie(&self, record: &Record) -> Option<String> {
        let progress = record
            .layer()
            .and_then(|layer| self.plane.progress(&layer))?;
        progress.quarantined
    }

    /// Leaves out of `there` what lied, and takes the chain's name from it: nobody adopts it any more.
    pub(super) async fn without_lies(
        &self,
        store: &Arc<Store>,
        there: Vec<(String, Record)>,
    ) -> Result<Vec<(String, Record)>, Reason> {
        let mut honest = Vec::new();
        for (name, record) in there {
            let Some(lie) = self.lie(&record) else {
                honest.push((name, record));
                continue;
            };
            tracing::info!(snapshot = name, lie, "no image gets this layer any more");
            blocking(store, move |store| store.disown(&name, &lie)).await?;
        }
        Ok(honest)
    }

    /// Has the unproven of `there` completed and proved before anything else; waits for that until
    /// `deadline`. The work goes on afterwards.
    pub(super) async fn contest<'a>(
        &self,
        there: impl IntoIterator<Item = &'a Record>,
        deadline: Moment,
    ) {
        let unproven = there.into_iter().filter(|record| !self.trusted(record));
        let layers: BTreeSet<Digest> = unproven.filter_map(Record::layer).collect();
        for layer in &layers {
            tracing::info!(index = %layer, "contested: completing and proving it now");
        }
        let proofs = join_all(layers.iter().map(|layer| self.plane.prove(layer)));
        drop(timeout_at(deadline, proofs).await);
    }

    /// Whether something new may be mounted on `parents`, for the images of `namespace`.
    pub(crate) async fn fit(&self, namespace: &str, parents: &[Record]) -> Result<(), Unfit> {
        self.no_lies(parents)?;
        let unproven: Vec<&Record> = parents.iter().filter(|one| !self.trusted(one)).collect();
        if unproven.is_empty() {
            return Ok(());
        }
        let deadline = Moment::now() + self.deadline;
        let Some(contested) = self.contested(namespace, unproven, deadline).await? else {
            return Ok(());
        };
        self.contest(contested.iter().copied(), deadline).await;
        self.no_lies(parents)?;
        match contested.into_iter().find(|record| !self.trusted(record)) {
            None => Ok(()),
            Some(record) => {
                let progress = record.layer().and_then(|layer| self.plane.progress(&layer));
                let progress = progress.unwrap_or_default();
                Err(Unfit::Contested {
                    chain: name(record),
                    present: progress.bytes_present,
                    total: progress.bytes_total,
                })
            }
        }
    }

    /// Whether no layer among `parents` is known to lie.
    pub(crate) fn no_lies(&self, parents: &[Record]) -> Result<(), Unfit> {
        let lying = parents
            .iter()
            .find_map(|record| Some((record, self.lie(record)?)));
        lying.map_or(Ok(()), |(record, lie)| {
            Err(Unfit::Quarantined {
                chain: name(record),
                lie,
            })
        })
    }

    /// Those of `unproven` of which an image of the namespace says something else than the index they
    /// are loaded by; `None` for none.
    async fn contested<'a>(
        &self,
        namespace: &str,
        unproven: Vec<&'a Record>,
        deadline: Moment,
    ) -> Result<Option<Vec<&'a Record>>, Unfit> {
        let chains: BTreeSet<&str> = unproven
            .iter()
            .filter_map(|one| one.layer_chain())
            .collect();
        let named = self.lookup.named(namespace, &chains);
        let named = match timeout_at(deadline, named).await {
            Ok(Ok(named)) => named,
            Ok(Err(error)) => {
                // Without containerd nobody knows the images; what is loaded is what was asked for.
                tracing::info!(%error, "cannot look whether images contradict each other");
                return Ok(None);
            }
            Err(_) => {
                let chain = unproven.first().map(|one| name(one)).unwrap_or_default();
                return Err(Unfit::Unknown { chain });
            }
        };
        let is_contested = |record: &&Record| {
            let others = record.layer_chain().and_then(|chain| named.get(chain));
            others.is_some_and(|others| {
                others.iter().any(|other| match other {
                    Some(other) => Some(*other) != record.layer(),
                    // Without annotations an image without an index is given one on purpose.
                    None => record.labels.contains_key(annotation::INDEX),
                })
            })
        };
        let contested: Vec<&Record> = unproven.into_iter().filter(is_contested).collect();
        Ok(Some(contested).filter(|contested| !contested.is_empty()))
    }
}

fn name(record: &Record) -> String {
    record
        .layer_chain()
        .map_or_else(|| record.id.to_string(), ToOwned::to_owned)
}
