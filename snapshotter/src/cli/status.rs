//! `status`: what the daemon does, layer by layer.

use std::path::Path;

use anyhow::Context;
use larder_proto::grpc::control::control_client::ControlClient;
use larder_proto::grpc::control::{Layer, StatusResponse};
use serde_json::json;

use crate::config::Config;
use crate::socket::Connector;

/// Asks the process that owns `root`, and prints what it says.
pub(super) async fn status(root: &Path, as_json: bool) -> anyhow::Result<()> {
    let socket = Config::control(root);
    let mut control = ControlClient::new(Connector::channel(socket.clone()));
    let asked = control.status(()).await;
    let answer = asked.with_context(|| {
        format!(
            "ask the daemon at {}: is it running with --root {}?",
            socket.display(),
            root.display()
        )
    })?;
    let status = answer.into_inner();
    if as_json {
        println!("{}", serde_json::to_string_pretty(&object(&status))?);
    } else {
        print(&status);
    }
    Ok(())
}

fn print(status: &StatusResponse) {
    println!("larder-snapshotter {}", status.version);
    println!("driver: {} ({})", status.driver, status.driver_reason);
    let count = |state: &str| {
        status
            .layers
            .iter()
            .filter(|layer| layer.state == state)
            .count()
    };
    let (lazy, complete, eager) = (count("lazy"), count("complete"), count("eager"));
    println!("layers: {lazy} lazy, {complete} complete, {eager} eager");
    for layer in &status.layers {
        println!("{:<8} {} {}", layer.state, layer.chain_id, detail(layer));
        for source in &layer.sources {
            let failure = match source.failure.as_str() {
                "" => String::new(),
                failure => format!(", last failure: {failure}"),
            };
            println!(
                "         from {}: {} bytes{failure}",
                source.name, source.bytes_fetched
            );
        }
    }
}

fn detail(layer: &Layer) -> String {
    if layer.state == "eager" {
        return format!("({})", layer.reason);
    }
    format!("{} of {} bytes", layer.bytes_present, layer.bytes_total)
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
    json!({
        "version": status.version,
        "driver": status.driver,
        "driver_reason": status.driver_reason,
        "layers": status.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}
