//! What containerd asks for, at random, and what there has to be afterwards.

use std::collections::BTreeMap;

use larder_proto::annotation;
use larder_proto::digest::Digest;
use larder_proto::grpc::snapshots::{
    CommitSnapshotRequest, Kind, PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use larder_snapshotter::containerd::chain_ids;
use larder_snapshotter::store::REF_LABEL;
use larder_test_support::layer::LayerFixture;
use larder_test_support::registry::FakeRegistry;
use tonic::{Code, Status};

use crate::daemon::{Daemon, Snapshot, labels};

/// Most snapshots a sequence makes before it removes more than it makes.
const SNAPSHOTS_MAX: usize = 24;

/// Snapshots by name: what the daemon has to list.
pub(crate) type Model = BTreeMap<String, Snapshot>;

/// Numbers that are the same for the same seed (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap()
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        (!all.is_empty()).then(|| &all[self.below(all.len())])
    }
}

/// One call.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Prepare {
        key: String,
        parent: String,
    },
    View {
        key: String,
        parent: String,
    },
    /// Prepare of a layer that can be lazy.
    Lazy {
        key: String,
        parent: String,
        layer: usize,
    },
    Commit {
        name: String,
        key: String,
    },
    Remove {
        key: String,
    },
}

/// The layers that can be lazy, and who has them.
pub(crate) struct Images {
    pub(crate) registry: FakeRegistry,
    pub(crate) layers: Vec<LayerFixture>,
}

impl Images {
    fn chain(&self, below: Option<&str>, layer: usize) -> String {
        let diff = Digest::of(&self.layers[layer].tar);
        match below {
            None => chain_ids(&[diff]).remove(0),
            Some(below) => Digest::of(format!("{below} {diff}").as_bytes()).to_string(),
        }
    }
}

impl Op {
    /// A call that can succeed, given what there is; `number` makes names new.
    pub(crate) fn any(random: &mut Random, model: &Model, images: &Images, number: usize) -> Self {
        let names = |wanted: &dyn Fn(&Snapshot) -> bool| -> Vec<String> {
            let found = model.iter().filter(|(_, snapshot)| wanted(snapshot));
            found.map(|(name, _)| name.clone()).collect()
        };
        let committed = names(&|snapshot| snapshot.kind == Kind::Committed);
        let active = names(&|snapshot| snapshot.kind == Kind::Active);
        let leaves: Vec<String> = model
            .keys()
            .filter(|name| !has_children(model, name))
            .cloned()
            .collect();
        let key = format!("ns/{number}/k");
        let parent = match random.below(3) {
            0 => None,
            _ => random.of(&committed).cloned(),
        };
        let limit = if model.len() < SNAPSHOTS_MAX { 10 } else { 4 };
        match random.below(limit) {
            0 | 1 if !leaves.is_empty() => {
                let key = random.of(&leaves).unwrap().clone();
                Self::Remove { key }
            }
            2 | 3 if !active.is_empty() => {
                let key = random.of(&active).unwrap().clone();
                let name = format!("ns/{number}/c");
                Self::Commit { name, key }
            }
            4 => Self::View {
                key,
                parent: parent
                    .or_else(|| random.of(&committed).cloned())
                    .unwrap_or_default(),
            },
            5 | 6 => Self::Prepare {
                key,
                parent: parent.unwrap_or_default(),
            },
            _ => {
                // Only where the chain below is known a layer can be lazy.
                let known =
                    names(&|snapshot| snapshot.chain.is_some() && snapshot.kind == Kind::Committed);
                let parent = random.of(&known).filter(|_| parent.is_some());
                let parent = parent.cloned().unwrap_or_default();
                let layer = random.below(images.layers.len());
                Self::Lazy { key, parent, layer }
            }
        }
    }

