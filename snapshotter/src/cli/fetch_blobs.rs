//! `fetch-blobs`: completes containerd's content store, so that an image can be pushed or exported.
//!
//! The blobs come from registries, not from our store: a blob is compressed bytes, the store has
//! decompressed ones, and compressing them again need not give the same blob.

use anyhow::Context;
use larder_proto::digest::Digest;
use larder_registry::oci::{ImageIndex, Manifest, media_type};
use larder_registry::{MANIFEST_BYTES_MAX, Reference};

use super::ContainerdArgs;
use super::download::Downloads;
use super::output::{print, print_json};
use crate::containerd::Session;

/// Fetches every blob of `image` that containerd has the manifest of, but not the bytes.
pub(super) async fn fetch_blobs(args: ContainerdArgs, image: Reference) -> anyhow::Result<()> {
    let config = args.config()?;
    let downloads = Downloads::begin(&args, &config, &image).await?;
    let session = downloads.session();
    let target = session.image(&image.to_string()).await;
    let target = downloads.or_end(target).await?;
    let digest: Digest = target.digest.parse()?;
    let (mut fetched, mut bytes) = (0, 0);
    for manifest in manifests(session, digest, &target.media_type).await? {
        for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
            let done = downloads.fetch(blob).await;
            if done.with_context(|| format!("blob {}", blob.digest))? {
                fetched += 1;
                bytes += blob.size;
            }
        }
    }
    downloads.end().await?;
    if args.json {
        let image = image.to_string();
        return print_json(&serde_json::json!({"image": image, "blobs": fetched, "bytes": bytes}));
    }
    print(&format!(
        "{image}: {fetched} blobs fetched, {bytes} bytes\n"
    ))
}

/// The manifests below `digest` that containerd has; other platforms' are absent on purpose.
pub(super) async fn manifests(
    session: &Session,
    digest: Digest,
    media: &str,
) -> anyhow::Result<Vec<Manifest>> {
    let read = async |digest: Digest| session.read(&digest, MANIFEST_BYTES_MAX).await;
    if !media_type::is_index(media) {
        let bytes = read(digest).await?;
        return Ok(vec![Manifest::parse(&bytes).context("read the manifest")?]);
    }
    let index = ImageIndex::parse(&read(digest).await?).context("read the index")?;
    let mut manifests = Vec::new();
    for entry in index.manifests {
        if session.has(&entry.digest).await? {
            let bytes = read(entry.digest).await?;
            manifests.push(Manifest::parse(&bytes).context("read the manifest")?);
        }
    }
    Ok(manifests)
}
