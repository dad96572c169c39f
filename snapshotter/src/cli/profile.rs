//! `profile`: what starts are known to read, to be looked at, handed on and taken away.

mod enter;
mod record;

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use larder_proto::grpc::control::control_client::ControlClient;
use larder_proto::grpc::control::{self, FindProfileRequest, ImportProfileRequest};
use larder_proto::moment::moment;
use larder_proto::profile::{LayerReads, PROFILE_BYTES_MAX, Profile};
use larder_registry::Reference;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::asked::asked;
use super::output::{print, print_json};
use super::status::{profile_object, refused, size, start_in_words};
use crate::config::{Config, ConfigError, Overrides};
use crate::containerd::{Containerd, Session};

/// What is done with profiles.
#[derive(Debug, clap::Subcommand)]
pub(super) enum ProfileCommand {
    /// List the profiles of this node.
    List {
        #[command(flatten)]
        daemon: DaemonArgs,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Show what a start of an image is known to read, layer by layer.
    Show {
        #[command(flatten)]
        image: ImageArgs,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Write an image's profile to a file, for other nodes.
    Export {
        #[command(flatten)]
        image: ImageArgs,
        /// Where to; standard output without it.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Keep a profile that was exported or recorded elsewhere.
    Import {
        #[command(flatten)]
        daemon: DaemonArgs,
        /// The file; `-` for standard input.
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Forget an image's profile: the next first start is recorded anew.
    Remove {
        #[command(flatten)]
        image: ImageArgs,
    },
    /// Run an image's start without containerd, as in CI, and write what it reads. Not for images that are
    /// not trusted: the program runs as root, on this machine's network.
    Record(record::RecordArgs),
    /// Be the program of a recorded image.
    #[command(hide = true)]
    Enter(enter::EnterArgs),
}

/// Which daemon.
#[derive(Debug, clap::Args)]
pub(super) struct DaemonArgs {
    /// Root directory of the daemon, or of `mount`; without it that of the configuration.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Configuration file of the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Whose profile.
#[derive(Debug, clap::Args)]
pub(super) struct ImageArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// containerd's socket; without it the configuration's `[containerd] address`.
    #[arg(long, value_name = "SOCK", env = "CONTAINERD_ADDRESS")]
    address: Option<PathBuf>,
    /// containerd's namespace.
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// An image by its name, or by its key as `profile list` shows it.
    #[arg(value_name = "REF|KEY", value_parser = image)]
    image: String,
}

/// As images are called in what is kept.
fn image(text: &str) -> Result<String, String> {
    if text.parse::<larder_proto::digest::Digest>().is_ok() {
        return Ok(text.to_owned());
    }
    super::in_registry(text).map(|reference: Reference| reference.to_string())
}

impl ProfileCommand {
    pub(super) fn wants_json(&self) -> bool {
        match self {
            Self::List { json, .. } | Self::Show { json, .. } => *json,
            Self::Export { .. }
            | Self::Import { .. }
            | Self::Remove { .. }
            | Self::Record(_)
            | Self::Enter(_) => false,
        }
    }

    pub(super) fn dispatch(self) -> anyhow::Result<()> {
        match self {
            // Before there are threads: what it leaves behind is its own thread's.
            Self::Enter(args) => enter::enter(&args),
            other => super::block_on(other.run()),
        }
    }

    async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Record(args) => record::record(args).await,
            Self::Enter(_) => Ok(()),
            Self::List { daemon, json } => list(&daemon.config(None)?, json).await,
            Self::Show { image, json } => show(&image, json).await,
            Self::Export { image, output } => {
                let bytes = exported(&image).await?;
                write(output.as_deref(), &bytes)
            }
            Self::Import { daemon, file } => import(&daemon.config(None)?, &file).await,
            Self::Remove { image } => remove(&image).await,
        }
    }
}

impl DaemonArgs {
    fn config(&self, containerd: Option<PathBuf>) -> Result<Config, ConfigError> {
        let overrides = Overrides {
            root: self.root.clone(),
            containerd,
            ..Overrides::default()
        };
        Config::load(self.config.as_deref(), &overrides)
    }
}

async fn list(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let list = async |mut control: ControlClient<Channel>| control.list_profiles(()).await;
    let answer = asked(&config.root, list).await;
    let answer = answer.map_err(|status| refused(&config.root, &status))?;
    let profiles = answer.profiles;
    if as_json {
        let all: Vec<_> = profiles.iter().map(profile_object).collect();
        return print_json(&json!({ "profiles": all }));
    }
    print(&profiles.iter().map(line).collect::<String>())
}

/// One profile, for people.
fn line(profile: &control::Profile) -> String {
    let name = if profile.image.is_empty() {
        "an image without a name"
    } else {
        &profile.image
    };
    let start = profile.latest_start.as_ref().map(start_in_words);
    let start = start.map_or(String::new(), |start| format!("; latest start: {start}"));
    format!(
        "{} {name}: {} chunks of {} layers, {}, used {}{start}\n",
        profile.key,
        profile.reads,
        profile.layers,
        size(profile.bytes),
        moment(profile.used)
    )
}

async fn show(args: &ImageArgs, as_json: bool) -> anyhow::Result<()> {
    let profile = Profile::decode(&exported(args).await?)?;
    let layers = profile.layers.iter();
    if as_json {
        let layers: Vec<_> = layers.map(layer_object).collect();
        let (image, key) = (&profile.image, profile.key().to_string());
        return print_json(&json!({"image": image, "key": key, "layers": layers}));
    }
    let head = format!(
        "image {}\nkey   {}\n{:>7} {:>9} {:>9}  layer\n",
        profile.image,
        profile.key(),
        "chunks",
        "first",
        "last"
    );
    print(&(head + &layers.map(row).collect::<String>()))
}

/// One layer of a profile, for people.
fn row(layer: &LayerReads) -> String {
    let seconds = |read: Option<&larder_proto::access::Access>| {
        read.map_or_else(|| "-".to_owned(), |read| told(read.micros))
    };
    format!(
        "{:>7} {:>9} {:>9}  {}\n",
        layer.reads.len(),
        seconds(layer.reads.first()),
        seconds(layer.reads.last()),
        layer.blob
    )
}

fn told(micros: u64) -> String {
    format!("{:.3} s", micros as f64 / 1e6)
}

fn layer_object(layer: &LayerReads) -> serde_json::Value {
    let reads: Vec<_> = layer
        .reads
        .iter()
        .map(|read| json!({"micros": read.micros, "chunk": read.chunk}))
        .collect();
    json!({
        "index": layer.index.to_string(),
        "blob": layer.blob.to_string(),
        "diff_id": layer.diff_id.to_string(),
        "reads": reads,
    })
}

/// The profile's bytes, as the daemon gives them.
async fn exported(args: &ImageArgs) -> anyhow::Result<Vec<u8>> {
    let export =
        async |mut control: ControlClient<Channel>, request| control.export_profile(request).await;
    Ok(args.find(export).await?.profile)
}

async fn remove(args: &ImageArgs) -> anyhow::Result<()> {
    let remove =
        async |mut control: ControlClient<Channel>, request| control.remove_profile(request).await;
    let key = args.find(remove).await?.key;
    print(&format!("{}: profile {key} removed\n", args.image))
}

impl ImageArgs {
    /// What the daemon answers to `ask`, by the image's name or else by its layers.
    async fn find<T>(
        &self,
        ask: impl AsyncFn(ControlClient<Channel>, FindProfileRequest) -> Result<Response<T>, Status>,
    ) -> anyhow::Result<T> {
        let config = self.daemon.config(self.address.clone())?;
        let mut request = FindProfileRequest {
            image: self.image.clone(),
            layers: Vec::new(),
        };
        let mut answer = asked(&config.root, async |control| {
            ask(control, request.clone()).await
        })
        .await;
        if let Some(layers) = self.by_layers(&config, answer.as_ref().err()).await {
            request.layers = layers;
            answer = asked(&config.root, async |control| {
                ask(control, request.clone()).await
            })
            .await;
        }
        answer.map_err(|status| said(&config, &status))
    }

    /// The layers of the image by containerd's account, if the daemon did not know it by its name: an image
    /// has as many names as people give it.
    async fn by_layers(&self, config: &Config, refused: Option<&Status>) -> Option<Vec<String>> {
        let image: Reference = self.image.parse().ok()?;
        if refused?.code() != Code::NotFound {
            return None;
        }
        let containerd = Containerd::new(config.containerd.clone());
        containerd.reach().await.ok()?;
        let session = Session::new(containerd, self.namespace.clone());
        super::pin::layers(&session, &image.to_string()).await.ok()
    }
}

async fn import(config: &Config, file: &Path) -> anyhow::Result<()> {
    let profile = read(file).with_context(|| format!("read {}", file.display()))?;
    // Looked at here, so that what is wrong is told without a daemon, too.
    let decoded = Profile::decode(&profile);
    decoded.with_context(|| format!("{} is no profile", file.display()))?;
    let request = ImportProfileRequest { profile };
    let import =
        async |mut control: ControlClient<Channel>| control.import_profile(request.clone()).await;
    let answer = asked(&config.root, import).await;
    print(&line(&answer.map_err(|status| said(config, &status))?))
}

/// The bytes of a file, one more than a profile may have at most.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let most = PROFILE_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)?;
    } else {
        File::open(file)?.take(most).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// Writes a profile where it is wanted.
pub(super) fn write(output: Option<&Path>, bytes: &[u8]) -> anyhow::Result<()> {
    let Some(path) = output.filter(|path| *path != Path::new("-")) else {
        return print(&String::from_utf8_lossy(bytes));
    };
    let written = std::fs::write(path, bytes);
    if let Err(error) = &written
        && error.kind() == ErrorKind::NotFound
    {
        bail!("write {}: its directory does not exist", path.display());
    }
    written.with_context(|| format!("write {}", path.display()))
}

/// What the daemon refused, in its own words.
fn said(config: &Config, status: &Status) -> anyhow::Error {
    match status.code() {
        Code::NotFound | Code::InvalidArgument => anyhow::anyhow!("{}", status.message()),
        _ => refused(&config.root, status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_meant_by_name_or_key() {
        let key = larder_proto::digest::Digest::of(b"x").to_string();
        assert_eq!(image(&key).as_ref(), Ok(&key));
        assert_eq!(image("r.test/app:1").unwrap(), "r.test/app:1");
        for none in ["", "oci:dir", "r.test/UPPER:1"] {
            assert!(image(none).is_err(), "{none}");
        }
    }

    /// Promise: what is no profile is told with the file's name, also when no daemon is there.
    #[tokio::test]
    async fn a_file_that_is_no_profile_is_named() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("profile.json");
        let overrides = Overrides {
            root: Some(scratch.path().to_owned()),
            ..Overrides::default()
        };
        let none = scratch.path().join("config.toml");
        std::fs::write(&none, "").unwrap();
        let config = Config::load(Some(&none), &overrides).unwrap();
        for (bytes, words) in [
            (b"{}".to_vec(), "form"),
            (vec![b'['; 10 << 20], "has at most"),
        ] {
            std::fs::write(&file, bytes).unwrap();
            let refused = import(&config, &file).await.unwrap_err();
            let told = super::super::in_words(&refused);
            assert!(told.contains("profile.json"), "{told}");
            assert!(told.contains(words), "{told}");
        }
    }
}
