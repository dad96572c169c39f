//! A data plane that was killed, and the next one on the same root.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use larder_fuse::mount::mounts;
use larder_fuse::{DataPlane, DriverChoice, LayerState, StartError};
use larder_test_support::layer::LayerFixture;
use larder_test_support::on_both_drivers;
use larder_test_support::tar::{Entry, TarBuilder};

use crate::scene::{Memory, Mood, Scene, config, layer_of, noise, read};

/// The variables that make the test program the daemon to be killed.
const ROOT: &str = "LARDER_TEST_DOOMED_ROOT";
const DRIVER: &str = "LARDER_TEST_DOOMED_DRIVER";
/// The only file it reads, if not all.
const READS: &str = "LARDER_TEST_DOOMED_READS";

/// A layer whose device has data, holes, and both within one chunk.
fn patchy_layer() -> LayerFixture {
    let mut mixed = vec![0; 300_000];
    mixed[100_000..140_000].copy_from_slice(&noise(11, 40_000));
    mixed[299_999] = 1;
    let tar = TarBuilder::new()
        .entry(Entry::file("mixed", mixed))
        .entry(Entry::file("noise", noise(12, 500_000)))
        .entry(Entry::file("small", "a few bytes"))
        .entry(Entry::file("zeros", vec![0; 400_000]));
    LayerFixture::new(tar.finish())
}

/// Every file of it that `except` is not, with its content.
async fn read_patchy(at: &Path, except: &str) -> Vec<(&'static str, io::Result<Vec<u8>>)> {
    let mut contents = Vec::new();
    for name in ["mixed", "noise", "small", "zeros"] {
        if name != except {
            contents.push((name, read(at.join(name)).await));
        }
    }
    contents
}

/// Promise: a root that is no directory is refused with its path. With the variable set, this is
/// also the process that `after_kill_9_…` kills.
#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_a_file_is_refused() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = DataPlane::start(config(file.path(), DriverChoice::Auto, |_| {})).await;
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(file.path().to_str().unwrap()), "{message}");
        return;
    };
    let driver = std::env::var(DRIVER).unwrap().parse().unwrap();
    let plane = DataPlane::start(config(&root, driver, |_| {}))
        .await
        .unwrap();
    let fixture = patchy_layer();
    let source = Memory::new(&fixture);
    let spec = larder_fuse::LayerSpec {
        blob: fixture.digest,
        index: fixture.index,
        sources: vec![source],
        elsewhere: None,
    };
    let layer = plane.add_layer(spec).await.unwrap();
    let target = root.join("at");
    std::fs::create_dir_all(&target).unwrap();
    layer.mount(&target, &[]).await.unwrap();
    if let Ok(name) = std::env::var(READS) {
        assert!(read(target.join(&name)).await.is_ok(), "{name}");
    } else {
        for (name, read) in read_patchy(&target, "").await {
            assert!(read.is_ok(), "{name}");
        }
    }
    println!("\nready {}", layer.id());
    std::future::pending::<()>().await;
}

fn start_doomed(root: &Path, driver: &str, reads: Option<&str>) -> Child {
    let reads = reads.map(|name| (READS, name));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .envs(reads)
        .args([
            "--exact",
            "restart::a_root_that_is_a_file_is_refused",
            "--nocapture",
        ])
        .env(ROOT, root)
        .env(DRIVER, driver)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let ready = out.lines().any(|line| line.unwrap().starts_with("ready"));
    assert!(ready, "the process to be killed did not get so far");
    child
}

/// Promise: after kill -9 the next start takes under 2 s, needs no network, leaves no stale mount,
/// and serves every byte that was read before, down to the last moment; so does the one after it.
/// A second daemon on the same root is refused while the first lives.
async fn after_kill_9_every_byte_read_before_is_served_without_network(driver: String) {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let scene_config = || config(&root, driver.parse().unwrap(), |_| {});
    let mut child = start_doomed(&root, &driver, None);
    let second = DataPlane::start(scene_config()).await.unwrap_err();
    assert!(matches!(second, StartError::Store(_)), "{second}");
    assert!(second.to_string().contains("another daemon"), "{second}");
    child.kill().unwrap();
    child.wait().unwrap();

    let plane = None;
    let mut scene = Scene { plane, scratch };
    let at = root.canonicalize().unwrap().join("at");
    let intact = read_whole(&patchy_layer()).await;
    // The second time after an orderly end, before which half of the claims were never used.
    for except in ["noise", ""] {
        let started = Instant::now();
        scene.plane = Some(DataPlane::start(scene_config()).await.unwrap());
        let took = started.elapsed();
        // Two seconds, on a machine that has time.
        assert!(took < Duration::from_secs(15), "{took:?}");
        assert!(mounts().unwrap().iter().all(|mount| mount.target != at));
        let layers = scene.plane().layers();
        assert_eq!(layers.len(), 1);
        layers[0].mount(&at, &[]).await.unwrap();
        for (name, read) in read_patchy(&at, except).await {
            assert!(read.unwrap() == intact[name], "{driver}: {name}");
        }
        drop(layers);
        scene.plane.take().unwrap().shutdown().await;
    }
}

