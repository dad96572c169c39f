//! A data plane that was killed, and the next one on the same root.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use larder_fuse::mount::mounts;
use larder_fuse::{DataPlane, DriverChoice, LayerState, StartError};

use crate::scene::{Memory, Mood, Scene, config, layer_of, noise, odd_layer, read};

/// The variable that makes the test program the daemon to be killed.
const ROOT: &str = "LARDER_TEST_DOOMED_ROOT";

/// Promise: a root that is no directory is refused with its path. With the variable set, this is
/// also the process that `a_killed_data_plane_leaves_…` kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_a_file_is_refused() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = DataPlane::start(config(file.path(), DriverChoice::Auto, |_| {})).await;
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(file.path().to_str().unwrap()), "{message}");
        return;
    };
    let plane = DataPlane::start(config(&root, DriverChoice::Auto, |_| {}))
        .await
        .unwrap();
    let fixture = odd_layer();
    let source = Memory::new(&fixture);
    let spec = larder_fuse::LayerSpec {
        blob: fixture.digest,
        index: fixture.index,
        sources: vec![source],
    };
    let layer = plane.add_layer(spec).await.unwrap();
    let target = root.join("at");
    std::fs::create_dir(&target).unwrap();
    layer.mount(&target, &[]).await.unwrap();
    assert!(read(target.join("etc/passwd")).await.is_ok());
    println!("\nready {}", layer.id());
    std::future::pending::<()>().await;
}

fn start_doomed(root: &Path) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "restart::a_root_that_is_a_file_is_refused",
            "--nocapture",
        ])
        .env(ROOT, root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let ready = out.lines().any(|line| line.unwrap().starts_with("ready"));
    assert!(ready, "the process to be killed did not get so far");
    child
}

/// Promise: after kill -9 the next start needs no network, takes under 2 s, leaves no stale mount,
/// and has the layers; a second daemon on the same root is refused while the first lives.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_data_plane_leaves_a_root_the_next_one_can_use() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let scene_config = || config(&root, DriverChoice::Auto, |_| {});
    let mut child = start_doomed(&root);
    let second = DataPlane::start(scene_config()).await.unwrap_err();
    assert!(matches!(second, StartError::Store(_)), "{second}");
    assert!(second.to_string().contains("another daemon"), "{second}");
    child.kill().unwrap();
    child.wait().unwrap();

    let started = Instant::now();
    let plane = DataPlane::start(scene_config()).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "{:?}",
        started.elapsed()
    );
    let scene = Scene {
        plane: Some(plane),
        scratch,
    };
    let at = root.canonicalize().unwrap().join("at");
    assert!(mounts().unwrap().iter().all(|mount| mount.target != at));
    let layers = scene.plane().layers();
    assert_eq!(layers.len(), 1);
    layers[0].mount(&at, &[]).await.unwrap();
    // The killed process wrote down nothing of what it had; a source brings it again.
    layers[0].set_sources(vec![Memory::new(&odd_layer())]);
    assert_eq!(read(at.join("etc/passwd")).await.unwrap(), b"root:x:0:0\n");
}

/// Promise: what was cached is read without a source after an orderly restart; what was damaged
/// on the disk in between is noticed and fetched again.
#[tokio::test(flavor = "multi_thread")]
async fn cached_bytes_survive_a_restart_and_damage_does_not() {
    let data = noise(9, 300_000);
    let fixture = layer_of(&data);
    let mut scene = Scene::new(DriverChoice::Auto).await;
    let mounted = scene.mounted(&fixture, "at").await;
    mounted.layer.fetch_all().await.unwrap();
    let id = mounted.layer.id();
    scene.plane.take().unwrap().shutdown().await;
    drop(mounted.layer);

    let root = scene.scratch.path().join("root");
    let scene_config = || config(&root, DriverChoice::Auto, |_| {});
    scene.plane = Some(DataPlane::start(scene_config()).await.unwrap());
    let layer = scene.plane().layer(&id).unwrap();
    layer.mount(&mounted.target, &[]).await.unwrap();
    assert_eq!(read(mounted.target.join("data")).await.unwrap(), data);
    assert_eq!(layer.status().state, LayerState::Complete);
    drop(layer);
    scene.plane.take().unwrap().shutdown().await;

    let device = root.join("store").join(id.0.hex()).join("device");
    let mut bytes = std::fs::read(&device).unwrap();
    bytes[100_000] ^= 1;
    std::fs::write(&device, bytes).unwrap();
    scene.plane = Some(DataPlane::start(scene_config()).await.unwrap());
    let layer = scene.plane().layer(&id).unwrap();
    let source = Memory::new(&fixture);
    source.set(Mood::Honest);
    layer.set_sources(vec![source.clone()]);
    layer.mount(&mounted.target, &[]).await.unwrap();
    assert_eq!(read(mounted.target.join("data")).await.unwrap(), data);
    assert_eq!(
        source.requests().len(),
        1,
        "only the damaged chunk is fetched"
    );
}

/// Promise: damaged files of the store cost the layer, never the start.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_store_files_never_keep_a_plane_from_starting() {
    let fixture = layer_of(&noise(10, 100_000));
    for name in [
        "index",
        "meta",
        "layer.json",
        "device",
        "present",
        "../../state.json",
    ] {
        let mut scene = Scene::new(DriverChoice::Fuse).await;
        let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
        layer.fetch_all().await.unwrap();
        let id = layer.id();
        drop(layer);
        scene.plane.take().unwrap().shutdown().await;
        let root = scene.scratch.path().join("root");
        let path = root.join("store").join(id.0.hex()).join(name);
        let len = std::fs::metadata(&path).unwrap().len();
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(len / 2)
            .unwrap();
        let plane = DataPlane::start(config(&root, DriverChoice::Fuse, |_| {}))
            .await
            .unwrap();
        scene.plane = Some(plane);
        let gone = matches!(name, "index" | "meta" | "layer.json");
        assert_eq!(scene.plane().layer(&id).is_none(), gone, "{name}");
        let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
        let target = scene.directory("at");
        layer.mount(&target, &[]).await.unwrap();
        assert_eq!(
            read(target.join("data")).await.unwrap(),
            noise(10, 100_000),
            "{name}"
        );
    }
}
