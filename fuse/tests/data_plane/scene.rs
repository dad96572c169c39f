//! What the tests share: a source that misbehaves on demand, layers, and a data plane that is
//! taken down whatever happens.

use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use larder_fuse::mount::{Unmount, mounts, unmount};
use larder_fuse::{
    Answer, Arrivals, BoxFuture, DataPlane, DataPlaneConfig, DriverChoice, FailureKind, Layer,
    LayerSpec, Source, SourceFailure,
};
use larder_test_support::layer::LayerFixture;
pub(crate) use larder_test_support::noise::noise;
use larder_test_support::tar::{Entry, TarBuilder};
use rustix::fs::{Advice, fadvise};
use tempfile::TempDir;
use tokio::sync::watch;

/// How a source behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Honest,
    Stalls,
    /// Stalls until the mood is another one.
    Holds,
    Lies,
    Fails,
}

/// A blob in memory.
#[derive(Debug)]
pub(crate) struct Memory {
    blob: Bytes,
    mood: watch::Sender<Mood>,
    requests: Mutex<Vec<Range<u64>>>,
    pub(crate) bytes: AtomicU64,
}

impl Memory {
    pub(crate) fn new(fixture: &LayerFixture) -> Arc<Self> {
        Arc::new(Self {
            blob: fixture.blob.clone(),
            mood: watch::Sender::new(Mood::Honest),
            requests: Mutex::default(),
            bytes: AtomicU64::new(0),
        })
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    pub(crate) fn requests(&self) -> Vec<Range<u64>> {
        self.requests.lock().unwrap().clone()
    }
}

impl Source for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn get<'a>(&'a self, range: Range<u64>, _: &'a dyn Arrivals) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            self.requests.lock().unwrap().push(range.clone());
            let mut moods = self.mood.subscribe();
            let mood = *moods.wait_for(|mood| *mood != Mood::Holds).await.unwrap();
            let place = |at: u64| usize::try_from(at).unwrap();
            let bytes = self.blob.slice(place(range.start)..place(range.end));
            match mood {
                Mood::Honest => {
                    self.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    Answer::from(bytes)
                }
                Mood::Lies => Answer::from(bytes.iter().map(|byte| !byte).collect::<Bytes>()),
                Mood::Fails => Answer::Failed(SourceFailure {
                    reason: "it is on fire".into(),
                    kind: FailureKind::Passing,
                    retry_after: None,
                }),
                Mood::Stalls | Mood::Holds => std::future::pending().await,
            }
        })
    }
}

/// A layer with every file type, attributes, and files of more than one chunk.
pub(crate) fn odd_layer() -> LayerFixture {
    let tar = TarBuilder::new()
        .entry(
            Entry::directory("etc")
                .mode(0o751)
                .owner(1, 2)
                .mtime(1_000_000),
        )
        .entry(
            Entry::file("etc/passwd", "root:x:0:0\n")
                .mode(0o640)
                .xattr("user.colour", "red"),
        )
        .entry(Entry::file("etc/empty", ""))
        .entry(
            Entry::file("bin/big", noise(7, 700_001))
                .mode(0o4755)
                .owner(1000, 1000),
        )
        .entry(
            Entry::hard_link("bin/link", "bin/big")
                .mode(0o4755)
                .owner(1000, 1000),
        )
        .entry(Entry::symlink("bin/sh", "../etc/passwd"))
        .entry(Entry::new(b'3', "dev/null").device(1, 3).mode(0o666))
        .entry(Entry::new(b'6', "run/pipe").mode(0o600))
        .entry(Entry::file("etc/.wh.gone", ""))
        .entry(Entry::directory("opt"))
        .entry(Entry::file("opt/.wh..wh..opq", ""))
        .finish();
    LayerFixture::new(tar)
}

/// A layer of one file, `data`.
pub(crate) fn layer_of(data: &[u8]) -> LayerFixture {
    LayerFixture::new(TarBuilder::new().entry(Entry::file("data", data)).finish())
}

/// A data plane in a directory of its own.
pub(crate) struct Scene {
    pub(crate) plane: Option<DataPlane>,
    pub(crate) scratch: TempDir,
}

impl Scene {
    pub(crate) async fn new(driver: DriverChoice) -> Self {
        Self::with(driver, |_| {}).await
    }

    pub(crate) async fn with(driver: DriverChoice, change: impl Fn(&mut DataPlaneConfig)) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let config = config(&scratch.path().join("root"), driver, change);
        let plane = DataPlane::start(config).await.unwrap();
        Self {
            plane: Some(plane),
            scratch,
        }
    }

    pub(crate) fn plane(&self) -> &DataPlane {
        self.plane.as_ref().unwrap()
    }

    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.scratch.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub(crate) async fn add(&self, fixture: &LayerFixture, source: &Arc<Memory>) -> Layer {
        let spec = LayerSpec {
            blob: fixture.digest,
            index: fixture.index,
            sources: vec![source.clone()],
            elsewhere: None,
        };
        self.plane().add_layer(spec).await.unwrap()
    }

    /// The layer of `fixture`, mounted.
    pub(crate) async fn mounted(&self, fixture: &LayerFixture, name: &str) -> Mounted {
        let source = Memory::new(fixture);
        let layer = self.add(fixture, &source).await;
        let target = self.directory(name);
        layer.mount(&target, &[]).await.unwrap();
        Mounted {
            layer,
            source,
            target,
        }
    }
}

/// A mounted layer and where it comes from.
pub(crate) struct Mounted {
    pub(crate) layer: Layer,
    pub(crate) source: Arc<Memory>,
    pub(crate) target: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.plane.take();
        clean_up(self.scratch.path());
    }
}

/// Unmounts everything below `root`.
pub(crate) fn clean_up(root: &Path) {
    let root = root.canonicalize().unwrap();
    for mount in mounts().unwrap().iter().rev() {
        if mount.target.starts_with(&root) {
            let _ = unmount(&mount.target, Unmount::Lazy);
        }
    }
}

pub(crate) fn config(
    root: &Path,
    driver: DriverChoice,
    change: impl Fn(&mut DataPlaneConfig),
) -> DataPlaneConfig {
    let mut config = DataPlaneConfig::new(root);
    config.driver = driver;
    config.read_deadline = Duration::from_secs(2);
    change(&mut config);
    config
}

/// Reads a file on a thread that may wait.
pub(crate) async fn read(path: PathBuf) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || std::fs::read(path))
        .await
        .unwrap()
}

/// Reads a file past what the kernel keeps of it.
pub(crate) fn read_cold(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The same on a thread that may wait.
pub(crate) async fn cold(path: PathBuf) -> std::io::Result<Vec<u8>> {
    tokio::task::spawn_blocking(move || read_cold(&path))
        .await
        .unwrap()
}

/// Waits for `is_so`, which must come to be within a minute: only a hang takes that long.
pub(crate) async fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..6000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
