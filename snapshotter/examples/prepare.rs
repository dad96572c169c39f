//! Times Prepare as containerd calls it, without containerd: `scripts/bench` runs it.
//!
//! ```text
//! prepare SOCKET ROOT fresh COUNT    each time: nothing of the layer is on the node
//! prepare SOCKET ROOT index COUNT    each time: its index is in the store, nothing is mounted
//! prepare SOCKET ROOT shared COUNT   each time: another snapshot has the layer mounted
//! prepare SOCKET ROOT keep           makes a snapshot, and prints where the layer is mounted
//! prepare SOCKET ROOT drop           removes that snapshot again
//! ```
//!
//! Standard input is a JSON object with the labels of the lowest layer of an image. Prints
//! milliseconds as a JSON array. Drops the page cache before each call of `fresh` and `index`.

use std::collections::HashMap;
use std::error::Error;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_proto::digest::Digest;
use larder_proto::grpc::snapshots::snapshots_client::SnapshotsClient;
use larder_proto::grpc::snapshots::{
    CommitSnapshotRequest, ListSnapshotsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use larder_snapshotter::containerd::chain_ids;
use larder_snapshotter::socket::Connector;
use larder_snapshotter::store::REF_LABEL;
use tonic::Code;
use tonic::transport::Channel;

/// How long the reaper may take to free a removed layer.
const FREED_MAX: Duration = Duration::from_secs(10);

type Failure = Box<dyn Error>;

struct Node {
    snapshots: SnapshotsClient<Channel>,
    root: PathBuf,
    labels: HashMap<String, String>,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [socket, root, what, count @ ..] = &words[..] else {
        return Err("usage: prepare SOCKET ROOT fresh|index|shared|keep|drop [COUNT]".into());
    };
    let mut labels = String::new();
    std::io::stdin().read_to_string(&mut labels)?;
    let mut node = Node {
        snapshots: SnapshotsClient::new(Connector::channel(socket.into())),
        root: root.into(),
        labels: serde_json::from_str(&labels)?,
    };
    let chain = node
        .labels
        .get(REF_LABEL)
        .ok_or("no label names the chain")?;
    let layer: Digest = chain.parse()?;
    if what == "keep" {
        node.prepare(&layer.to_string(), "").await?;
        let (_, place) = node.find(&layer.to_string()).await?;
        println!("{}", place.display());
        return Ok(());
    }
    if what == "drop" {
        return node.remove(&layer.to_string(), false).await;
    }
    let count: u32 = count.first().ok_or("how often?")?.parse()?;
    let mut times = Vec::new();
    for turn in 0..count {
        let (chain, base) = match what.as_str() {
            // On another base it is another snapshot.
            "shared" => node.base(turn, &layer).await?,
            _ => (layer.to_string(), String::new()),
        };
        if what == "index" {
            // It is unpacked after its index is there: the chain is not that layer's.
            let other = Digest::of(b"another layer").to_string();
            drop(node.prepare(&other, "").await);
            node.discard(&key(&other)).await?;
        }
        if what != "shared" {
            drop_caches()?;
        }
        let began = Instant::now();
        node.prepare(&chain, &base).await?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        node.remove(&chain, what != "shared").await?;
    }
    println!("{}", serde_json::to_string(&times)?);
    Ok(())
}

impl Node {
    /// Prepares a lazy layer; anything but AlreadyExists is an error here.
    async fn prepare(&mut self, chain: &str, parent: &str) -> Result<(), Failure> {
        let mut labels = self.labels.clone();
        labels.insert(REF_LABEL.into(), chain.into());
        let request = PrepareSnapshotRequest {
            key: key(chain),
            parent: parent.into(),
            labels,
            ..PrepareSnapshotRequest::default()
        };
        match self.snapshots.prepare(request).await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(status.message().into()),
            Ok(_) => Err("the layer was not loaded lazily; the daemon's log says why".into()),
        }
    }

    /// Makes a base of its own for each turn of this process: the chain of the layer upon it, and its
    /// name.
    async fn base(&mut self, turn: u32, layer: &Digest) -> Result<(String, String), Failure> {
        let unique = format!("{} {turn}", std::process::id());
        let chains = chain_ids(&[Digest::of(unique.as_bytes()), *layer]);
        let name = format!("bench/2/{}", chains[0]);
        let labels = HashMap::from([(REF_LABEL.to_owned(), chains[0].clone())]);
        let request = PrepareSnapshotRequest {
            key: key(&chains[0]),
            labels: labels.clone(),
            ..PrepareSnapshotRequest::default()
        };
        self.snapshots.prepare(request).await?;
        let request = CommitSnapshotRequest {
            name: name.clone(),
            key: key(&chains[0]),
            labels,
            ..CommitSnapshotRequest::default()
        };
        self.snapshots.commit(request).await?;
        Ok((chains[1].clone(), name))
    }

    async fn discard(&mut self, key: &str) -> Result<(), Failure> {
        let (snapshotter, key) = (String::new(), key.to_owned());
        let request = RemoveSnapshotRequest { snapshotter, key };
        self.snapshots.remove(request).await?;
        Ok(())
    }

    /// The name of the snapshot that completes `chain`, and where its layer is mounted.
    async fn find(&mut self, chain: &str) -> Result<(String, PathBuf), Failure> {
        let request = ListSnapshotsRequest::default();
        let mut pages = self.snapshots.list(request).await?.into_inner();
        while let Some(page) = pages.message().await? {
            for info in page.info {
                if info.labels.get(REF_LABEL).is_some_and(|one| one == chain) {
                    // Names of lazy layers are <namespace>/<id>/lazy <chain>.
                    let id = info.name.split('/').nth(1).ok_or("an odd name")?;
                    let place = self.root.join("snapshots").join(id).join("fs");
                    return Ok((info.name, place));
                }
            }
        }
        Err("the snapshot is not listed".into())
    }

    /// Removes it; `freed` waits until the store let go of the layer, too.
    async fn remove(&mut self, chain: &str, freed: bool) -> Result<(), Failure> {
        let (name, place) = self.find(chain).await?;
        self.discard(&name).await?;
        let began = Instant::now();
        let store = self.root.join("store");
        while place.exists() || (freed && !is_empty(&store)?) {
            if began.elapsed() > FREED_MAX {
                return Err("the removed layer is still there".into());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

/// The key under which a layer is prepared.
fn key(chain: &str) -> String {
    format!("bench/1/extract {chain}")
}

fn is_empty(directory: &Path) -> std::io::Result<bool> {
    Ok(std::fs::read_dir(directory)?.next().is_none())
}

fn drop_caches() -> std::io::Result<()> {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3")
}
