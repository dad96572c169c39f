//! The proxies that requests go through.

use reqwest::{ClientBuilder, NoProxy, Proxy};

use crate::secret::Secret;

/// Which proxies requests go through. None is used for this machine's loopback.
#[derive(Debug, Clone, Default)]
pub enum Proxies {
    /// Those of the environment: `HTTP_PROXY`, `HTTPS_PROXY` and `ALL_PROXY`, but not for what
    /// `NO_PROXY` lists.
    #[default]
    Environment,
    /// One for everything, but for some hosts.
    One {
        /// Its URL, which may hold a user and a password.
        url: Secret,
        /// Hosts that are asked directly, as `NO_PROXY` lists them.
        not_for: String,
    },
}

impl Proxies {
    /// Tells a client about them.
    pub(crate) fn apply(&self, builder: ClientBuilder) -> reqwest::Result<ClientBuilder> {
        match self {
            // As reqwest does by itself.
            Self::Environment => Ok(builder),
            Self::One { url, not_for } => {
                let proxy = Proxy::all(url.expose())?;
                Ok(builder.proxy(proxy.no_proxy(NoProxy::from_string(not_for))))
            }
        }
    }
}
