//! What is configured for each registry's host: containerd's `certs.d`, and our own options.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::header::HeaderMap;
use url::Url;

use crate::endpoint::{Capabilities, Endpoint};
use crate::names::Resolver;
use crate::options::ClientOptions;
use crate::plan::Plan;
use crate::reference::Reference;
use crate::retry::Budget;
use crate::transport::{Transport, Trust, is_loopback, read_authorities};

mod file;
mod trust;

use file::{HostsFile, Section, Unusable};

/// All that is configured, read from its files when asked.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    plain_http: bool,
    dir: Option<PathBuf>,
    extra_ca: Vec<PathBuf>,
    known_ca: Arc<BTreeMap<PathBuf, Vec<u8>>>,
    connect: Duration,
}

/// The endpoints of one registry as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setup {
    /// In order.
    mirrors: Vec<EndpointSetup>,
    /// The registry itself.
    server: EndpointSetup,
}

/// One endpoint as configured; equal ones need not be made anew.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EndpointSetup {
    base: Url,
    host: String,
    namespace: Option<String>,
    headers: HeaderMap,
    capabilities: Capabilities,
    trust: Trust,
    connect: Duration,
}

impl Hosts {
    /// Checks the files that were named; what `certs.d` holds is read when a registry is asked.
    pub(crate) fn new(options: &ClientOptions) -> Result<Self, String> {
        let hosts = Self {
            plain_http: options.plain_http,
            dir: options.hosts_dir.clone(),
            extra_ca: options.extra_ca.clone(),
            known_ca: Arc::new(options.known_ca.clone()),
            connect: options.timeouts.connect,
        };
        if !options.unchecked {
            hosts.extra_authorities()?;
        }
        Ok(hosts)
    }

    fn extra_authorities(&self) -> Result<Vec<Vec<u8>>, String> {
        let read = |path: &PathBuf| {
            let known = |wrong| self.known_ca.get(path).cloned().ok_or(wrong);
            read_authorities(path).or_else(known)
        };
        self.extra_ca.iter().map(read).collect()
    }

    /// Reads what is configured for `registry` now.
    pub(crate) fn read(&self, registry: &str) -> Result<Setup, String> {
        let Some(dir) = self
            .dir
            .as_deref()
            .and_then(|root| file::directory(root, registry))
        else {
            let server = self.server(registry, None, &Section::default(), None);
            return server.map(Setup::alone).map_err(|wrong| wrong.reason);
        };
        let Some(file) = HostsFile::read(&dir)? else {
            // Docker's older layout: certificates only.
            let trust = trust::from_directory(&dir)?;
            let server = self.server(registry, None, &Section::default(), Some(trust));
            return server.map(Setup::alone).map_err(|wrong| wrong.reason);
        };
        let mut mirrors = Vec::new();
        for (address, section) in &file.hosts {
            let mirror = trust::from_section(&dir, section)
                .and_then(|trust| self.endpoint(registry, address, section, trust));
            mirrors.push(mirror.map_err(|wrong| file.told(&dir, Some(address.as_str()), &wrong))?);
        }
        let told = |wrong: Unusable| file.told(&dir, None, &wrong);
        let trust = trust::from_section(&dir, &file.root).map_err(told)?;
        let says_nothing = trust == Trust::default();
        let server = file.server.as_deref();
        let server = self.server(registry, server, &file.root, Some(trust));
        let mut server = server.map_err(told)?;
        // Written once, as an entry for the server's own address, it is meant for the server.
        if let Some(own) = mirrors.iter().find(|one| one.base == server.base)
            && says_nothing
        {
            server.trust = own.trust.clone();
        }
        Ok(Setup { mirrors, server })
    }

