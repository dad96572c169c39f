//! `profile record`: an image's start without containerd, as in CI, and what it reads.
//!
//! The image is mounted as `mount` does, with a writable layer over it; its program runs in it until that
//! settles or ends. This is no container runtime: the program is root, on this machine's network.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use larder_fuse::{Recording, Settling, create_private, private_directory};
use larder_proto::annotation::{self, IndexLocation};
use larder_proto::digest::Digest;
use larder_proto::profile::Profile;
use larder_registry::Reference;
use serde::Deserialize;
use tokio::process::{Child, ChildStdin, Command};

use super::super::signals::Signals;
use super::super::watch;
use crate::config::{Config, Driver, LogFormat, LogLevel, Overrides};
use crate::image::Image;
use crate::log;
use crate::mounter::Mounter;
use crate::plane::{MountingPlane, Plane};
use crate::registries::Registries;

/// Where the image is put together; its own directory, as one process owns each.
const ROOT: &str = "/var/lib/larder-record";

/// A pause longer than the longest start makes no sense, seconds.
const SETTLE_MAX: u64 = 240;

/// Options of `profile record`.
#[derive(Debug, clap::Args)]
pub(in super::super) struct RecordArgs {
    /// Where cached bytes are kept; one process owns it.
    #[arg(long, value_name = "DIR", default_value = ROOT)]
    root: PathBuf,
    /// Which file system shows a layer.
    #[arg(long, value_enum)]
    fs_driver: Option<Driver>,
    /// Talk plain HTTP to the registry; loopback registries need no flag.
    #[arg(long)]
    plain_http: bool,
    /// Configuration file with the registry settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The start is over when nothing new was read for as long.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=SETTLE_MAX))]
    settle: u64,
    /// Where to; standard output without it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// HOST/REPOSITORY:TAG or @DIGEST of a converted image.
    #[arg(value_name = "REF", value_parser = super::super::in_registry)]
    image: Reference,
    /// What to run instead of the image's entrypoint and command.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// What of an image's config says how it is run.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    config: Option<Runs>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Runs {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
}

/// Runs the image's start once, and writes what it read.
pub(super) async fn record(args: RecordArgs) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "recording mounts the image and runs its program: run this as root"
    );
    let config = args.config()?;
    log::start(LogLevel::Warn, LogFormat::Text);
    let made = private_directory(&args.root);
    made.with_context(|| format!("make the root directory {}", args.root.display()))?;
    let registries = Registries::new(&config.registry)?;
    registries.check(&args.image).await?;
    let repository = registries.repository(&args.image, args.plain_http);
    let image = Image::resolve(&repository, &args.image).await?;
    let runs = args.runs(&image)?;
    let plane = Arc::new(MountingPlane::start(&config, registries.clone(), None, None).await?);
    let _watcher = watch::start(&plane);
    let owner = Arc::clone(&plane) as Arc<dyn Plane>;
    let mounter = Mounter::new(owner, registries, &config.root, false)?;
    let recorded = args.start(&mounter, &image, &runs).await;
    mounter.unmount_all().await;
    plane.shutdown().await;
    let profile = recorded?;
    eprintln!(
        "{}: {} chunks of {} layers",
        profile.image,
        profile.reads(),
        profile.layers.len()
    );
    super::write(args.output.as_deref(), &profile.encode())
}

impl RecordArgs {
    fn config(&self) -> anyhow::Result<Config> {
        let overrides = Overrides {
            root: Some(self.root.clone()),
            fs_driver: self.fs_driver,
            ..Overrides::default()
        };
        let config = Config::load(self.config.as_deref(), &overrides)?;
        Ok(Config {
            complete_in_background: false,
            ..config
        })
    }

