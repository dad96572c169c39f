//! HTTP clients with the right trust for each host.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect;
use reqwest::{Certificate, Client, Identity};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use url::Url;

use crate::bounded;
use crate::connections::{Connections, Lent};
use crate::error::Cause;
use crate::names::Resolver;
use crate::proxies::Proxies;

/// Idle connections kept for each host: as many as a start-up over a long way uses at once. To open one anew costs a round trip, and
/// several until it is as fast.
const IDLE_CONNECTIONS_MAX: usize = 32;

/// How long an idle connection is kept: less than the 60 s after which common proxies drop theirs.
const IDLE_SECONDS_MAX: u64 = 50;

/// HTTP/2 windows, bytes: 200 Mbit/s over 100 ms is 2.5 MB in flight; one slow stream must not
/// take all of its connection's window.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How often a busy HTTP/2 connection is asked whether it still lives, and for how long. One that
/// died silently would otherwise be used again by every retry.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Whom to trust, and who we are.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Trust {
    /// PEM bundles of authorities besides the system's.
    pub(crate) authorities: Vec<Vec<u8>>,
    /// PEM of our certificate and key, for hosts that ask who we are.
    pub(crate) identities: Vec<Vec<u8>>,
    /// Accept any certificate; only hosts.toml can say so.
    pub(crate) skip_verify: bool,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Private keys are among them.
        let (authorities, identities) = (self.authorities.len(), self.identities.len());
        let skip_verify = self.skip_verify;
        write!(
            f,
            "Trust({authorities} CA files, {identities} keys, skip_verify: {skip_verify})"
        )
    }
}

/// The HTTP clients for one endpoint, made when they are first needed.
#[derive(Debug)]
pub(crate) struct Transport {
    trust: Trust,
    connect_timeout: Duration,
    resolver: Resolver,
    proxies: Proxies,
    /// For the endpoint itself.
    own: Connections,
    /// For hosts the endpoint sends us to: same authorities, but never our identity, and never
    /// unverified.
    foreign: Connections,
    /// For plain HTTP: no authorities read.
    plain: Connections,
    /// For plain HTTP on this machine: no proxy either.
    local: Connections,
}

impl Transport {
    pub(crate) fn new(
        trust: Trust,
        connect_timeout: Duration,
        resolver: Resolver,
        proxies: Proxies,
    ) -> Self {
        Self {
            trust,
            connect_timeout,
            resolver,
            proxies,
            own: Connections::default(),
            foreign: Connections::default(),
            plain: Connections::default(),
            local: Connections::default(),
        }
    }

    /// The client for one request to `url`; `own` says whether that is on the endpoint itself.
    pub(crate) fn client(&self, url: &Url, own: bool) -> Result<Lent<'_>, Cause> {
        let loopback = is_loopback(url);
        let connections = match (url.scheme() == "http", loopback, own) {
            (true, true, _) => &self.local,
            (true, false, _) => &self.plain,
            (false, _, true) => &self.own,
            (false, _, false) => &self.foreign,
        };
        connections.lend(|| self.build(url, own, loopback))
    }

    fn build(&self, url: &Url, own: bool, loopback: bool) -> Result<Client, Cause> {
        let plain = url.scheme() == "http";
        let mut builder = Client::builder()
            .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(self.connect_timeout)
            .dns_resolver(Arc::new(self.resolver.clone()))
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .pool_idle_timeout(Duration::from_secs(IDLE_SECONDS_MAX))
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .tcp_nodelay(true);
        if loopback && (plain || own) {
            // As Go does: a proxy cannot reach this machine's loopback.
            builder = builder.no_proxy();
        } else {
            builder = self.proxies.apply(builder).map_err(|error| {
                Cause::Local(format!("the proxy cannot be used: {}", chain(&error)))
            })?;
        }
        if plain {
            // The system's authorities take milliseconds to read, and may not be there at all.
            builder = builder.tls_certs_only([]);
            return builder.build().map_err(|error| local(&error));
        }
        let mut authorities = Vec::new();
        for pem in &self.trust.authorities {
            let bundle = Certificate::from_pem_bundle(pem).map_err(|error| local(&error))?;
            authorities.extend(bundle);
        }
        builder = builder.tls_certs_merge(authorities);
        if own {
            for pem in &self.trust.identities {
                builder = builder.identity(Identity::from_pem(pem).map_err(|error| local(&error))?);
            }
            builder = builder.tls_danger_accept_invalid_certs(self.trust.skip_verify);
        }
        builder.build().map_err(|error| local(&error))
    }
}

/// Why no client could be made: our own certificates, or none on this machine.
fn local(error: &reqwest::Error) -> Cause {
    let chain = chain(error);
    Cause::Local(format!(
        "cannot set up TLS: {chain}; are the CA files right, and is ca-certificates installed?"
    ))
}

/// The text of an error and of everything below it, without the URL: it may be signed.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        let part = part.split(" for url (").next().unwrap_or_default();
        if !text.contains(part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(part);
        }
        next = error.source();
    }
    text
}

/// Whether `url`'s host is this machine by name or address.
pub(crate) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Longest file of certificates, bytes, which is read whole.
///
/// 1 MiB is five times the bundle of all public authorities.
pub const PEM_BYTES_MAX: u64 = 1 << 20;

/// Whether there is a certificate in the text of a PEM file.
pub fn holds_authority(pem: &[u8]) -> bool {
    CertificateDer::pem_slice_iter(pem).any(|found| found.is_ok())
}

/// Reads a PEM file of authorities. One without any would show as a certificate that nobody trusts.
pub(crate) fn read_authorities(path: &Path) -> Result<Vec<u8>, String> {
    let pem = read_pem(path)?;
    if holds_authority(&pem) {
        return Ok(pem);
    }
    Err(format!(
        "{} holds no certificate in PEM: name the file of the authority's certificate",
        path.display()
    ))
}

/// Reads a PEM file of at most [`PEM_BYTES_MAX`].
pub(crate) fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    bounded::read(path, PEM_BYTES_MAX).map_err(|e| format!("cannot read {}: {e}", path.display()))
}
