//! The snapshots service over a real socket: codes, masks, listings, what a client sees.

use std::collections::HashMap;

use super::Service;
use super::convert::{LABEL_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX};
use crate::snapshots::Snapshots;
use crate::socket;
use crate::store::Store;
use larder_proto::grpc::snapshots::snapshots_client::SnapshotsClient;
use larder_proto::grpc::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
    UsageRequest, ViewSnapshotRequest,
};
use prost_types::FieldMask;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic::{Code, Status};

struct World {
    client: SnapshotsClient<Channel>,
    dir: tempfile::TempDir,
    _bound: socket::Bound,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (listener, bound) = socket::bind(&path).unwrap();
        let snapshots = Snapshots::start(Store::open(dir.path()).unwrap(), None)
            .await
            .unwrap();
        let server = Server::builder().add_service(Service::server(snapshots));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let client = SnapshotsClient::new(socket::Connector::channel(path));
        Self {
            client,
            dir,
            _bound: bound,
        }
    }

    async fn prepare(&self, key: &str, parent: &str) -> Result<(), Status> {
        let request = PrepareSnapshotRequest {
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::from([("prepared".to_owned(), "1".to_owned())]),
            ..PrepareSnapshotRequest::default()
        };
        self.client.clone().prepare(request).await.map(drop)
    }

    async fn view(&self, key: &str, parent: &str) -> Result<(), Status> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let request = ViewSnapshotRequest {
            key,
            parent,
            ..ViewSnapshotRequest::default()
        };
        self.client.clone().view(request).await.map(drop)
    }

    async fn commit(&self, name: &str, key: &str, parent: &str) -> Result<(), Status> {
        let request = CommitSnapshotRequest {
            name: name.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..CommitSnapshotRequest::default()
        };
        self.client.clone().commit(request).await.map(drop)
    }

    async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        self.client.clone().remove(request).await.map(drop)
    }

    async fn mounts(&self, key: &str) -> Result<(), Status> {
        let request = MountsRequest {
            key: key.to_owned(),
            ..MountsRequest::default()
        };
        self.client.clone().mounts(request).await.map(drop)
    }

    async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .stat(request)
            .await?
            .into_inner()
            .info
            .unwrap())
    }

    async fn update(&self, name: &str, paths: Option<&[&str]>) -> Result<Info, Status> {
        let info = Info {
            name: name.to_owned(),
            labels: HashMap::from([("new".to_owned(), "2".to_owned())]),
            ..Info::default()
        };
        let paths = paths.map(|paths| paths.iter().map(ToString::to_string).collect());
        let request = UpdateSnapshotRequest {
            info: Some(info),
            update_mask: paths.map(|paths| FieldMask { paths }),
            ..UpdateSnapshotRequest::default()
        };
        Ok(self
            .client
            .clone()
            .update(request)
            .await?
            .into_inner()
            .info
            .unwrap())
    }

    async fn list(&self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let request = ListSnapshotsRequest {
            filters,
            ..Default::default()
        };
        let mut stream = self.client.clone().list(request).await?.into_inner();
        let mut pages = Vec::new();
        while let Some(page) = stream.message().await? {
            pages.push(page.info);
        }
        Ok(pages)
    }

    async fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = UsageRequest {
            key: key.to_owned(),
            ..UsageRequest::default()
        };
        let usage = self.client.clone().usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }
}

fn code(result: Result<(), Status>) -> Code {
    result.err().map_or(Code::Ok, |status| status.code())
}

async fn world_with_one_of_each() -> World {
    let world = World::new().await;
    world.prepare("base-key", "").await.unwrap();
    world.commit("base", "base-key", "").await.unwrap();
    world.prepare("active", "base").await.unwrap();
    world.view("view", "base").await.unwrap();
    world
}

/// Promise: every call answers the code containerd acts upon.
#[tokio::test(flavor = "multi_thread")]
async fn errors_while_making_snapshots_have_the_codes_of_the_contract() {
    use Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound};
    let world = world_with_one_of_each().await;
    for (what, got, expected) in [
        (
            "prepare taken",
            world.prepare("active", "").await,
            AlreadyExists,
        ),
        ("view taken", world.view("active", "").await, AlreadyExists),
        ("prepare orphan", world.prepare("x", "none").await, NotFound),
        (
            "prepare on active",
            world.prepare("x", "active").await,
            InvalidArgument,
        ),
        (
            "view on view",
            world.view("x", "view").await,
            InvalidArgument,
        ),
        (
            "commit missing",
            world.commit("x", "none", "").await,
            NotFound,
        ),
        (
            "commit taken",
            world.commit("base", "active", "").await,
            AlreadyExists,
        ),
        (
            "commit view",
            world.commit("x", "view", "").await,
            FailedPrecondition,
        ),
        (
            "commit parent",
            world.commit("x", "active", "b").await,
            InvalidArgument,
        ),
    ] {
        assert_eq!(code(got), expected, "{what}");
    }
}

