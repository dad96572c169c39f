//! Clients for the registries layers come from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder_registry::{
    Client, ClientError, ClientOptions, HOSTS_DIR, Reference, Repository, RequestCounts,
    RetryPolicy,
};

use crate::config::RegistryConfig;
use crate::store::Origin;

/// How often the data plane's client tries one call. Prepare has two seconds, and then has to say
/// what was wrong; reads are repeated by the fetcher, to which every attempt here is one of many.
const LAYER_RETRIES: RetryPolicy = RetryPolicy {
    attempts_max: 3,
    delay_min: Duration::from_millis(150),
    delay_max: Duration::from_secs(1),
};

/// Directories of `hosts_dir` that are looked at, more than anybody has.
const HOSTS_MAX: usize = 1000;

/// A registry that has no directory of its own there, and so has the default.
const NOBODY: &str = "registry.invalid";

/// Two clients that differ in the scheme: most registries want HTTPS, some listed ones do not.
#[derive(Debug, Clone)]
pub struct Registries {
    usual: Client,
    plain: Client,
    plain_hosts: Arc<BTreeSet<String>>,
    counts: Arc<RequestCounts>,
    hosts_dir: Option<PathBuf>,
}

impl Registries {
    /// For the layers of a data plane; see [`Registries::new`].
    pub fn for_layers(config: &RegistryConfig) -> Result<Self, ClientError> {
        Self::with(config, LAYER_RETRIES)
    }

    /// For commands, which wait longer for a registry that is busy.
    pub fn new(config: &RegistryConfig) -> Result<Self, ClientError> {
        Self::with(config, RetryPolicy::default())
    }

    /// Reads the files the configuration names; talks to nobody yet.
    fn with(config: &RegistryConfig, retry: RetryPolicy) -> Result<Self, ClientError> {
        let default = || Some(PathBuf::from(HOSTS_DIR)).filter(|path| Path::new(path).is_dir());
        let options = ClientOptions {
            authfile: config.authfile.clone(),
            hosts_dir: config.hosts_dir.clone().or_else(default),
            extra_ca: config.extra_ca.clone(),
            known_ca: config.known_ca.clone(),
            unchecked: config.unchecked,
            retry,
            ..ClientOptions::default()
        };
        let counts = Arc::clone(&options.counts);
        Ok(Self {
            counts,
            hosts_dir: options.hosts_dir.clone(),
            usual: Client::new(options.clone())?,
            plain: Client::new(ClientOptions {
                plain_http: true,
                ..options
            })?,
            plain_hosts: Arc::new(config.plain_http.iter().cloned().collect()),
        })
    }

    /// What both clients count.
    pub fn counts(&self) -> &Arc<RequestCounts> {
        &self.counts
    }

    /// The repository of an image; `plain_http` as the command line says.
    pub fn repository(&self, image: &Reference, plain_http: bool) -> Repository {
        let client = if self.is_plain(image.registry(), plain_http) {
            &self.plain
        } else {
            &self.usual
        };
        client.repository(image)
    }

    /// Whether what is configured for the registry of `image` can be used; talks to nobody.
    pub async fn check(&self, image: &Reference) -> Result<(), ClientError> {
        self.usual.check(image).await
    }

    /// What cannot be used of the `hosts.toml` of any registry that has one; talks to nobody.
    pub async fn check_hosts(&self) -> Vec<ClientError> {
        let entries = self.hosts_dir.iter().filter_map(|dir| dir.read_dir().ok());
        let names = entries.flatten().flatten().map(|entry| entry.file_name());
        let mut names: Vec<_> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        let mut wrong = Vec::new();
        for name in names.iter().take(HOSTS_MAX) {
            let registry = match name
                .strip_suffix('_')
                .and_then(|name| name.rsplit_once('_'))
            {
                _ if name == "_default" => NOBODY.to_owned(),
                Some((host, port)) => format!("{host}:{port}"),
                None => name.clone(),
            };
            // What is called otherwise is of no registry that an image can name.
            if let Ok(image) = format!("{registry}/image").parse() {
                wrong.extend(self.check(&image).await.err());
            }
        }
        wrong
    }

