//! `fetch-blobs`: completes containerd's content store, so that an image can be pushed or exported.

use std::collections::HashMap;

use anyhow::Context;
use larder_proto::digest::Digest;
use larder_registry::oci::{ImageIndex, Manifest, media_type};
use larder_registry::{MANIFEST_BYTES_MAX, Reference, Repository};

use super::{ContainerdArgs, pull};
use crate::containerd::{Containerd, Session};
use crate::registries::Registries;

/// Fetches every blob of `image` that containerd has the manifest of, but not the bytes.
pub(super) async fn fetch_blobs(args: ContainerdArgs, image: Reference) -> anyhow::Result<()> {
    let registries = Registries::new(&args.registry_config()?)?;
    let repository = registries.repository(&image, args.plain_http);
    let session = Session::begin(Containerd::new(args.address), args.namespace).await?;
    let target = session.image(&image.to_string()).await?;
    let digest: Digest = target.digest.parse()?;
    let mut fetched = 0;
    for manifest in manifests(&session, digest, &target.media_type).await? {
        fetched += complete(&session, &repository, &manifest).await?;
    }
    session.end().await?;
    println!("{image}: {fetched} blobs fetched");
    Ok(())
}

/// The manifests below `digest` that containerd has; other platforms' are absent on purpose.
async fn manifests(
    session: &Session,
    digest: Digest,
    media: &str,
) -> anyhow::Result<Vec<Manifest>> {
    let read = async |digest: Digest| session.read(&digest, MANIFEST_BYTES_MAX).await;
    if !media_type::is_index(media) {
        let bytes = read(digest).await?;
        return Ok(vec![
            serde_json::from_slice(&bytes).context("read the manifest")?,
        ]);
    }
    let index: ImageIndex = serde_json::from_slice(&read(digest).await?)?;
    let mut manifests = Vec::new();
    for entry in index.manifests {
        if session.has(&entry.digest).await? {
            let bytes = read(entry.digest).await?;
            manifests.push(serde_json::from_slice(&bytes).context("read the manifest")?);
        }
    }
    Ok(manifests)
}

/// Returns the number of blobs that were missing.
async fn complete(
    session: &Session,
    repository: &Repository,
    manifest: &Manifest,
) -> anyhow::Result<usize> {
    let host = repository.registry();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let label = format!("containerd.io/distribution.source.{host}");
    let labels = HashMap::from([(label, repository.name().to_owned())]);
    let mut fetched = 0;
    for blob in std::iter::once(&manifest.config).chain(&manifest.layers) {
        let done = pull::fetch(session, repository, blob, labels.clone()).await;
        let missing = done.with_context(|| format!("blob {}", blob.digest))?;
        fetched += usize::from(missing);
    }
    Ok(fetched)
}
