//! A registry's repository as a source.

use std::ops::Range;

use larder_proto::digest::Digest;
use larder_registry::{Origin, RegistryError, Repository};

use super::{Answer, Arrivals, BoxFuture, Delivery, FailureKind, Source, SourceFailure};

/// One blob of one repository.
#[derive(Debug)]
pub struct RegistrySource {
    repository: Repository,
    blob: Digest,
    name: String,
}

impl RegistrySource {
    /// The blob `blob` of `repository`; its mirrors and credentials are the client's business.
    pub fn new(repository: Repository, blob: Digest) -> Self {
        let name = format!("{}/{}", repository.registry(), repository.name());
        Self {
            repository,
            blob,
            name,
        }
    }
}

impl Source for RegistrySource {
    fn name(&self) -> &str {
        &self.name
    }

    fn trouble(&self) -> Option<String> {
        self.repository.trouble()
    }

    fn get<'a>(&'a self, range: Range<u64>, arrivals: &'a dyn Arrivals) -> BoxFuture<'a, Answer> {
        Box::pin(async move {
            let arrivals = Watched(arrivals);
            let asked = self
                .repository
                .blob_range_from(&self.blob, range, &arrivals);
            match asked.await {
                Ok((bytes, origin)) => Answer::Bytes(Delivery {
                    bytes,
                    origin: Some(origin),
                }),
                Err(error) if error.is_absent_everywhere() => Answer::Miss,
                Err(error) => Answer::Failed(SourceFailure {
                    retry_after: error.retry_after(),
                    kind: kind(&error),
                    reason: error.to_string(),
                }),
            }
        })
    }
}

/// Shows to the data plane what the registry client has.
struct Watched<'a>(&'a dyn Arrivals);

impl larder_registry::Arrivals for Watched<'_> {
    fn arrived(&self, so_far: &[u8], origin: &Origin) {
        self.0.arrived(so_far, Some(origin));
    }
}

fn kind(error: &RegistryError) -> FailureKind {
    if error.is_refused() {
        FailureKind::Refused
    } else if error.is_not_found() {
        FailureKind::Absent
    } else if error.is_forbidden() || error.is_unauthorized() {
        FailureKind::Forbidden
    } else {
        FailureKind::Passing
    }
}
