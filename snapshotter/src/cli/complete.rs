//! Waiting until an image is on this node with every byte.

use std::io::{IsTerminal, Write as _};
use std::time::Duration;

use anyhow::bail;
use larder_proto::grpc::control::control_client::ControlClient;
use larder_proto::grpc::control::{CompleteRequest, Layer};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::asked::asked;
use crate::config::Config;

/// How often the daemon is asked how far it is.
const LOOK: Duration = Duration::from_millis(500);

/// Waits until the daemon has, and has proved, each of `layers`, digests of blobs, of `image`. What was unpacked
/// in the ordinary way is there anyway; `lazy` of them were not. Gives up when nothing came for two read deadlines: then nothing that
/// the daemon can ask delivers.
pub(super) async fn complete(
    config: &Config,
    image: &str,
    layers: Vec<String>,
    lazy: usize,
) -> anyhow::Result<()> {
    let patience = 2 * config.read_deadline;
    let (mut most, mut since) = (0, Instant::now());
    let is_shown = std::io::stderr().is_terminal();
    loop {
        let request = CompleteRequest {
            layers: layers.clone(),
        };
        let ask =
            async |mut control: ControlClient<Channel>| control.complete(request.clone()).await;
        let answer = asked(&config.root, ask).await;
        let answer = answer
            .map_err(|status| super::status::refused_by(&config.root, &status, "--config"))?;
        if lazy > 0 && answer.layers.is_empty() {
            bail!(
                "{image} is pulled, and the daemon of {} knows none of its layers: --config names another \
                 daemon than containerd uses",
                config.root.display()
            );
        }
        if let Some(bad) = answer.layers.iter().find(|one| one.state == "quarantined") {
            bail!("{image}: layer {} is quarantined: {}", bad.blob, bad.reason);
        }
        let sum = |bytes: fn(&Layer) -> u64| answer.layers.iter().map(bytes).sum::<u64>();
        let (present, total) = (sum(|one| one.bytes_present), sum(|one| one.bytes_total));
        let is_there = |one: &Layer| one.state == "complete" && one.proven;
        let is_done = answer.layers.iter().all(is_there);
        if is_shown {
            let end = if is_done { "\n" } else { "" };
            eprint!("\r{image}: {present} of {total} bytes{end}");
            let _ = std::io::stderr().flush();
        }
        if is_done {
            return Ok(());
        }
        if !answer.caching_stopped.is_empty() {
            bail!(
                "{image} cannot be completed, {present} of {total} bytes are there: {}",
                answer.caching_stopped
            );
        }
        if present > most {
            (most, since) = (present, Instant::now());
        }
        if since.elapsed() > patience {
            let mut sources = answer.layers.iter().flat_map(|one| &one.sources);
            let failed = sources.find(|source| !source.failure.is_empty());
            let why = failed.map_or_else(
                || "no source delivers".to_owned(),
                |source| format!("{}: {}", source.name, source.failure),
            );
            bail!(
                "{image} is not complete, {present} of {total} bytes are there and no more came for \
                 {patience:?}: {why}; the daemon goes on trying"
            );
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    /// Promise: where no daemon answers, only flags that the command has are named.
    #[tokio::test]
    async fn only_flags_that_there_are_are_named() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("config.toml");
        std::fs::write(&file, "").unwrap();
        let overrides = Overrides {
            root: Some(scratch.path().to_owned()),
            ..Overrides::default()
        };
        let config = Config::load(Some(&file), &overrides).unwrap();
        let refused = complete(&config, "r.test/app:1", vec![], 0).await;
        let told = refused.unwrap_err().to_string();
        assert!(told.contains("Name another with --config"), "{told}");
        assert!(!told.contains("--root"), "{told}");
    }
}
