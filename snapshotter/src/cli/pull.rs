//! `pull`: what `ctr pull` of containerd 1.x cannot do, a pull that does not download the layers.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Context, bail, ensure};
use containerd_client::types::{Descriptor, Mount};
use larder_proto::grpc::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
    ViewSnapshotRequest,
};
use larder_registry::Reference;
use larder_registry::oci::Descriptor as Layer;
use tonic::{Code, Status};

use super::ContainerdArgs;
use super::download::Downloads;
use super::output::{print, print_json};
use crate::containerd::{Session, chain_ids, unique};
use crate::image::Image;
use crate::store::REF_LABEL;

/// containerd hands labels with this prefix to snapshotters.
const INHERITED_PREFIX: &str = "containerd.io/snapshot/";

/// Pulls `image` into containerd, each layer lazily where possible.
pub(super) async fn pull(
    args: ContainerdArgs,
    image: Reference,
    complete: bool,
) -> anyhow::Result<()> {
    let config = args.config()?;
    let downloads = Downloads::begin(&args, &config, &image).await?;
    let resolved = Image::resolve(downloads.repository(), &image).await;
    let resolved = downloads.or_end(resolved).await?;
    let pull = Pull {
        downloads,
        image,
        resolved,
        snapshotter: args.snapshotter,
    };
    let counts = pull.run().await?;
    let mut waits = None;
    let mut told = counts.told(&pull.image, args.plain_http);
    let unfit = if counts.present > 0 {
        pull.unfit().await
    } else {
        None
    };
    pull.downloads.end().await?;
    match unfit {
        Some(Unfit::ForGood(why)) => bail!(
            "{} is pulled, and no container of it can start: {why}",
            pull.image
        ),
        Some(Unfit::ForNow(why)) => waits = Some(why),
        None => {}
    }
    if let Some(why) = &waits {
        let _ = writeln!(told, "no container of it can start yet: {why}");
    }
    if complete {
        let layers = pull.resolved.parsed.layers.iter();
        let layers: Vec<_> = layers.map(|layer| layer.digest.to_string()).collect();
        super::complete::complete(&config, &pull.image.to_string(), layers, counts.lazy).await?;
    }
    if args.json {
        let image = pull.image.to_string();
        return print_json(&serde_json::json!({
            "image": image,
            "layers": pull.resolved.parsed.layers.len(),
            "lazy": counts.lazy,
            "present": counts.present,
            "unpacked": counts.unpacked,
            "complete": complete,
            "waits": waits,
        }));
    }
    print(&told)
}

/// What became of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Became {
    /// Its snapshot was there before.
    Present,
    Lazy,
    Unpacked,
}

/// How many layers became what.
#[derive(Debug, Default)]
struct Counts {
    present: usize,
    lazy: usize,
    unpacked: usize,
}

impl Counts {
    fn add(&mut self, became: Became) {
        *match became {
            Became::Present => &mut self.present,
            Became::Lazy => &mut self.lazy,
            Became::Unpacked => &mut self.unpacked,
        } += 1;
    }

    fn told(&self, image: &Reference, plain_http: bool) -> String {
        let all = self.present + self.lazy + self.unpacked;
        let mut told = format!("{image}: {} of {all} layers loaded lazily", self.lazy);
        for (count, how) in [(self.present, "there already"), (self.unpacked, "unpacked")] {
            if count > 0 {
                let _ = write!(told, ", {count} {how}");
            }
        }
        if self.unpacked > 0 {
            told.push_str("; larder-snapshotter status says why");
            if plain_http {
                told.push_str(
                    " (--plain-http speaks for this command; the daemon fetches by its own \
                     [registry] plain_http and authfile)",
                );
            }
        }
        told.push('\n');
        told
    }
}

/// Why nothing can be mounted on layers that were there before, in the snapshotter's words.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Unfit {
    /// One of them lied.
    ForGood(String),
    /// One of them is being proved.
    ForNow(String),
}

impl Unfit {
    /// What a view that was refused means; other failures are for those who mount.
    fn of(status: &Status) -> Option<Self> {
        let why = status.message().to_owned();
        match status.code() {
            Code::FailedPrecondition => Some(Self::ForGood(why)),
            Code::Unavailable => Some(Self::ForNow(why)),
            _ => None,
        }
    }
}