    fn is_plain(&self, host: &str, asked_for: bool) -> bool {
        asked_for || self.plain_hosts.contains(host)
    }

    /// The repository of an origin; nothing if its text is not one we can name.
    pub fn origin(&self, origin: &Origin) -> Option<Repository> {
        let text = format!("{}/{}", origin.host, origin.repository);
        let image: Reference = text.parse().ok()?;
        // A host without dot or port would be taken for a path on Docker Hub.
        (image.registry() == origin.host).then(|| self.repository(&image, origin.plain_http))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_test_support::registry::FakeRegistry;

    fn registries(plain_http: Vec<String>) -> Registries {
        let config = RegistryConfig {
            plain_http,
            ..RegistryConfig::default()
        };
        Registries::for_layers(&config).unwrap()
    }

    /// Promise: who asked for plain HTTP once, for one image, has it for the layers of that image,
    /// also after a restart without configuration; no other image has.
    #[tokio::test]
    async fn plain_http_on_request_is_kept_with_the_layer() {
        let registry = FakeRegistry::start().await;
        let digest = registry.push_blob("bytes");
        // A name for loopback that is not taken for loopback: plain HTTP has to be asked for.
        let host = format!("0.0.0.0:{}", registry.address().port());
        let origin = |plain_http| Origin {
            host: host.clone(),
            repository: "team/app".into(),
            plain_http,
        };
        let kept = serde_json::to_string(&origin(true)).unwrap();
        let again: Origin = serde_json::from_str(&kept).unwrap();
        let registries = registries(Vec::new());
        let asked = registries.origin(&again).unwrap();
        assert_eq!(asked.blob_range(&digest, 0..5).await.unwrap(), "bytes");
        let other = registries.origin(&origin(false)).unwrap();
        assert!(other.blob_range(&digest, 0..5).await.is_err());
    }

    #[test]
    fn records_of_earlier_builds_mean_https() {
        let old = r#"{"host":"h:5000","repository":"r"}"#;
        let origin: Origin = serde_json::from_str(old).unwrap();
        assert!(!origin.plain_http);
        assert_eq!(serde_json::to_string(&origin).unwrap(), old);
        let listed = registries(vec!["h:5000".into()]);
        assert!(listed.is_plain("h:5000", origin.plain_http));
        assert!(!listed.is_plain("other:5000", false));
    }

    /// Promise: each `hosts.toml` that cannot be used is told, whatever its registry is called.
    #[tokio::test]
    async fn the_hosts_files_of_all_registries_are_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let bad = ["_default", "r.test", "r.test_5000_", "s.test:5000"];
        for name in bad.into_iter().chain(["good.test", "no registry"]) {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            let server = if name == "good.test" { "https" } else { "ftp" };
            let text = format!("server = \"{server}://x.test\"\n");
            std::fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
        }
        let config = RegistryConfig {
            hosts_dir: Some(dir.path().into()),
            ..RegistryConfig::default()
        };
        let wrong = Registries::for_layers(&config).unwrap().check_hosts().await;
        let told: Vec<_> = wrong.iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), bad.len(), "{told:?}");
        for (name, told) in bad.into_iter().zip(&told) {
            assert!(
                told.contains(&format!("/{name}/hosts.toml, line 1: server")),
                "{told}"
            );
        }
    }

    /// Promise: a registry whose name does not resolve is named, within Prepare's two seconds.
    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_told_in_time() {
        let registries = registries(Vec::new());
        let origin = Origin {
            host: "registry.invalid".into(),
            repository: "team/app".into(),
            plain_http: false,
        };
        let repository = registries.origin(&origin).unwrap();
        let begun = std::time::Instant::now();
        let digest = larder_proto::digest::Digest::of(b"");
        let error = repository.blob_range(&digest, 0..5).await.unwrap_err();
        // Two seconds, on a machine that has time.
        assert!(begun.elapsed() < Duration::from_secs(10), "{error}");
        let text = error.to_string();
        assert!(text.contains("registry.invalid"), "{text}");
        assert!(text.contains("dns error"), "{text}");
    }
}
