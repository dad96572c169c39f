//! What is configured for each registry's host.

use std::sync::{Arc, Mutex};

use reqwest::header::HeaderMap;
use url::Url;

use crate::endpoint::{Capabilities, Endpoint};
use crate::options::ClientOptions;
use crate::plan::Plan;
use crate::reference::Reference;
use crate::retry::Budget;
use crate::transport::{Transport, Trust, is_loopback, read_pem};

/// The configuration of all hosts.
#[derive(Debug)]
pub(crate) struct Hosts {
    options: ClientOptions,
    authorities: Vec<Vec<u8>>,
}

impl Hosts {
    pub(crate) fn new(options: &ClientOptions) -> Result<Self, String> {
        let authorities = options
            .extra_ca
            .iter()
            .map(read_pem)
            .collect::<Result<_, _>>()?;
        Ok(Self {
            options: options.clone(),
            authorities,
        })
    }

    /// The endpoints of `registry`.
    pub(crate) fn plan(&self, registry: &str) -> Result<Plan, String> {
        let budget = Arc::new(Budget::new(&*self.options.clock));
        let host = Reference::api_host(registry);
        let wrong = |error| format!("{registry} is no host: {error}");
        let mut base = Url::parse(&format!("https://{host}/v2/")).map_err(wrong)?;
        if self.options.plain_http || is_loopback(&base) {
            base = Url::parse(&format!("http://{host}/v2/")).map_err(wrong)?;
        }
        let trust = Trust {
            authorities: self.authorities.clone(),
            ..Trust::default()
        };
        let server = Endpoint {
            base,
            host: registry.into(),
            namespace: None,
            headers: HeaderMap::new(),
            capabilities: Capabilities {
                pull: true,
                resolve: true,
            },
            transport: Transport::new(trust, self.options.timeouts.connect),
            timeouts: self.options.timeouts.clone(),
            clock: Arc::clone(&self.options.clock),
            passed_over_until: Mutex::new(None),
        };
        Ok(Plan {
            mirrors: Vec::new(),
            server: Arc::new(server),
            budget,
        })
    }
}