struct Pull {
    downloads: Downloads,
    image: Reference,
    resolved: Image,
    snapshotter: String,
}

impl Pull {
    fn session(&self) -> &Session {
        self.downloads.session()
    }

    async fn run(&self) -> anyhow::Result<Counts> {
        let chains = chain_ids(&self.resolved.diff_ids);
        self.put_documents(&chains).await?;
        let mut counts = Counts::default();
        let mut parent = String::new();
        for (number, chain) in chains.iter().enumerate() {
            let layer = &self.resolved.parsed.layers[number];
            let became = self.layer(number, chain, &parent).await;
            counts.add(became.with_context(|| format!("layer {}", layer.digest))?);
            parent.clone_from(chain);
        }
        let target = self.resolved.target.descriptor();
        self.session()
            .put_image(&self.image.to_string(), descriptor(&target))
            .await?;
        Ok(counts)
    }

    /// Index, manifest and config, with the labels that keep them and the snapshots alive.
    async fn put_documents(&self, chains: &[String]) -> anyhow::Result<()> {
        let Image {
            target,
            manifest,
            parsed,
            config,
            ..
        } = &self.resolved;
        let mut labels = self.downloads.source_labels();
        if let Some(top) = chains.last() {
            labels.insert(
                reference(&format!("snapshot.{}", self.snapshotter)),
                top.clone(),
            );
        }
        self.session()
            .put(&parsed.config.digest, config, labels)
            .await?;
        let mut labels = self.downloads.source_labels();
        labels.insert(
            reference("content.config"),
            parsed.config.digest.to_string(),
        );
        for (number, layer) in parsed.layers.iter().enumerate() {
            labels.insert(
                reference(&format!("content.l.{number}")),
                layer.digest.to_string(),
            );
        }
        self.session()
            .put(&manifest.digest, &manifest.bytes, labels)
            .await?;
        if target.digest != manifest.digest {
            let mut labels = self.downloads.source_labels();
            labels.insert(reference("content.m.0"), manifest.digest.to_string());
            self.session()
                .put(&target.digest, &target.bytes, labels)
                .await?;
        }
        Ok(())
    }