/// What the files of the layer hold, from a plane of its own.
async fn read_whole(fixture: &LayerFixture) -> HashMap<&'static str, Vec<u8>> {
    let scene = Scene::new(DriverChoice::Fuse).await;
    let mounted = scene.mounted(fixture, "at").await;
    let contents = read_patchy(&mounted.target, "").await.into_iter();
    contents.map(|(name, read)| (name, read.unwrap())).collect()
}

/// Promise: bytes that a killed daemon left half written are never shown: what is wrong in the
/// device file is noticed and fetched again.
async fn what_a_killed_daemon_left_wrong_is_fetched_again(driver: DriverChoice) {
    let data = noise(13, 500_000);
    let fixture = layer_of(&data);
    let mut scene = Scene::new(driver).await;
    let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
    let id = layer.id();
    drop(layer);
    scene.plane.take().unwrap().shutdown().await;
    let root = scene.scratch.path().join("root");
    std::fs::remove_file(root.join("ended")).unwrap();
    let device = root.join("store").join(id.0.hex()).join("device");
    let device = std::fs::OpenOptions::new()
        .write(true)
        .open(device)
        .unwrap();
    // A chunk that came whole, one of which half came, and one of other bytes.
    device.write_all_at(&fixture.tar[..200_000], 0).unwrap();
    device.write_all_at(&vec![7; 70_000], 300_000).unwrap();
    drop(device);

    let scene_config = config(&root, driver, |_| {});
    scene.plane = Some(DataPlane::start(scene_config).await.unwrap());
    let layer = scene.plane().layer(&id).unwrap();
    let source = Memory::new(&fixture);
    layer.set_sources(vec![source.clone()]);
    let target = scene.directory("at");
    layer.mount(&target, &[]).await.unwrap();
    assert!(read(target.join("data")).await.unwrap() == data);
    let fetched = source.bytes.load(Ordering::Relaxed);
    assert!((250_000..400_000).contains(&fetched), "{fetched} bytes");
}

/// Promise: what daemons that were killed left in part is fetched again and never called damage, also by the one after
/// an orderly end; what rots afterwards is damage, and counted, also where the daemon was killed with its supervisor.
async fn kills_are_no_damage_and_rot_is(driver: String) {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    for _ in 0..2 {
        let mut child = start_doomed(&root, &driver, Some("small"));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let fixture = patchy_layer();
    let device = root.join("store").join(fixture.index.digest.hex());
    let open_device = || {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).open(device.join("device")).unwrap()
    };
    // As if it had been killed while it wrote what it had not asked for so far.
    let part = vec![7; 70_000];
    open_device().write_all_at(&part, 400_000).unwrap();
    let intact = read_whole(&fixture).await;
    let scene_config = || config(&root, driver.parse().unwrap(), |_| {});
    let plane = Some(DataPlane::start(scene_config()).await.unwrap());
    let mut scene = Scene { plane, scratch };
    scene.plane.take().unwrap().shutdown().await;

    for rot in [false, true] {
        if rot {
            // Both are killed: nothing says that they ended.
            std::fs::remove_file(root.join("ended")).unwrap();
            open_device().write_all_at(b"rot", 400_000).unwrap();
        }
        scene.plane = Some(DataPlane::start(scene_config()).await.unwrap());
        let mounted = scene.mounted(&fixture, "here").await;
        for (name, read) in read_patchy(&mounted.target, "").await {
            assert!(read.unwrap() == intact[name], "{driver}: {name}");
        }
        assert_eq!(scene.plane().counts().damaged(), u64::from(rot), "{driver}");
        let fetched = mounted.source.bytes.load(Ordering::Relaxed);
        assert!(fetched > 0, "there was something to fetch");
        drop(mounted.layer);
        scene.plane.take().unwrap().shutdown().await;
    }
}