/// Promise: every call answers the code containerd acts upon.
#[tokio::test(flavor = "multi_thread")]
async fn errors_while_using_snapshots_have_the_codes_of_the_contract() {
    use Code::{FailedPrecondition, InvalidArgument, NotFound};
    let world = world_with_one_of_each().await;
    let field = world.update("base", Some(&["parent"])).await;
    for (what, got, expected) in [
        ("mounts missing", world.mounts("none").await, NotFound),
        (
            "mounts committed",
            world.mounts("base").await,
            FailedPrecondition,
        ),
        ("mounts active", world.mounts("active").await, Code::Ok),
        ("mounts view", world.mounts("view").await, Code::Ok),
        ("remove missing", world.remove("none").await, NotFound),
        (
            "remove parent",
            world.remove("base").await,
            FailedPrecondition,
        ),
        ("stat missing", world.stat("none").await.map(drop), NotFound),
        (
            "update missing",
            world.update("none", None).await.map(drop),
            NotFound,
        ),
        ("update parent", field.map(drop), InvalidArgument),
        (
            "list",
            world.list(&["name=="]).await.map(drop),
            InvalidArgument,
        ),
        (
            "usage missing",
            world.usage("none").await.map(drop),
            NotFound,
        ),
    ] {
        assert_eq!(code(got), expected, "{what}");
    }
    let refused = world.remove("base").await.unwrap_err();
    assert!(
        refused.message().contains("remove"),
        "containerd's suite reads the text"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_mask_means_all_labels() {
    let world = World::new().await;
    world.prepare("key", "").await.unwrap();
    for (paths, expected) in [
        (Some(&["labels.new"][..]), &["new", "prepared"][..]),
        (Some(&["labels.prepared"]), &["new"]),
        (Some(&[]), &["new"]),
        (None, &["new"]),
        (Some(&["labels"]), &["new"]),
    ] {
        let updated = world.update("key", paths).await.unwrap();
        let mut keys: Vec<&str> = updated.labels.keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, expected, "{paths:?}");
    }
    let info = world.stat("key").await.unwrap();
    assert!(info.updated_at.unwrap().seconds >= info.created_at.unwrap().seconds);
    assert_eq!(info.kind(), Kind::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_streams_at_most_100_per_message() {
    let world = World::new().await;
    for number in 0..205 {
        world.prepare(&format!("ns/{number:03}"), "").await.unwrap();
    }
    let sizes: Vec<usize> = world
        .list(&[])
        .await
        .unwrap()
        .iter()
        .map(Vec::len)
        .collect();
    assert_eq!(sizes, [100, 100, 5]);
    let one = world.list(&["name==ns/007", "name==none"]).await.unwrap();
    assert_eq!(one.concat().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_counts_own_files_and_is_fixed_at_commit() {
    let world = World::new().await;
    world.prepare("key", "").await.unwrap();
    let fs = world.dir.path().join("snapshots/1/fs");
    std::fs::write(fs.join("file"), vec![7; 10_000]).unwrap();
    let (size, inodes) = world.usage("key").await.unwrap();
    assert!(size >= 10_000 && inodes == 2, "{size} {inodes}");
    world.commit("name", "key", "").await.unwrap();
    assert_eq!(world.usage("name").await.unwrap(), (size, inodes));
    world.prepare("child", "name").await.unwrap();
    assert_eq!(world.usage("child").await.unwrap().1, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_snapshots_leave_no_file() {
    let world = World::new().await;
    world.prepare("key", "").await.unwrap();
    let path = world.dir.path().join("snapshots/1");
    assert!(path.exists());
    world.remove("key").await.unwrap();
    world
        .client
        .clone()
        .cleanup(CleanupRequest::default())
        .await
        .unwrap();
    let gone = async {
        while path.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(std::time::Duration::from_secs(10), gone).await;
    assert!(waited.is_ok(), "{} is still there", path.display());
}

/// Promise: 32 parallel Prepare calls of one key give one mount and 31 times AlreadyExists.
#[tokio::test(flavor = "multi_thread")]
async fn of_32_parallel_prepares_one_wins() {
    let world = std::sync::Arc::new(World::new().await);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let world = std::sync::Arc::clone(&world);
        calls.spawn(async move { code(world.prepare("key", "").await) });
    }
    let codes = calls.join_all().await;
    assert_eq!(codes.iter().filter(|code| **code == Code::Ok).count(), 1);
    assert_eq!(
        codes
            .iter()
            .filter(|code| **code == Code::AlreadyExists)
            .count(),
        31
    );
}

/// Promise: a request can make a record no larger than containerd itself would, and says so.
#[tokio::test]
async fn labels_and_names_beyond_containerds_limits_are_refused() {
    let world = World::new().await;
    let many = (0..=LABELS_MAX).map(|n| (format!("l{n}"), String::new()));
    let long = "x".repeat(LABEL_BYTES_MAX);
    for (key, labels) in [
        ("k", many.collect()),
        ("k", HashMap::from([("l".to_owned(), long)])),
        (&*"k".repeat(NAME_BYTES_MAX + 1), HashMap::new()),
    ] {
        let request = PrepareSnapshotRequest {
            key: key.to_owned(),
            labels,
            ..PrepareSnapshotRequest::default()
        };
        let refused = world.client.clone().prepare(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    }
    let fits = "x".repeat(LABEL_BYTES_MAX - 1);
    let request = PrepareSnapshotRequest {
        key: "k".repeat(NAME_BYTES_MAX),
        labels: HashMap::from([("l".to_owned(), fits)]),
        ..PrepareSnapshotRequest::default()
    };
    world.client.clone().prepare(request).await.unwrap();
}