    /// The registry itself.
    fn server(
        &self,
        registry: &str,
        address: Option<&str>,
        section: &Section,
        trust: Option<Trust>,
    ) -> Result<EndpointSetup, Unusable> {
        let trust = trust.unwrap_or_default();
        if let Some(address) = address {
            return self.endpoint(registry, address, section, trust);
        }
        let host = Reference::api_host(registry);
        let address = format!("https://{host}");
        let url = Url::parse(&address)
            .map_err(|error| Unusable::elsewhere(format!("{registry} is no host: {error}")))?;
        // Nobody sets up TLS for this machine's loopback without saying so in certs.d.
        let plain = self.plain_http || (is_loopback(&url) && trust == Trust::default());
        let address = if plain {
            format!("http://{host}")
        } else {
            address
        };
        self.endpoint(registry, &address, section, trust)
    }

    fn endpoint(
        &self,
        registry: &str,
        address: &str,
        section: &Section,
        mut trust: Trust,
    ) -> Result<EndpointSetup, Unusable> {
        let base = base(address, section.override_path).map_err(Unusable::of(file::SERVER))?;
        let authority = base.authority();
        let itself = authority == Reference::api_host(registry) || authority == registry;
        let extra = self.extra_authorities().map_err(Unusable::elsewhere)?;
        trust.authorities.extend(extra);
        Ok(EndpointSetup {
            host: if itself { registry } else { authority }.to_owned(),
            namespace: (!itself).then(|| registry.to_owned()),
            headers: section.headers()?,
            capabilities: section.capabilities(),
            trust,
            connect: section.connect()?.unwrap_or(self.connect),
            base,
        })
    }
}

impl Setup {
    const fn alone(server: EndpointSetup) -> Self {
        Self {
            mirrors: Vec::new(),
            server,
        }
    }

    /// Makes the endpoints, for a registry whose retries `budget` pays.
    pub(crate) fn plan(
        &self,
        options: &ClientOptions,
        resolver: &Resolver,
        budget: Arc<Budget>,
    ) -> Plan {
        let endpoint = |setup: &EndpointSetup| {
            Arc::new(Endpoint {
                base: setup.base.clone(),
                host: setup.host.clone(),
                namespace: setup.namespace.clone(),
                headers: setup.headers.clone(),
                capabilities: setup.capabilities,
                transport: Transport::new(
                    setup.trust.clone(),
                    setup.connect,
                    resolver.clone(),
                    options.proxies.clone(),
                ),
                timeouts: options.timeouts.clone(),
                clock: Arc::clone(&options.clock),
                counts: Arc::clone(&options.counts),
                passed_over_until: Mutex::new(None),
            })
        };
        let registry = endpoint(&self.server);
        let mirrors = self.mirrors.iter().map(endpoint);
        let endpoints = mirrors.chain([Arc::clone(&registry)]).collect();
        Plan {
            endpoints,
            registry,
            budget,
        }
    }
}

/// The API's root of an address: with a scheme, and with `/v2` unless the path is to be kept.
fn base(address: &str, keep_path: bool) -> Result<Url, String> {
    // What stands before an @ may be a password.
    let shown = file::without_password(address);
    let wrong = |error: &dyn std::fmt::Display| format!("{shown:?} is no address: {error}");
    let full = if address.contains("://") {
        address.into()
    } else {
        format!("https://{address}")
    };
    let mut url = Url::parse(&full).map_err(|error| wrong(&error))?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(wrong(&"it needs http or https and a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the address holds a password; use the credential files".into());
    }
    if url.host_str() == Some("docker.io") {
        let host = Reference::api_host("docker.io");
        url.set_host(Some(host)).map_err(|error| wrong(&error))?;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let versioned = keep_path || path.ends_with("/v2");
    url.set_path(&if versioned {
        format!("{path}/")
    } else {
        format!("{path}/v2/")
    });
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

/// The parser of hosts.toml, for [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    use super::{HostsFile, base};

    /// All that is made of the text without reading other files.
    pub(crate) fn parse(text: &str) -> Result<(), String> {
        let file = HostsFile::parse(text)?;
        assert!(file.hosts.len() <= super::file::MIRRORS_MAX);
        for (address, section) in &file.hosts {
            let _ = base(address, section.override_path);
            let _ = section.headers();
            let _ = section.connect();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