    /// Asks the daemon. A layer that is lazy is answered by AlreadyExists.
    pub(crate) async fn call(
        &self,
        daemon: &Daemon,
        images: &Images,
        model: &Model,
    ) -> Result<(), Status> {
        let mut client = daemon.client.clone();
        match self.clone() {
            Self::Prepare { key, parent } => {
                let request = PrepareSnapshotRequest {
                    key,
                    parent,
                    ..Default::default()
                };
                client.prepare(request).await.map(drop)
            }
            Self::View { key, parent } => {
                let request = ViewSnapshotRequest {
                    key,
                    parent,
                    ..Default::default()
                };
                client.view(request).await.map(drop)
            }
            Self::Lazy { key, parent, layer } => {
                let fixture = &images.layers[layer];
                let labels = labels([
                    (REF_LABEL, self.chain(images, model).unwrap()),
                    (annotation::INDEX, fixture.index.to_string()),
                    (annotation::LAYER, fixture.digest.to_string()),
                    (
                        "containerd.io/snapshot/cri.image-ref",
                        images.registry.reference("team/app", "1"),
                    ),
                ]);
                let request = PrepareSnapshotRequest {
                    key,
                    parent,
                    labels,
                    ..Default::default()
                };
                match client.prepare(request).await {
                    Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                    Err(status) => Err(status),
                    Ok(_) => panic!("{self:?} is not lazy: {}", daemon.log()),
                }
            }
            Self::Commit { name, key } => {
                let request = CommitSnapshotRequest {
                    name,
                    key,
                    ..Default::default()
                };
                client.commit(request).await.map(drop)
            }
            Self::Remove { key } => {
                let request = RemoveSnapshotRequest {
                    key,
                    ..Default::default()
                };
                client.remove(request).await.map(drop)
            }
        }
    }

    /// The code of the answer when what was asked for is there already.
    pub(crate) fn answer_if_done(&self) -> Code {
        match self {
            Self::Prepare { .. } | Self::View { .. } => Code::AlreadyExists,
            Self::Remove { .. } => Code::NotFound,
            Self::Lazy { .. } | Self::Commit { .. } => Code::Ok,
        }
    }

    /// Whether `found` is what there was before with the effect of this call; what there was is `before`.
    pub(crate) fn explains(&self, before: &Model, found: &Model, images: &Images) -> bool {
        let mut expected = before.clone();
        match self {
            Self::Prepare { key, parent } => {
                drop(expected.insert(key.clone(), fresh(Kind::Active, parent)));
            }
            Self::View { key, parent } => {
                drop(expected.insert(key.clone(), fresh(Kind::View, parent)));
            }
            Self::Commit { name, key } => {
                let active = expected.remove(key).unwrap();
                expected.insert(name.clone(), fresh(Kind::Committed, &active.parent));
            }
            Self::Remove { key } => drop(expected.remove(key)),
            Self::Lazy { parent, .. } => {
                let chain = self.chain(images, before);
                let wanted = Snapshot {
                    chain,
                    ..fresh(Kind::Committed, parent)
                };
                if !before.values().any(|snapshot| *snapshot == wanted) {
                    // The daemon chooses the name.
                    let new = found.keys().find(|name| !before.contains_key(*name));
                    let Some(name) = new else { return false };
                    expected.insert(name.clone(), wanted);
                }
            }
        }
        expected == *found
    }

    fn chain(&self, images: &Images, model: &Model) -> Option<String> {
        let Self::Lazy { parent, layer, .. } = self else {
            return None;
        };
        let below = model.get(parent).and_then(|parent| parent.chain.as_deref());
        Some(images.chain(below, *layer))
    }
}

/// What can be removed next; nothing when all is gone.
pub(crate) fn removable(model: &Model) -> Option<Op> {
    let leaf = model.keys().find(|name| !has_children(model, name))?;
    Some(Op::Remove { key: leaf.clone() })
}

pub(crate) fn lazy(model: &Model) -> usize {
    model
        .values()
        .filter(|snapshot| snapshot.chain.is_some())
        .count()
}

fn has_children(model: &Model, name: &str) -> bool {
    model.values().any(|snapshot| snapshot.parent == name)
}

fn fresh(kind: Kind, parent: &str) -> Snapshot {
    Snapshot {
        kind,
        parent: parent.to_owned(),
        chain: None,
    }
}
