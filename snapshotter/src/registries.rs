//! Clients for the registries layers come from.

use std::path::{Path, PathBuf};

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
    plain_hosts: Vec<String>,
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
            plain_hosts: config.plain_http.clone(),
        })
    }

    /// The repository of an image; `plain_http` as the command line says.
    pub fn repository(&self, image: &Reference, plain_http: bool) -> Repository {
        let plain = plain_http || self.plain_hosts.iter().any(|host| host == image.registry());
        let client = if plain { &self.plain } else { &self.usual };
        client.repository(image)
    }

    /// The repository of an origin; nothing if its text is not one we can name.
    pub fn origin(&self, origin: &Origin) -> Option<Repository> {
        let text = format!("{}/{}", origin.host, origin.repository);
        let image: Reference = text.parse().ok()?;
        // A host without dot or port would be taken for a path on Docker Hub.
        (image.registry() == origin.host).then(|| self.repository(&image, false))
    }
}
