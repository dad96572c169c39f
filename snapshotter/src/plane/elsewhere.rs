//! Other repositories a layer can be fetched from, when its image's own does not deliver.

use std::fmt;
use std::sync::Arc;

use larder_fuse::{BoxFuture, Elsewhere, RegistrySource, Source};
use larder_proto::digest::Digest;

use super::Wanted;
use crate::containerd::Lookup;
use crate::registries::Registries;
use crate::store::Origin;

/// The repositories that containerd knows for one layer.
pub(super) struct KnownToContainerd {
    lookup: Arc<Lookup>,
    registries: Registries,
    namespace: String,
    blob: Digest,
    /// Where the image said that the layer is.
    own: Vec<Origin>,
}

impl fmt::Debug for KnownToContainerd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KnownToContainerd({} in {})", self.blob, self.namespace)
    }
}

impl KnownToContainerd {
    pub(super) fn new(lookup: &Arc<Lookup>, registries: &Registries, wanted: &Wanted) -> Self {
        Self {
            lookup: Arc::clone(lookup),
            registries: registries.clone(),
            namespace: wanted.namespace.clone(),
            blob: wanted.blob,
            own: wanted.origins.clone(),
        }
    }
}

impl Elsewhere for KnownToContainerd {
    fn find(&self) -> BoxFuture<'_, Vec<Arc<dyn Source>>> {
        Box::pin(async move {
            let found = self.lookup.repositories(&self.namespace, &self.blob).await;
            let found = found.unwrap_or_else(|error| {
                tracing::debug!(layer = %self.blob, %error, "no other repository is known");
                Vec::new()
            });
            let found = found.into_iter().map(|origin| with_port(origin, &self.own));
            let repositories = found.filter_map(|origin| self.registries.origin(&origin));
            repositories
                .map(|repository| Arc::new(RegistrySource::new(repository, self.blob)) as Arc<_>)
                .collect()
        })
    }
}

/// containerd's labels leave out the port; the image's own registry is known with it.
pub(crate) fn with_port(mut found: Origin, own: &[Origin]) -> Origin {
    let same = |own: &&Origin| {
        let host = own.host.rsplit_once(':').map(|(host, _)| host);
        host == Some(found.host.as_str())
    };
    if let Some(own) = own.iter().find(same) {
        found.host.clone_from(&own.host);
        found.plain_http = own.plain_http;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(host: &str) -> Origin {
        Origin {
            host: host.into(),
            repository: "base/python".into(),
            plain_http: host.contains(':'),
        }
    }

    #[test]
    fn the_port_of_the_own_registry_is_given_back() {
        let own = [origin("registry.example:5000")];
        let found = with_port(origin("registry.example"), &own);
        assert_eq!(found, origin("registry.example:5000"));
        let other = origin("other.example");
        assert_eq!(with_port(other.clone(), &own), other);
    }
}
