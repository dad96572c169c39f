//! Registries as sources: mirrors that lie, repositories that do not have the blob.

use std::path::PathBuf;
use std::sync::Arc;

use larder_fuse::{
    AddLayerError, BoxFuture, DriverChoice, Elsewhere, Layer, LayerSpec, RegistrySource, Source,
};
use larder_registry::{Client, ClientOptions};
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::registry::{FakeRegistry, Fault, On};

use crate::scene::{Scene, layer_of, noise, read};

/// A client without this machine's credentials, and `r.test` as `hosts` says.
struct Network {
    client: Client,
    _files: tempfile::TempDir,
}

impl Network {
    fn new(hosts: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        std::fs::create_dir(files.path().join("r.test")).unwrap();
        std::fs::write(files.path().join("r.test/hosts.toml"), hosts).unwrap();
        let authfile = files.path().join("auth.json");
        std::fs::write(&authfile, "{}").unwrap();
        let options = ClientOptions {
            authfile: Some(authfile),
            hosts_dir: Some(files.path().into()),
            ..ClientOptions::default()
        };
        Self {
            client: Client::new(options).unwrap(),
            _files: files,
        }
    }

    fn source(&self, repository: &str, fixture: &LayerFixture) -> Arc<dyn Source> {
        let reference = repository.parse().unwrap();
        let repository = self.client.repository(&reference);
        Arc::new(RegistrySource::new(repository, fixture.digest))
    }
}

/// Sources that are found only when they are looked for.
#[derive(Debug)]
struct Found(Vec<Arc<dyn Source>>);

impl Elsewhere for Found {
    fn find(&self) -> BoxFuture<'_, Vec<Arc<dyn Source>>> {
        Box::pin(async { self.0.clone() })
    }
}

async fn add(
    scene: &Scene,
    fixture: &LayerFixture,
    source: Arc<dyn Source>,
    elsewhere: Vec<Arc<dyn Source>>,
) -> Result<Layer, AddLayerError> {
    let spec = LayerSpec {
        blob: fixture.digest,
        index: fixture.index,
        sources: vec![source],
        elsewhere: Some(Arc::new(Found(elsewhere))),
    };
    scene.plane().add_layer(spec).await
}

async fn mount(scene: &Scene, layer: &Layer) -> PathBuf {
    let target = scene.directory("at");
    layer.mount(&target, &[]).await.unwrap();
    target.join("data")
}

/// Reads a page from the end, so that most chunks stay where they are.
async fn read_some(file: PathBuf) {
    let read = move || {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(file)?;
        let len = file.metadata()?.len();
        file.read_exact_at(&mut [0; 4096], len - 4096)
    };
    tokio::task::spawn_blocking(read).await.unwrap().unwrap();
}

/// Promise: a mirror that sends wrong bytes is found out by the digest and left alone for a while;
/// index and reads succeed from the next one.
async fn a_lying_mirror_is_left_for_the_next_one(driver: DriverChoice) {
    let (mirror, server) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let data = noise(21, 300_000);
    let fixture = layer_of(&data);
    mirror.push_blob(fixture.blob.clone());
    server.push_blob(fixture.blob.clone());
    let network = Network::new(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    ));
    mirror.set_fault(Fault::FlippedBit);
    let scene = Scene::new(driver).await;
    let source = network.source("r.test/team/app:v1", &fixture);
    let layer = add(&scene, &fixture, source, Vec::new()).await.unwrap();
    assert_eq!(mirror.requests().len(), 1, "asked once for the index");
    let file = mount(&scene, &layer).await;
    assert_eq!(read(file).await.unwrap(), data);
    assert_eq!(mirror.requests().len(), 1, "not asked for chunks");
    assert!(layer.status().sources[0].bytes > 0);
}

/// Promise: the same for a mirror that begins to lie while chunks are read.
async fn a_mirror_that_begins_to_lie_costs_no_read(driver: DriverChoice) {
    let (mirror, server) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let data = noise(22, 3_000_000);
    let fixture = layer_of(&data);
    mirror.push_blob(fixture.blob.clone());
    server.push_blob(fixture.blob.clone());
    let network = Network::new(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        server.host(),
        mirror.host()
    ));
    let scene = Scene::new(driver).await;
    let source = network.source("r.test/team/app:v1", &fixture);
    let layer = add(&scene, &fixture, source, Vec::new()).await.unwrap();
    mirror.set_fault(Fault::OtherBlob);
    let file = mount(&scene, &layer).await;
    assert_eq!(read(file).await.unwrap(), data);
    let status = layer.status();
    let why = status.sources[0].last_failure.clone().unwrap();
    assert!(why.contains("is wrong"), "{why}");
}

/// Promise: when the image's own repository lacks the blob or forbids it, another one of this node
/// that has it delivers, for the index and for reads; the own one is not asked every time.
async fn another_repository_delivers_when_the_own_one_does_not(driver: DriverChoice) {
    for (status, early) in [(404, true), (404, false), (403, true), (401, false)] {
        let registry = FakeRegistry::start().await;
        let data = noise(23, 3_000_000);
        let fixture = layer_of(&data);
        registry.push_blob(fixture.blob.clone());
        let gone = || {
            let path = On::Path("GET", "/team/app/");
            registry.fault(path, Fault::Status(status, None));
        };
        if early {
            gone();
        }
        let network = Network::new("");
        let own = network.source(&registry.reference("team/app", "v1"), &fixture);
        let other = network.source(&registry.reference("base/python", "v1"), &fixture);
        let scene = Scene::new(driver).await;
        let layer = add(&scene, &fixture, own, vec![other]).await.unwrap();
        if !early {
            gone();
        }
        let file = mount(&scene, &layer).await;
        read_some(file.clone()).await;
        registry.clear_requests();
        assert_eq!(read(file).await.unwrap(), data, "{status} {early}");
        let asked = registry.requests();
        assert!(!asked.is_empty());
        let own = asked.iter().filter(|seen| seen.path.contains("team/app"));
        assert_eq!(own.count(), 0, "{status} {early}: {asked:?}");
        let names: Vec<_> = layer.status().sources.into_iter().map(|s| s.name).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(names[1].ends_with("/base/python"), "{names:?}");
    }
}

/// Promise: when nobody has the blob, the error names everybody who was asked.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_it_and_the_error_names_all() {
    let registry = FakeRegistry::start().await;
    let fixture = layer_of(&noise(24, 1000));
    let network = Network::new("");
    let own = network.source(&registry.reference("team/app", "v1"), &fixture);
    let other = network.source(&registry.reference("base/python", "v1"), &fixture);
    let scene = Scene::new(DriverChoice::Auto).await;
    let refused = add(&scene, &fixture, own, vec![other]).await.unwrap_err();
    let text = refused.to_string();
    for part in ["team/app", "base/python", "does not have the blob"] {
        assert!(text.contains(part), "{text}");
    }
}

on_both_drivers!(
    a_lying_mirror_is_left_for_the_next_one,
    a_mirror_that_begins_to_lie_costs_no_read,
    another_repository_delivers_when_the_own_one_does_not,
);
