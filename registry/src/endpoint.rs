//! One address that answers for a registry: the registry itself, or a mirror of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::HeaderMap;
use url::Url;

use crate::clock::Clock;
use crate::counts::RequestCounts;
use crate::error::Cause;
use crate::options::Timeouts;
use crate::transport::Transport;

/// How long a mirror that failed is passed over: one slow read in this time, not one in each.
const PASS_OVER: Duration = Duration::from_secs(30);

/// What an endpoint is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// Content by its digest.
    pub(crate) pull: bool,
    /// What a tag means.
    pub(crate) resolve: bool,
}

/// One address that answers for a registry.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// The API's root with a slash at its end, such as `https://registry-1.docker.io/v2/`.
    pub(crate) base: Url,
    /// The name to log in to and to name in errors.
    pub(crate) host: String,
    /// The registry a mirror is asked for, its `ns` parameter; `None` for the registry itself.
    pub(crate) namespace: Option<String>,
    /// Headers that hosts.toml adds.
    pub(crate) headers: HeaderMap,
    pub(crate) capabilities: Capabilities,
    pub(crate) transport: Transport,
    pub(crate) timeouts: Timeouts,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) counts: Arc<RequestCounts>,
    pub(crate) passed_over_until: Mutex<Option<Duration>>,
}

impl Endpoint {
    /// The URL of `path` below a repository; both hold only characters that need no escape.
    pub(crate) fn url(&self, repository: &str, path: &str) -> Result<Url, Cause> {
        let mut url = self
            .base
            .join(&format!("{repository}/{path}"))
            .map_err(|error| {
                Cause::Local(format!("cannot address {path} at {}: {error}", self.host))
            })?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// Until when the endpoint is passed over; `None` if it is in good health.
    pub(crate) fn passed_over(&self) -> Option<Duration> {
        let until = *self
            .passed_over_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        until.filter(|until| self.clock.uptime() < *until)
    }

    /// Passes the endpoint over for a while.
    pub(crate) fn pass_over(&self) {
        let until = self.clock.uptime() + PASS_OVER;
        *self
            .passed_over_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(until);
    }
}
