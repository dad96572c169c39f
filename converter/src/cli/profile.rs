//! `larder profile`: what a start reads, attached to images in registries.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use larder_proto::profile::{PROFILE_BYTES_MAX, Profile};
use larder_registry::Reference;
use serde_json::json;

use super::text::counted;
use super::{AccessArguments, Failure, print, print_json};
use crate::attach::{Attachable, Attached, Content, Shown};
use crate::location::Location;
use crate::plan::PlatformFilter;
use crate::source::blocking;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Attach a profile to its image, so that nodes which pull that image fetch what a start reads.
    ///
    /// `larder-snapshotter profile export` and `profile record` write one. It takes the place of what was attached
    /// before. The image itself does not change.
    Attach {
        #[command(flatten)]
        image: ImageArguments,
        /// The profile; `-` for standard input.
        file: PathBuf,
    },
    /// Show which profiles are attached to an image.
    Show {
        #[command(flatten)]
        image: ImageArguments,
    },
    /// Take all attached profiles off an image. Nodes that have used one keep it.
    Detach {
        #[command(flatten)]
        image: ImageArguments,
    },
}

/// Which image.
#[derive(Debug, Args)]
pub(super) struct ImageArguments {
    /// The converted image, in a registry: HOST/REPO:TAG or HOST/REPO@DIGEST.
    #[arg(value_name = "REF", value_parser = in_registry)]
    image: Reference,
    /// Only this platform; may be given several times [default: all].
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    platforms: Vec<PlatformFilter>,
    #[command(flatten)]
    access: AccessArguments,
}

/// Only registries list what refers to an image.
fn in_registry(text: &str) -> Result<Reference, String> {
    match text.parse::<Location>() {
        Ok(Location::Registry(reference)) => Ok(reference),
        Ok(_) => Err("profiles are attached to images in registries, HOST/REPO:TAG".into()),
        Err(error) => Err(error.to_string()),
    }
}

impl Command {
    pub(super) fn wants_json(&self) -> bool {
        match self {
            Self::Attach { image, .. } | Self::Show { image } | Self::Detach { image } => {
                image.access.json
            }
        }
    }
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Attach { image, file } => attach(&image, file).await,
        Command::Show { image } => show(&image).await,
        Command::Detach { image } => detach(&image).await,
    }
}

impl ImageArguments {
    async fn open(&self) -> Result<Attachable, Failure> {
        let location = Location::Registry(self.image.clone());
        let access = self.access.access(&[&location]).await?;
        Ok(Attachable::open(&self.image, &self.platforms, &access).await?)
    }

    /// The repository, as digests in it are named.
    fn repository(&self) -> String {
        format!("{}/{}", self.image.registry(), self.image.repository())
    }
}

async fn attach(image: &ImageArguments, file: PathBuf) -> Result<(), Failure> {
    let (profile, bytes) = blocking(move || read_profile(&file)).await?;
    let attached = image.open().await?.attach(&profile, bytes.into()).await?;
    for left in attached.iter().flat_map(|one| &one.left) {
        eprintln!(
            "artifact {} stays beside it, nodes use the newer one: {}",
            left.artifact, left.reason
        );
    }
    if image.access.json {
        let name = image.image.to_string();
        return print_json(&json!({
            "image": name, "chunks": profile.reads(), "attached": attached,
        }));
    }
    let line = |one: &Attached| {
        let (repository, platform) = (image.repository(), platform(one.manifest.platform.as_ref()));
        let how = match (one.was_there, one.replaced.len()) {
            (true, _) => "it was there already".to_owned(),
            (false, 0) => "the first".to_owned(),
            (false, count) => format!("in the place of {count}"),
        };
        format!(
            "{repository}@{}\nattached to {}{platform}: {}, {how}\n",
            one.artifact,
            one.manifest.digest,
            counted(profile.reads(), "chunk"),
        )
    };
    print(attached.iter().map(line).collect::<String>().as_bytes())
}

async fn show(image: &ImageArguments) -> Result<(), Failure> {
    let shown = image.open().await?.show().await?;
    if image.access.json {
        let name = image.image.to_string();
        return print_json(&json!({ "image": name, "manifests": shown }));
    }
    print(shown.iter().map(told).collect::<String>().as_bytes())
}

/// What is attached to one manifest, for people.
fn told(shown: &Shown) -> String {
    let mut lines = vec![format!(
        "manifest {}{}",
        shown.manifest.digest,
        platform(shown.manifest.platform.as_ref())
    )];
    if shown.profiles.is_empty() {
        lines.push("  no profile".into());
    }
    for profile in &shown.profiles {
        let content = match &profile.content {
            Content::Profile {
                image,
                layers,
                chunks,
            } => format!(
                "{} of {}, of {image:?}",
                counted(*chunks, "chunk"),
                counted(*layers, "layer")
            ),
            Content::Problem { problem } => format!("of no use: {problem}"),
        };
        let created = match profile.created.as_str() {
            "" => "at a time it does not say",
            time => time,
        };
        lines.push(format!(
            "  {} attached {created}: {content}",
            profile.artifact
        ));
    }
    lines.join("\n") + "\n"
}

async fn detach(image: &ImageArguments) -> Result<(), Failure> {
    let gone = image.open().await?.detach().await?;
    if image.access.json {
        let name = image.image.to_string();
        return print_json(&json!({ "image": name, "detached": gone }));
    }
    let line = |artifact: &String| format!("detached {artifact}\n");
    print(gone.iter().map(line).collect::<String>().as_bytes())
}

fn platform(platform: Option<&String>) -> String {
    platform
        .map(|platform| format!(" ({platform})"))
        .unwrap_or_default()
}

/// A profile from a file, with its bytes.
pub(super) fn read_profile(path: &Path) -> Result<(Profile, Vec<u8>), Failure> {
    let refuse = |reason: String| Failure::Failed(format!("profile {}: {reason}", path.display()));
    let most = PROFILE_BYTES_MAX as u64 + 1;
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(most).read_to_end(&mut bytes)
    } else {
        File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    read.map_err(|error| refuse(error.to_string()))?;
    let profile = Profile::decode(&bytes).map_err(|error| refuse(error.to_string()))?;
    Ok((profile, bytes))
}
