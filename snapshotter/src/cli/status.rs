//! `status`: what the daemon does, layer by layer.

use std::path::Path;

use anyhow::bail;
use larder_proto::grpc::control::control_client::ControlClient;
use larder_proto::grpc::control::{Layer, Mounted, StatusResponse};
use serde_json::json;
use tonic::Code;

use super::output::{print, print_json};
use crate::config::Config;
use crate::socket::Connector;

/// Asks the process that owns `root`, and prints what it says.
pub(super) async fn status(root: &Path, as_json: bool) -> anyhow::Result<()> {
    let socket = Config::control(root);
    let mut control = ControlClient::new(Connector::channel(socket.clone()));
    let status = match control.status(()).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == Code::Unavailable => bail!(
            "no daemon answers at {} ({}): is it running, and is {} its root? Name another with \
             --root or --config",
            socket.display(),
            status.message(),
            root.display()
        ),
        Err(status) => bail!(
            "ask the daemon at {}: {}",
            socket.display(),
            status.message()
        ),
    };
    if as_json {
        print_json(&object(&status))
    } else {
        print(&text(&status))
    }
}

fn text(status: &StatusResponse) -> String {
    let mut lines = vec![
        format!("larder-snapshotter {}", status.version),
        format!("driver: {} ({})", status.driver, status.driver_reason),
    ];
    for image in &status.mounted {
        lines.push(format!("mounted: {} at {}", image.reference, image.target));
    }
    let count = |state: &str| {
        let layers = status.layers.iter();
        layers.filter(|layer| layer.state == state).count()
    };
    let counts = ["lazy", "complete", "eager", "quarantined"].map(|state| (state, count(state)));
    let counts = counts
        .iter()
        .filter(|(state, count)| *count > 0 || *state != "quarantined");
    let counts: Vec<_> = counts
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    lines.push(format!("layers: {}", counts.join(", ")));
    for layer in &status.layers {
        // Images mounted by hand have no snapshots, hence no chains.
        let name = [&layer.chain_id, &layer.blob, &layer.snapshot];
        let name = name.into_iter().find(|name| !name.is_empty());
        let name = name.map_or("", String::as_str);
        lines.push(format!("{:<8} {name} {}", layer.state, detail(layer)));
        if !layer.chain_id.is_empty() && !layer.blob.is_empty() {
            lines.push(format!("         layer {}", layer.blob));
        }
        for source in &layer.sources {
            let (name, bytes) = (&source.name, size(source.bytes_fetched));
            lines.push(format!("         {bytes} from {name} since the start"));
            if !source.failure.is_empty() {
                lines.push(format!("         its last failure: {}", source.failure));
            }
        }
    }
    lines.join("\n") + "\n"
}

fn detail(layer: &Layer) -> String {
    match layer.state.as_str() {
        "eager" => format!("({})", layer.reason),
        "complete" => format!("all of {}", size(layer.bytes_total)),
        "quarantined" => format!("its index lied: {}", layer.reason),
        _ => {
            let (present, total) = (layer.bytes_present, layer.bytes_total);
            let percent = present.saturating_mul(100) / total.max(1);
            format!("{} of {} ({percent} %)", size(present), size(total))
        }
    }
}

/// A number of bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

fn object(status: &StatusResponse) -> serde_json::Value {
    let layer = |layer: &Layer| {
        let sources: Vec<_> = layer
            .sources
            .iter()
            .map(|source| {
                json!({
                    "name": source.name,
                    "bytes_fetched": source.bytes_fetched,
                    "failure": source.failure,
                })
            })
            .collect();
        json!({
            "snapshot": layer.snapshot,
            "chain_id": layer.chain_id,
            "state": layer.state,
            "reason": layer.reason,
            "blob": layer.blob,
            "bytes_total": layer.bytes_total,
            "bytes_present": layer.bytes_present,
            "sources": sources,
        })
    };
    let mounted = |image: &Mounted| json!({"reference": image.reference, "target": image.target});
    json!({
        "version": status.version,
        "driver": status.driver,
        "driver_reason": status.driver_reason,
        "mounted": status.mounted.iter().map(mounted).collect::<Vec<_>>(),
        "layers": status.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(state: &str, reason: &str, bytes_present: u64) -> Layer {
        Layer {
            state: state.into(),
            reason: reason.into(),
            bytes_present,
            bytes_total: 2_500_000,
            ..Layer::default()
        }
    }

    /// Promise: a daemon that is not there is told in one sentence with what to do, and no more.
    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_told_in_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let refused = status(dir.path(), false).await.unwrap_err();
        let words = super::super::in_words(&refused);
        assert!(words.contains("control.sock"), "{words}");
        assert!(words.contains("--root"), "{words}");
        assert!(!words.contains("transport"), "{words}");
    }

    /// Promise: a line says how far a layer is in words, and why it is not lazy.
    #[test]
    fn every_state_is_told_in_words() {
        for (layer, said) in [
            (layer("lazy", "", 1_250_000), "1.2 MB of 2.5 MB (50 %)"),
            (layer("lazy", "", 0), "0 bytes of 2.5 MB (0 %)"),
            (layer("complete", "", 2_500_000), "all of 2.5 MB"),
            (layer("eager", "no index", 0), "(no index)"),
            (
                layer("quarantined", "other mode", 9),
                "its index lied: other mode",
            ),
        ] {
            assert_eq!(detail(&layer), said);
        }
        assert_eq!(size(12_300_000_000), "12.3 GB");
        assert_eq!(size(999), "999 bytes");
    }
}
