//! The daemon of one root directory, which is killed and started again, and what it leaves on the disk.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use larder_fuse::mount::{Unmount, mounts, unmount};
use larder_proto::grpc::snapshots::snapshots_client::SnapshotsClient;
use larder_proto::grpc::snapshots::{CleanupRequest, Kind, ListSnapshotsRequest, MountsRequest};
use larder_snapshotter::socket::Connector;
use larder_snapshotter::store::REF_LABEL;
use tonic::transport::Channel;

/// How long the daemon may take to answer after a start, and to free what was removed. Far more than
/// it needs; a busy machine is slow.
const PATIENCE: Duration = Duration::from_mins(1);

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(10);

/// A snapshot as the daemon tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) kind: Kind,
    pub(crate) parent: String,
    /// The chain its labels name.
    pub(crate) chain: Option<String>,
}

/// The program on a root directory of its own.
pub(crate) struct Daemon {
    scratch: tempfile::TempDir,
    child: Child,
    pub(crate) client: SnapshotsClient<Channel>,
    pub(crate) kills: u32,
    is_armed: bool,
    /// The processes that may die by that.
    doomed: Vec<u32>,
}

impl Daemon {
    pub(crate) async fn start(driver: &str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path();
        let config = format!(
            "root = \"{}\"\naddress = \"{}\"\nfs_driver = {driver:?}\ncomplete_in_background = false\n\
             [containerd]\naddress = \"{}\"\n",
            at.join("root").display(),
            at.join("larder.sock").display(),
            at.join("no-containerd.sock").display(),
        );
        std::fs::write(at.join("config.toml"), config).unwrap();
        let child = run(at);
        let client = SnapshotsClient::new(Connector::channel(at.join("larder.sock")));
        let daemon = Self {
            scratch,
            child,
            client,
            kills: 0,
            is_armed: false,
            doomed: Vec::new(),
        };
        daemon.answers().await;
        daemon
    }

    /// The next process that comes by the place `name` dies there.
    pub(crate) fn arm(&mut self, name: &str) {
        self.doomed = self.daemons();
        std::fs::write(self.armed(), name).unwrap();
        self.is_armed = true;
    }

    /// Waits until a process has come by.
    pub(crate) async fn dies(&self, place: &str) {
        let begun = std::time::Instant::now();
        while !self.is_dead() {
            assert!(begun.elapsed() < PATIENCE, "nobody came by {place:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What the supervisor started and has not seen the end of.
    fn daemons(&self) -> Vec<u32> {
        let supervisor = self.child.id();
        let path = format!("/proc/{supervisor}/task/{supervisor}/children");
        let children = std::fs::read_to_string(path).unwrap_or_default();
        let children = children.split_whitespace();
        children.filter_map(|child| child.parse().ok()).collect()
    }

    fn armed(&self) -> PathBuf {
        self.scratch.path().join("armed")
    }

    /// Whether a process came by since: it takes the file away and dies.
    pub(crate) fn is_dead(&self) -> bool {
        self.is_armed && !self.armed().exists()
    }

    /// Waits until its successor answers, which the supervisor starts.
    pub(crate) async fn revive(&mut self) {
        self.kills += 1;
        self.is_armed = false;
        // Between taking the file away and the end there is a system call, and a busy machine.
        let begun = std::time::Instant::now();
        while self.daemons().iter().any(|one| self.doomed.contains(one)) {
            assert!(begun.elapsed() < PATIENCE, "it lives on: {}", self.log());
            tokio::time::sleep(LOOK).await;
        }
        let socket = self.scratch.path().join("larder.sock");
        self.client = SnapshotsClient::new(Connector::channel(socket));
        self.answers().await;
        let ended = self.child.try_wait().unwrap();
        assert_eq!(ended, None, "the supervisor ended: {}", self.log());
    }

    async fn answers(&self) {
        let begun = std::time::Instant::now();
        while self
            .client
            .clone()
            .cleanup(CleanupRequest::default())
            .await
            .is_err()
        {
            assert!(begun.elapsed() < PATIENCE, "no answer: {}", self.log());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Everything there is; `None` if the daemon died over it.
    pub(crate) async fn list(&self) -> Option<BTreeMap<String, Snapshot>> {
        let request = ListSnapshotsRequest::default();
        let mut pages = self.client.clone().list(request).await.ok()?.into_inner();
        let mut found = BTreeMap::new();
        while let Some(page) = pages.message().await.ok()? {
            for info in page.info {
                let snapshot = Snapshot {
                    kind: info.kind(),
                    chain: info.labels.get(REF_LABEL).cloned(),
                    parent: info.parent,
                };
                found.insert(info.name, snapshot);
            }
        }
        Some(found)
    }

    /// The directories that make up the root of an active snapshot, uppermost first.
    pub(crate) async fn lowers(&self, key: &str) -> Vec<PathBuf> {
        let request = MountsRequest {
            key: key.to_owned(),
            ..MountsRequest::default()
        };
        let answer = self
            .client
            .clone()
            .mounts(request)
            .await
            .unwrap()
            .into_inner();
        let options = answer.mounts.into_iter().flat_map(|mount| mount.options);
        let lowers = options.filter_map(|option| {
            let lowers = option.strip_prefix("lowerdir=")?;
            Some(lowers.split(':').map(PathBuf::from).collect::<Vec<_>>())
        });
        lowers.flatten().collect()
    }

    /// Waits until there are as many directories as snapshots, and as many mounts as lazy layers.
    pub(crate) async fn has_nothing_else(&self, snapshots: usize, lazy: usize) {
        let begun = std::time::Instant::now();
        loop {
            let found = (self.directories(), self.mounted());
            if found == (snapshots, lazy) {
                return;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "(directories, mounts): {found:?} instead of {:?}; {}",
                (snapshots, lazy),
                self.log()
            );
            let asked = self.client.clone().cleanup(CleanupRequest::default()).await;
            drop(asked);
            tokio::time::sleep(LOOK).await;
        }
    }

    fn directories(&self) -> usize {
        let entries = std::fs::read_dir(self.snapshots());
        entries.map_or(0, Iterator::count)
    }

    fn mounted(&self) -> usize {
        let below = self.snapshots().canonicalize().unwrap();
        let all = mounts().unwrap();
        all.iter()
            .filter(|mount| mount.target.starts_with(&below))
            .count()
    }

    fn snapshots(&self) -> PathBuf {
        self.scratch.path().join("root/snapshots")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        let Ok(root) = self.scratch.path().canonicalize() else {
            return;
        };
        for mount in mounts().unwrap_or_default().iter().rev() {
            if mount.target.starts_with(&root) {
                drop(unmount(&mount.target, Unmount::Lazy));
            }
        }
    }
}

fn run(at: &Path) -> Child {
    let log = std::fs::File::options()
        .append(true)
        .create(true)
        .open(at.join("log"))
        .unwrap();
    Command::new(env!("CARGO_BIN_EXE_larder-snapshotter"))
        .arg("run")
        .arg("--config")
        .arg(at.join("config.toml"))
        .env("LARDER_FAILPOINT", at.join("armed"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Labels as a request carries them.
pub(crate) fn labels<const N: usize>(all: [(&str, String); N]) -> HashMap<String, String> {
    all.map(|(name, value)| (name.to_owned(), value)).into()
}