    /// Makes the snapshot of one layer.
    async fn layer(&self, number: usize, chain: &str, parent: &str) -> anyhow::Result<Became> {
        if self.exists(chain).await? {
            return Ok(Became::Present);
        }
        let key = format!("extract-{}-{number} {chain}", unique());
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: parent.to_owned(),
            labels: self.labels(number, chain),
        };
        let prepared = self
            .session()
            .snapshots()
            .prepare(self.session().request(request))
            .await;
        let mounts = match prepared {
            Ok(prepared) => prepared.into_inner().mounts,
            Err(status) if status.code() == Code::AlreadyExists => {
                ensure!(
                    self.exists(chain).await?,
                    "containerd did not adopt snapshot {chain}: it knows one that is not here any more. Remove \
                     the image and the leases that pulls left (`ctr leases ls`, `ctr leases rm`), and pull again"
                );
                return Ok(Became::Lazy);
            }
            Err(status) => anyhow::bail!("prepare a snapshot: {}", status.message()),
        };
        let unpacked = self.unpack(number, chain, &key, mounts).await;
        if unpacked.is_err() {
            let request = RemoveSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                key,
            };
            drop(
                self.session()
                    .snapshots()
                    .remove(self.session().request(request))
                    .await,
            );
        }
        unpacked.map(|()| Became::Unpacked)
    }

    /// Why no container could start on the layers, if none could: asks for what is made for a container,
    /// and gives it back. Its name is that of views which are only looked at, and count as no start.
    async fn unfit(&self) -> Option<Unfit> {
        let parent = chain_ids(&self.resolved.diff_ids).pop()?;
        let key = format!("pull-parent-view-{}", unique());
        let (session, snapshotter) = (self.session(), &self.snapshotter);
        let request = ViewSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key: key.clone(),
            parent,
            ..ViewSnapshotRequest::default()
        };
        let viewed = session.snapshots().view(session.request(request)).await;
        if let Err(status) = viewed {
            return Unfit::of(&status);
        }
        let request = RemoveSnapshotRequest {
            snapshotter: snapshotter.clone(),
            key,
        };
        // The lease's end removes it as well.
        drop(session.snapshots().remove(session.request(request)).await);
        None
    }

    async fn exists(&self, chain: &str) -> anyhow::Result<bool> {
        let request = StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: chain.to_owned(),
        };
        match self
            .session()
            .snapshots()
            .stat(self.session().request(request))
            .await
        {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => anyhow::bail!("look up snapshot {chain}: {}", status.message()),
        }
    }

    /// The labels containerd's own unpacker would hand over.
    fn labels(&self, number: usize, chain: &str) -> HashMap<String, String> {
        let layer = &self.resolved.parsed.layers[number];
        let annotations = layer.annotations.iter();
        let inherited = annotations.filter(|(name, _)| name.starts_with(INHERITED_PREFIX));
        let mut labels: HashMap<String, String> = inherited
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        labels.insert(REF_LABEL.to_owned(), chain.to_owned());
        for (name, value) in [
            ("cri.image-ref", self.image.to_string()),
            ("cri.layer-digest", layer.digest.to_string()),
            (
                "cri.manifest-digest",
                self.resolved.manifest.digest.to_string(),
            ),
        ] {
            labels.insert(format!("{INHERITED_PREFIX}{name}"), value);
        }
        labels
    }

    /// The ordinary way: download, unpack, commit.
    async fn unpack(
        &self,
        number: usize,
        chain: &str,
        key: &str,
        mounts: Vec<larder_proto::grpc::Mount>,
    ) -> anyhow::Result<()> {
        let layer = &self.resolved.parsed.layers[number];
        self.downloads.fetch(layer).await?;
        let mounts = mounts.into_iter().map(|mount| Mount {
            r#type: mount.r#type,
            source: mount.source,
            target: mount.target,
            options: mount.options,
        });
        let applied = self
            .session()
            .apply(descriptor(layer), mounts.collect())
            .await?;
        let expected = self.resolved.diff_ids[number].to_string();
        ensure!(
            applied == expected,
            "its tar has digest {applied}, the config says {expected}"
        );
        let request = CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: chain.to_owned(),
            key: key.to_owned(),
            labels: HashMap::from([(REF_LABEL.to_owned(), chain.to_owned())]),
            parent: String::new(),
        };
        match self
            .session()
            .snapshots()
            .commit(self.session().request(request))
            .await
        {
            // Another pull was faster.
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => anyhow::bail!("commit the snapshot: {}", status.message()),
            Ok(_) => Ok(()),
        }
    }
}

/// A garbage collection label.
fn reference(what: &str) -> String {
    format!("containerd.io/gc.ref.{what}")
}

fn descriptor(layer: &Layer) -> Descriptor {
    Descriptor {
        media_type: layer.media_type.clone(),
        digest: layer.digest.to_string(),
        size: i64::try_from(layer.size).unwrap_or(i64::MAX),
        ..Descriptor::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: what was there before does not count as loaded lazily.
    #[test]
    fn a_second_pull_does_not_claim_to_be_lazy() {
        let image: Reference = "r.test/app:1".parse().unwrap();
        let mut counts = Counts::default();
        for became in [Became::Present, Became::Present, Became::Unpacked] {
            counts.add(became);
        }
        let told = counts.told(&image, false);
        assert!(
            told.contains("0 of 3 layers loaded lazily, 2 there already, 1 unpacked"),
            "{told}"
        );
    }

    /// Regression: a pull onto a layer that is quarantined ended with 0 and without a word.
    ///
    /// Promise: what is for good is told from what passes, and neither from another trouble.
    #[test]
    fn what_nothing_can_run_on_is_told_from_what_can_wait() {
        let unfit = |code| Unfit::of(&Status::new(code, "why"));
        let why = || "why".to_owned();
        assert_eq!(unfit(Code::FailedPrecondition), Some(Unfit::ForGood(why())));
        assert_eq!(unfit(Code::Unavailable), Some(Unfit::ForNow(why())));
        assert_eq!(unfit(Code::Unknown), None);
    }
}
