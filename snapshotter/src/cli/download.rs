//! Blobs on their way into containerd's content store: resumed, checked, from whoever has them.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use larder_proto::digest::Digest;
use larder_registry::oci::Descriptor;
use larder_registry::{Reference, RegistryError, Repository, Senders};
use tonic::Code;

use super::ContainerdArgs;
use crate::config::Config;
use crate::containerd::{Containerd, Lookup, STALLED_MAX, Session, WriteError};
use crate::plane::with_port;
use crate::registries::Registries;
use crate::store::Origin;

/// How many senders of one repository may send wrong bytes before it is given up: the registry
/// and more mirrors than anybody configures.
const SENDERS_MAX: usize = 4;

/// How often the progress of a blob is shown on a terminal.
const SHOW_EVERY: Duration = Duration::from_millis(200);

/// Downloads for one image.
pub(super) struct Downloads {
    session: Session,
    registries: Registries,
    lookup: Lookup,
    /// The image's own repository.
    repository: Repository,
    plain_http: bool,
}

impl Downloads {
    /// For `image`, into the containerd and namespace of `args`.
    pub(super) async fn begin(
        args: &ContainerdArgs,
        config: &Config,
        image: &Reference,
    ) -> anyhow::Result<Self> {
        let registries = Registries::new(&config.registry)?;
        registries.check(image).await?;
        let containerd = Containerd::new(config.containerd.clone());
        let ports = config.registry.ports.clone();
        super::reach(&containerd).await?;
        let session = Session::begin(containerd.clone(), args.namespace.clone()).await?;
        Ok(Self {
            session,
            repository: registries.repository(image, args.plain_http),
            registries,
            lookup: Lookup::new(containerd, ports),
            plain_http: args.plain_http,
        })
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The value, or the error of a command that brought nothing: there is nothing to keep for its next run.
    pub(super) async fn or_end<T, E: Into<anyhow::Error>>(
        &self,
        first: Result<T, E>,
    ) -> anyhow::Result<T> {
        if first.is_err() {
            // The first error is the one to tell; the lease expires.
            drop(self.session.clone().end().await);
        }
        first.map_err(Into::into)
    }

    /// Gives back what protected the blobs until something refers to them.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        Ok(self.session.end().await?)
    }

    /// Where a blob came from, as containerd itself notes it: the host without its port.
    pub(super) fn source_labels(&self) -> HashMap<String, String> {
        let registry = self.repository.registry();
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let label = format!("containerd.io/distribution.source.{host}");
        HashMap::from([(label, self.repository.name().to_owned())])
    }

    /// Downloads a blob unless it is there; says whether it was missing.
    ///
    /// What an interrupted download brought is kept by containerd, and continued.
    pub(super) async fn fetch(&self, blob: &Descriptor) -> anyhow::Result<bool> {
        if self.session.has(&blob.digest).await? {
            return Ok(false);
        }
        let Err(own) = self.fetch_from(&self.repository, blob).await? else {
            return Ok(true);
        };
        let mut reasons = vec![own.to_string()];
        for repository in self.others(&blob.digest).await {
            match self.fetch_from(&repository, blob).await? {
                Ok(()) => return Ok(true),
                Err(reason) => reasons.push(reason.to_string()),
            }
        }
        bail!(reasons.join("; "))
    }

    /// Other repositories that containerd knows for a blob.
    async fn others(&self, blob: &Digest) -> Vec<Repository> {
        let own = Origin {
            host: self.repository.registry().to_owned(),
            repository: self.repository.name().to_owned(),
            plain_http: self.plain_http,
        };
        let found = self.lookup.repositories(self.session.namespace(), blob);
        let found = found.await.unwrap_or_default().into_iter();
        let found = found.map(|origin| with_port(origin, std::slice::from_ref(&own)));
        found
            .filter(|origin| (&origin.host, &origin.repository) != (&own.host, &own.repository))
            .filter_map(|origin| self.registries.origin(&origin))
            .collect()
    }

    /// The inner error is the repository's, and another one may do better; the outer is final.
    async fn fetch_from(
        &self,
        repository: &Repository,
        blob: &Descriptor,
    ) -> anyhow::Result<Result<(), Failure>> {
        let (mut wrong, mut stalled) = (0, 0);
        loop {
            let there = self.session.written(&blob.digest).await?;
            let (body, senders) = match rest(repository, blob, there).await {
                Ok(rest) => rest,
                Err(error) => return Ok(Err(Failure::Registry(error))),
            };
            let mut shown = Progress::new(blob, there);
            let body = body.inspect(move |piece| {
                if let Ok(piece) = piece {
                    shown.add(piece.len());
                }
            });
            let labels = self.source_labels();
            let written = self
                .session
                .write(&blob.digest, blob.size, labels, there, body)
                .await;
            match written {
                Ok(()) => return Ok(Ok(())),
                Err(WriteError::Source(error)) => return Ok(Err(Failure::Registry(error))),
                Err(WriteError::Call(error)) if error.code() == Code::FailedPrecondition => {
                    // Another digest or size than the manifest says. Whose fault it is cannot be
                    // told, so nothing of it is kept.
                    self.session.abort(&blob.digest).await?;
                    senders.distrust();
                    wrong += 1;
                    if wrong == SENDERS_MAX {
                        let name = format!("{}/{}", repository.registry(), repository.name());
                        return Ok(Err(Failure::Wrong(name, error.to_string())));
                    }
                }
                Err(WriteError::Call(error)) if error.is_locked() && stalled < STALLED_MAX => {
                    if self.session.wait_for_other(&blob.digest).await? {
                        return Ok(Ok(()));
                    }
                    stalled += 1;
                }
                Err(WriteError::Call(error)) => return Err(error.into()),
            }
        }
    }
}

/// Why a repository did not deliver.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Registry(RegistryError),
    #[error("{0} sends other bytes than those of the digest: {1}")]
    Wrong(String, String),
}

type Pieces = stream::BoxStream<'static, Result<Bytes, RegistryError>>;

/// The bytes of `blob` from `there` on, and who sends them.
async fn rest(
    repository: &Repository,
    blob: &Descriptor,
    there: u64,
) -> Result<(Pieces, Senders), RegistryError> {
    if there >= blob.size {
        // All of it came before; the digest decides.
        return Ok((stream::empty().boxed(), Senders::default()));
    }
    let body = repository.blob_from(&blob.digest, there).await?;
    let senders = body.senders();
    Ok((body.boxed(), senders))
}

/// Shows how far a blob has come: on a terminal now and then, elsewhere once at the end.
struct Progress {
    name: String,
    done: u64,
    total: u64,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    fn new(blob: &Descriptor, done: u64) -> Self {
        Self {
            name: blob.digest.to_string(),
            done,
            total: blob.size,
            shown: None,
            terminal: std::io::stderr().is_terminal(),
        }
    }

    fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let complete = self.done >= self.total;
        let due = self.shown.is_none_or(|at| at.elapsed() >= SHOW_EVERY);
        if complete || (self.terminal && due) {
            self.shown = Some(Instant::now());
            self.show(complete);
        }
    }

    fn show(&self, complete: bool) {
        let (done, total) = (self.done as f64 / 1e6, self.total as f64 / 1e6);
        let (begin, end) = match (self.terminal, complete) {
            (true, false) => ("\r", ""),
            (true, true) => ("\r", "\n"),
            (false, _) => ("", "\n"),
        };
        let text = format!("{begin}{}: {done:.1} of {total:.1} MB{end}", self.name);
        // Nobody to show it to is no reason to stop.
        drop(std::io::stderr().write_all(text.as_bytes()));
    }
}