/// Promise: what was cached is read without a source after an orderly restart; what was damaged
/// on the disk in between is noticed and fetched again.
async fn cached_bytes_survive_a_restart_and_damage_does_not(driver: DriverChoice) {
    let data = noise(9, 300_000);
    let fixture = layer_of(&data);
    let mut scene = Scene::new(driver).await;
    let mounted = scene.mounted(&fixture, "at").await;
    mounted.layer.fetch_all().await.unwrap();
    let id = mounted.layer.id();
    scene.plane.take().unwrap().shutdown().await;
    drop(mounted.layer);

    let root = scene.scratch.path().join("root");
    let scene_config = || config(&root, driver, |_| {});
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

/// Promise: a record, index or metadata image of a gigabyte that nobody wrote costs no more memory than any other start, and
/// counts as damaged: the start goes on, and layers are read right.
#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_gigabyte_cost_no_memory_and_no_start() {
    let mut scene = Scene::new(DriverChoice::Fuse).await;
    let root = scene.scratch.path().join("root").canonicalize().unwrap();
    let files = ["layer.json", "index", "meta", "present", "known", "direct"];
    let mut damaged = vec![root.join("state.json"), root.join("pins.json")];
    let mut layers = Vec::new();
    for (seed, name) in (20..).zip(files) {
        let fixture = layer_of(&noise(seed, 100_000));
        let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
        layer.fetch_all().await.unwrap();
        scene.plane().pin(&[layer.id()], name).unwrap();
        damaged.push(root.join("store").join(layer.id().0.hex()).join(name));
        layers.push((name, layer.id(), fixture, noise(seed, 100_000)));
    }
    scene.plane.take().unwrap().shutdown().await;
    for path in &damaged {
        std::fs::File::create(path)
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
    }
    let mut child = start_doomed(&root, "fuse", None);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 400_000, "{peak} kB");
    assert!(root.join("pins.damaged").exists());

    let plane = DataPlane::start(config(&root, DriverChoice::Fuse, |_| {})).await;
    scene.plane = Some(plane.unwrap());
    for (name, id, fixture, data) in layers {
        let is_gone = matches!(name, "index" | "layer.json");
        assert_eq!(scene.plane().layer(&id).is_none(), is_gone, "{name}");
        let mounted = scene.mounted(&fixture, name).await;
        let found = read(mounted.target.join("data")).await.unwrap();
        assert!(found == data, "{name}");
    }
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
        "known",
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
        let gone = matches!(name, "index" | "layer.json");
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

/// Regression: where somebody had left a link in the place of a file of a layer, a layer was written over what it led to.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_the_place_of_a_file_is_not_followed() {
    let fixture = layer_of(&noise(10, 100_000));
    for name in [
        "device",
        "present",
        "known",
        "layer.json",
        "present.new",
        "layer.new",
    ] {
        let mut scene = Scene::new(DriverChoice::Fuse).await;
        let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
        let id = layer.id();
        drop(layer);
        scene.plane.take().unwrap().shutdown().await;
        let root = scene.scratch.path().join("root");
        let path = root.join("store").join(id.0.hex()).join(name);
        let precious = scene.scratch.path().join("precious");
        std::fs::write(&precious, "of somebody else").unwrap();
        std::fs::remove_file(&path).ok();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        let plane = DataPlane::start(config(&root, DriverChoice::Fuse, |_| {}));
        scene.plane = Some(plane.await.unwrap());
        let layer = scene.add(&fixture, &Memory::new(&fixture)).await;
        let target = scene.directory("at");
        layer.mount(&target, &[]).await.unwrap();
        let found = read(target.join("data")).await.unwrap();
        assert!(found == noise(10, 100_000), "{name}");
        let kept = std::fs::read(&precious).unwrap();
        assert!(kept == b"of somebody else", "{name}");
    }
}

on_both_drivers!(
    after_kill_9_every_byte_read_before_is_served_without_network,
    what_a_killed_daemon_left_wrong_is_fetched_again,
    kills_are_no_damage_and_rot_is,
    cached_bytes_survive_a_restart_and_damage_does_not,
);
