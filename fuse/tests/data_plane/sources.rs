//! Registries as sources: mirrors that lie, repositories that do not have the blob.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_fuse::{
    AddLayerError, BoxFuture, DriverChoice, Elsewhere, Layer, LayerSpec, RegistrySource, Source,
};
use larder_registry::{Client, ClientOptions};
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::registry::{Auth, FakeRegistry, Fault, On, Settings};

use crate::scene::{Scene, layer_of, noise, read};

/// A client without this machine's credentials, and `r.test` as `hosts` says.
struct Network {
    client: Client,
    files: tempfile::TempDir,
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
            files,
        }
    }

    /// Puts a password for `registry` into the credential file.
    fn login(&self, registry: &FakeRegistry, password: &str) {
        let host = registry.host();
        let text = format!(
            r#"{{"auths": {{"{host}": {{"username": "anna", "password": "{password}"}}}}}}"#
        );
        std::fs::write(self.files.path().join("auth.json"), text).unwrap();
    }

    fn source(&self, repository: &str, fixture: &LayerFixture) -> Arc<dyn Source> {
        let reference = repository.parse().unwrap();
        let repository = self.client.repository(&reference);
        Arc::new(RegistrySource::new(repository, fixture.digest))
    }
}

/// A layer at `r.test` and at a mirror of it.
struct Mirrored {
    mirror: FakeRegistry,
    server: FakeRegistry,
    network: Network,
    fixture: LayerFixture,
}

impl Mirrored {
    async fn with(fixture: LayerFixture) -> Self {
        let (mirror, server) = (FakeRegistry::start().await, FakeRegistry::start().await);
        mirror.push_blob(fixture.blob.clone());
        server.push_blob(fixture.blob.clone());
        let network = Network::new(&format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n",
            server.host(),
            mirror.host()
        ));
        Self {
            mirror,
            server,
            network,
            fixture,
        }
    }

    async fn add(&self, scene: &Scene) -> Layer {
        let source = self.network.source("r.test/team/app:v1", &self.fixture);
        let added = add(scene, &self.fixture, source, Vec::new()).await;
        added.unwrap()
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
    let data = noise(21, 300_000);
    let world = Mirrored::with(layer_of(&data)).await;
    let mirror = &world.mirror;
    mirror.set_fault(Fault::FlippedBit);
    let scene = Scene::new(driver).await;
    let layer = world.add(&scene).await;
    assert_eq!(mirror.requests().len(), 1, "asked once for the index");
    let file = mount(&scene, &layer).await;
    assert_eq!(read(file).await.unwrap(), data);
    assert_eq!(mirror.requests().len(), 1, "not asked for chunks");
    assert!(layer.status().sources[0].bytes > 0);
}

/// Promise: the same for a mirror that begins to lie while chunks are read.
async fn a_mirror_that_begins_to_lie_costs_no_read(driver: DriverChoice) {
    let data = noise(22, 3_000_000);
    let world = Mirrored::with(layer_of(&data)).await;
    let scene = Scene::new(driver).await;
    let layer = world.add(&scene).await;
    world.mirror.set_fault(Fault::OtherBlob);
    let file = mount(&scene, &layer).await;
    assert_eq!(read(file).await.unwrap(), data);
    let status = layer.status();
    let why = status.sources[0].last_failure.clone().unwrap();
    assert!(why.contains("is wrong"), "{why}");
}

/// Promise: `status` names the host that delivered: the mirror, and the registry for what came from it.
async fn the_host_that_delivered_is_named(driver: DriverChoice) {
    let data = noise(25, 3_000_000);
    let world = Mirrored::with(layer_of(&data)).await;
    let scene = Scene::new(driver).await;
    let layer = world.add(&scene).await;
    let file = mount(&scene, &layer).await;
    read_some(file.clone()).await;
    let hosts = || layer.status().sources[0].hosts.clone();
    let by_mirror = hosts();
    assert_eq!(by_mirror.len(), 1, "{by_mirror:?}");
    assert_eq!(by_mirror[0].0, world.mirror.host());
    world.mirror.set_fault(Fault::Status(404, None));
    assert_eq!(read(file).await.unwrap(), data);
    let names: Vec<_> = hosts().into_iter().map(|(host, _)| host).collect();
    assert_eq!(names, [world.mirror.host(), world.server.host()]);
    let sum: u64 = hosts().iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(sum, layer.status().sources[0].bytes);
}

/// Promise: a wrong password is shown once, not by every read, and reads fail at once while it is
/// there; they go on as soon as it is mended.
async fn a_wrong_password_is_shown_once_and_fails_reads_at_once(driver: DriverChoice) {
    let auth = Auth::Token {
        account: Some(("anna".to_owned(), "hunter2".to_owned())),
        identity: None,
        lifetime: Duration::from_mins(5),
    };
    let settings = Settings {
        auth,
        ..Settings::default()
    };
    let registry = FakeRegistry::start_with(settings).await;
    let data = noise(26, 300_000);
    let fixture = layer_of(&data);
    registry.push_blob_into("team/app", fixture.blob.clone());
    let network = Network::new("");
    network.login(&registry, "hunter2");
    let patience = Duration::from_secs(20);
    let scene = Scene::with(driver, |config| config.read_deadline = patience).await;
    let source = network.source(&registry.reference("team/app", "v1"), &fixture);
    let layer = add(&scene, &fixture, source, Vec::new()).await.unwrap();
    let file = mount(&scene, &layer).await;
    network.login(&registry, "wrong");
    registry.revoke_tokens();
    registry.clear_requests();
    let begun = Instant::now();
    for _ in 0..2 {
        let refused = read(file.clone()).await.unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(5));
        // Longer than the failure of a chunk is remembered.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert!(begun.elapsed() < patience, "{:?}", begun.elapsed());
    let shown = registry.requests().into_iter();
    let shown = shown.filter(|seen| seen.path == "/token").count();
    assert_eq!(shown, 1);
    let why = layer.status().sources[0].last_failure.clone().unwrap();
    assert!(why.contains("docker login"), "{why}");
    network.login(&registry, "hunter2");
    assert_eq!(read(file).await.unwrap(), data);
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
    a_wrong_password_is_shown_once_and_fails_reads_at_once,
    another_repository_delivers_when_the_own_one_does_not,
    the_host_that_delivered_is_named,
);

/// Promise: what a source delivered is told until the process ends, also when another image brings it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_delivered_is_told_also_when_it_comes_again() {
    let scene = Scene::new(DriverChoice::Fuse).await;
    let fixture = layer_of(&noise(5, 300_000));
    let mounted = scene.mounted(&fixture, "at").await;
    read(mounted.target.join("data")).await.unwrap();
    let bytes = || mounted.layer.status().sources[0].bytes;
    let before = bytes();
    assert!(before > 300_000);
    scene.add(&fixture, &mounted.source).await;
    assert_eq!(bytes(), before);
}