    /// What is run, and how.
    fn runs(&self, image: &Image) -> anyhow::Result<Runs> {
        let document: Document = serde_json::from_slice(&image.config)
            .with_context(|| format!("read the config of {}", self.image))?;
        let mut runs = document.config.unwrap_or_default();
        if !self.command.is_empty() {
            runs.entrypoint = None;
            runs.cmd = Some(self.command.clone());
        }
        let words = runs.entrypoint.iter().chain(&runs.cmd);
        ensure!(
            words.flatten().next().is_some(),
            "{} names no command: say what to run, after --",
            self.image
        );
        Ok(runs)
    }

    /// Mounts the image, runs it, and gives what was read.
    async fn start(
        &self,
        mounter: &Mounter,
        image: &Image,
        runs: &Runs,
    ) -> anyhow::Result<Profile> {
        let scratch = self.root.canonicalize()?.join("record");
        match std::fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("empty {}", scratch.display()));
            }
            _ => {}
        }
        let place = |name| -> anyhow::Result<PathBuf> {
            let path = scratch.join(name);
            create_private(&path).with_context(|| format!("make {}", path.display()))?;
            Ok(path)
        };
        let (at, changes) = (place("at")?, (place("changes")?, place("work")?));
        let reference = self.image.to_string();
        mounter
            .mount_with(&reference, &at, self.plain_http, Some(changes))
            .await?;
        let mut seen = std::collections::BTreeSet::new();
        let mut layers = indexes(image)?;
        layers.retain(|layer| seen.insert(*layer));
        let recording = mounter.plane().record(&layers);
        let recording = recording.context("the store lost a layer: try again")?;
        let mut child = runs.command(&at)?.spawn().context("start the program")?;
        self.wait(&mut child, &recording).await?;
        let layers = recording.finish().into_iter().map(|one| one.layer);
        Ok(Profile {
            image: reference,
            layers: layers.collect(),
        })
    }

    /// Until the start is over; then nothing of it runs any more.
    async fn wait(&self, child: &mut Child, recording: &Recording) -> anyhow::Result<()> {
        let settling = Settling {
            pause: Duration::from_secs(self.settle),
            ..Settling::default()
        };
        let interrupted = Signals::new()?.received();
        // `wait` would close it, which is the program's end.
        let held = child.stdin.take();
        tokio::select! {
            ended = child.wait() => {
                let ended = ended.context("wait for the program")?;
                ensure!(
                    ended.success(),
                    "the image's program ended with {ended}: nothing is written; does it need arguments or \
                     files that are not there?"
                );
                Ok(())
            }
            () = recording.settled(&settling) => end(child, held).await,
            () = interrupted => {
                end(child, held).await?;
                bail!("interrupted: nothing is written")
            }
        }
    }
}

/// Ends the program, which is the first process of its namespace, and with it all others there.
async fn end(child: &mut Child, held: Option<ChildStdin>) -> anyhow::Result<()> {
    // At the end of its standard input, the process outside kills the one inside.
    drop(held);
    child.wait().await.context("end the program")?;
    Ok(())
}

impl Runs {
    /// The program in namespaces of its own, with the image at `root`.
    fn command(&self, root: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["profile", "enter"]).arg(root);
        if let Some(user) = self.user.as_deref().filter(|user| !user.is_empty()) {
            command.arg(format!("--user={user}"));
        }
        if let Some(directory) = self.working_dir.as_deref().filter(|dir| !dir.is_empty()) {
            command.arg(format!("--directory={directory}"));
        }
        for variable in self.env.iter().flatten() {
            command.arg(format!("--env={variable}"));
        }
        command.arg("--");
        command.args(self.entrypoint.iter().chain(&self.cmd).flatten());
        // What it prints is not the profile.
        command.stdin(Stdio::piped()).stdout(std::io::stderr());
        Ok(command)
    }
}

/// The indexes of an image's layers, the lowest first.
fn indexes(image: &Image) -> anyhow::Result<Vec<Digest>> {
    let layers = image.parsed.layers.iter();
    let indexes = layers.map(|layer| {
        let location = layer.annotations.get(annotation::INDEX);
        let location: IndexLocation = location.context("a layer without an index")?.parse()?;
        Ok(location.digest)
    });
    indexes.collect()
}
