//! A layer blob whose index claims to be of another tar: `liar TAR DIFF-ID BLOB` writes the blob of a tar under
//! the digest of another, as somebody would who wants their files in other people's containers. It prints what
//! the layer's descriptor has to say.

use std::fs;
use std::process::ExitCode;

use anyhow::Context as _;
use larder_proto::annotation;
use larder_test_support::layer::LayerFixture;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(told) => {
            println!("{told}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("liar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> anyhow::Result<serde_json::Value> {
    let [tar, diff_id, blob] = words else {
        anyhow::bail!("liar TAR DIFF-ID BLOB");
    };
    let tar = fs::read(tar).with_context(|| format!("read {tar}"))?;
    let layer = LayerFixture::claiming(tar, diff_id.parse().context("read the diff id")?);
    fs::write(blob, &layer.blob).with_context(|| format!("write {blob}"))?;
    Ok(serde_json::json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd",
        "digest": layer.digest.to_string(),
        "size": layer.blob.len(),
        "annotations": {
            annotation::INDEX: layer.index.to_string(),
            annotation::LAYER: layer.digest.to_string(),
        },
    }))
}
