//! `pin` and `unpin`: which layers are not to be evicted.

use std::path::PathBuf;

use anyhow::{Context, bail};
use larder_proto::digest::Digest;
use larder_proto::grpc::control::{PinRequest, PinResponse, UnpinRequest};
use larder_registry::Reference;

use super::asked::asked;
use super::fetch_blobs;
use super::output::{print, print_json};
use crate::config::{Config, ConfigError, Overrides};
use crate::containerd::{Containerd, Session};

/// What can be pinned.
#[derive(Debug, Clone)]
enum Target {
    Layer(Digest),
    Image(Reference),
}

/// Options of `pin` and `unpin`.
#[derive(Debug, clap::Args)]
pub(super) struct PinArgs {
    /// Root directory of the daemon, or of `mount`; without it that of the configuration.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Configuration file of the daemon.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// containerd's socket; without it the configuration's `[containerd] address`.
    #[arg(long, value_name = "SOCK", env = "CONTAINERD_ADDRESS")]
    address: Option<PathBuf>,
    /// containerd's namespace.
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// For programs.
    #[arg(long)]
    pub(super) json: bool,
    /// An image as containerd lists it, or the digest of a layer or of its index, as `status` shows
    /// them.
    #[arg(value_name = "REF|LAYER", value_parser = target)]
    target: Target,
}

fn target(text: &str) -> Result<Target, String> {
    match text.parse::<Digest>() {
        Ok(layer) => Ok(Target::Layer(layer)),
        // It would else be a tag of an image called sha256, on Docker Hub.
        Err(error) if text.starts_with("sha256:") => Err(error.to_string()),
        Err(_) => super::in_registry(text).map(Target::Image),
    }
}

impl PinArgs {
    fn config(&self) -> Result<Config, ConfigError> {
        let overrides = Overrides {
            root: self.root.clone(),
            containerd: self.address.clone(),
            ..Overrides::default()
        };
        Config::load(self.config.as_deref(), &overrides)
    }

    /// What the pin is called: images of two namespaces are two pins.
    fn name(&self) -> String {
        match &self.target {
            Target::Layer(layer) => layer.to_string(),
            Target::Image(image) => format!("{}/{image}", self.namespace),
        }
    }

    fn tell(&self, done: &str, answer: &PinResponse) -> anyhow::Result<()> {
        let name = self.name();
        let PinResponse {
            layers,
            unknown,
            freed,
        } = answer;
        if self.json {
            let told = serde_json::json!({
                "name": name, "layers": layers, "unknown": unknown, "freed": freed,
            });
            return print_json(&told);
        }
        let mut rest = String::new();
        if !unknown.is_empty() {
            let many = unknown.len();
            rest = format!("; {many} more are unpacked or not on this node");
        }
        if *freed > 0 {
            rest = format!("; {freed} of them had no snapshot any more, and are gone");
        }
        print(&format!("{name}: {layers} layers {done}{rest}\n"))
    }
}

/// Keeps the layers of an image, or one layer, from being evicted and freed.
pub(super) async fn pin(args: PinArgs) -> anyhow::Result<()> {
    let config = args.config()?;
    let layers = match &args.target {
        Target::Layer(layer) => vec![layer.to_string()],
        Target::Image(image) => {
            let containerd = Containerd::new(config.containerd.clone());
            super::reach(&containerd).await?;
            // Without a lease: nothing is made, and what is read is the image's own.
            let session = Session::new(containerd, args.namespace.clone());
            layers(&session, &image.to_string()).await?
        }
    };
    let name = args.name();
    let request = PinRequest { name, layers };
    let answer = asked(&config.root, async |mut control| {
        control.pin(request.clone()).await
    });
    let answer = answer.await;
    let answer = answer.map_err(|status| super::status::refused(&config.root, &status))?;
    if answer.layers == 0 {
        bail!(
            "no layer of {} is in the store: layers that were unpacked in the ordinary way are never \
             evicted, and what is not on this node is to be pulled first",
            args.name()
        );
    }
    args.tell("pinned", &answer)
}

/// Undoes [`pin`].
pub(super) async fn unpin(args: PinArgs) -> anyhow::Result<()> {
    let config = args.config()?;
    let name = args.name();
    let request = UnpinRequest { name };
    let answer = asked(&config.root, async |mut control| {
        control.unpin(request.clone()).await
    });
    let answer = answer.await;
    let answer = answer.map_err(|status| super::status::refused(&config.root, &status))?;
    if answer.layers == 0 {
        bail!("{} is not pinned; `status` shows what is", args.name());
    }
    args.tell("unpinned", &answer)
}

/// The digests of the layers of `image`, of each platform whose manifest is there.
pub(super) async fn layers(session: &Session, image: &str) -> anyhow::Result<Vec<String>> {
    let found = session.image(image).await;
    let found = found.context("is it pulled, in this namespace?")?;
    let digest = found.digest.parse()?;
    let manifests = fetch_blobs::manifests(session, digest, &found.media_type).await?;
    let layers = manifests.iter().flat_map(|manifest| &manifest.layers);
    Ok(layers.map(|layer| layer.digest.to_string()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pinned_is_an_image_or_a_layer() {
        let layer = Digest::of(b"x").to_string();
        assert!(matches!(target(&layer), Ok(Target::Layer(_))));
        assert!(matches!(target("r.test/app:1"), Ok(Target::Image(_))));
        let by_digest = format!("r.test/app@{layer}");
        assert!(matches!(target(&by_digest), Ok(Target::Image(_))));
        let short = &layer[..layer.len() - 1];
        for none in [
            "",
            "oci:dir",
            "r.test/UPPER:1",
            "sha256:",
            "sha256:1234",
            short,
        ] {
            assert!(target(none).is_err(), "{none}");
        }
    }
}
