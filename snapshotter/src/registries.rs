//! Clients for the registries layers come from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use larder_registry::{Client, ClientError, ClientOptions, Reference, Repository};

use crate::config::RegistryConfig;
use crate::store::Origin;

/// Where containerd's mirrors and certificates are, if the configuration names no other place.
const HOSTS_DIR: &str = "/etc/containerd/certs.d";

/// Two clients that differ in the scheme: most registries want HTTPS, some listed ones do not.
#[derive(Debug, Clone)]
pub struct Registries {
    usual: Client,
    plain: Client,
    plain_hosts: Arc<RwLock<BTreeSet<String>>>,
}

impl Registries {
    /// Reads the files the configuration names; talks to nobody yet.
    pub fn new(config: &RegistryConfig) -> Result<Self, ClientError> {
        let default = || Some(PathBuf::from(HOSTS_DIR)).filter(|path| Path::new(path).is_dir());
        let options = ClientOptions {
            authfile: config.authfile.clone(),
            hosts_dir: config.hosts_dir.clone().or_else(default),
            extra_ca: config.extra_ca.clone(),
            ..ClientOptions::default()
        };
        Ok(Self {
            usual: Client::new(options.clone())?,
            plain: Client::new(ClientOptions {
                plain_http: true,
                ..options
            })?,
            plain_hosts: Arc::new(RwLock::new(config.plain_http.iter().cloned().collect())),
        })
    }

    /// The repository of an image; `plain_http` as the command line says.
    ///
    /// A host that was once asked for by plain HTTP is from then on, until the process ends: the
    /// layers of that image are fetched long after the command that named it.
    pub fn repository(&self, image: &Reference, plain_http: bool) -> Repository {
        let host = image.registry();
        if plain_http && let Ok(mut hosts) = self.plain_hosts.write() {
            hosts.insert(host.to_owned());
        }
        let plain = plain_http || self.is_plain(host);
        let client = if plain { &self.plain } else { &self.usual };
        client.repository(image)
    }

    fn is_plain(&self, host: &str) -> bool {
        let known = |hosts: RwLockReadGuard<'_, BTreeSet<String>>| hosts.contains(host);
        self.plain_hosts.read().is_ok_and(known)
    }

    /// The repository of an origin; nothing if its text is not one we can name.
    pub fn origin(&self, origin: &Origin) -> Option<Repository> {
        let text = format!("{}/{}", origin.host, origin.repository);
        let image: Reference = text.parse().ok()?;
        // A host without dot or port would be taken for a path on Docker Hub.
        (image.registry() == origin.host).then(|| self.repository(&image, false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layers of an image that was mounted with `--plain-http` come by plain HTTP too.
    #[test]
    fn plain_http_on_request_holds_for_the_layers_fetched_later() {
        let config = crate::config::Config::load(None, &crate::config::Overrides::default());
        let registries = Registries::new(&config.unwrap().registry).unwrap();
        let image: Reference = "registry.example:5000/app:1".parse().unwrap();
        assert!(!registries.is_plain("registry.example:5000"));
        drop(registries.repository(&image, true));
        assert!(registries.is_plain("registry.example:5000"));
        assert!(!registries.is_plain("other.example:5000"));
    }
}
