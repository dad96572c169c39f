//! The client, and the repositories it opens.

use std::sync::{Arc, Mutex, PoisonError};

use larder_proto::digest::Digest;
use reqwest::Response;
use reqwest::header::HeaderMap;

use crate::attempts::{Attempts, Purpose};
use crate::auth::{Access, Sessions};
use crate::credentials::CredentialStore;
use crate::endpoint::Endpoint;
use crate::error::{Cause, RegistryError};
use crate::exchange::{self, Call, Payload};
use crate::hosts::Hosts;
use crate::names::Resolver;
use crate::options::ClientOptions;
use crate::plan::{Plan, Plans};
use crate::redirect::{self, Target, Targets};
use crate::reference::{Reference, is_tag};

/// A client that cannot be made from its options.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up the registry client: {0}")]
pub struct ClientError(pub(crate) String);

/// Talks to registries. Clones share connections, tokens and what is known of redirects.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

/// What all repositories of a client share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: ClientOptions,
    pub(crate) sessions: Sessions,
    pub(crate) targets: Targets,
    plans: Plans,
}

impl Client {
    /// A client for all registries. Reads the files the options name, and nothing else yet.
    pub fn new(options: ClientOptions) -> Result<Self, ClientError> {
        // reqwest takes the process's provider; if there is one already, it is as good as ours.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let credentials =
            CredentialStore::new(options.authfile.as_deref(), |name| std::env::var_os(name));
        let clock = Arc::clone(&options.clock);
        let targets = Targets::new(Arc::clone(&clock));
        let sessions = Sessions::new(credentials, clock, options.timeouts.answer);
        let hosts = Hosts::new(&options).map_err(ClientError)?;
        let plans = Plans::new(hosts, Resolver::new(Arc::clone(&options.names)));
        Ok(Self(Arc::new(Shared {
            options,
            sessions,
            targets,
            plans,
        })))
    }

    /// Whether what is configured for the registry of `reference` can be used. Reads its files, and
    /// talks to nobody.
    pub async fn check(&self, reference: &Reference) -> Result<(), ClientError> {
        let plan = self.0.plans.get(reference.registry(), &self.0.options);
        let unusable = |cause: Cause| ClientError(cause.to_string());
        plan.await.map(drop).map_err(unusable)
    }

    /// The repository that `reference` is in.
    pub fn repository(&self, reference: &Reference) -> Repository {
        Repository(Arc::new(Inner {
            shared: Arc::clone(&self.0),
            registry: reference.registry().into(),
            name: reference.repository().into(),
            trouble: Mutex::default(),
        }))
    }
}

/// A repository of a registry: manifests, blobs, uploads.
///
/// Every call logs in, follows redirects, tries mirrors, and repeats what may succeed, within
/// [`crate::RetryPolicy`] and [`crate::Timeouts`]. Dropping its future cancels it.
#[derive(Debug, Clone)]
pub struct Repository(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    registry: String,
    name: String,
    /// What the latest attempts failed with, host by host, since the last one that did not.
    trouble: Mutex<Option<String>>,
}

impl Repository {
    /// The registry, `host` or `host:port`; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.0.registry
    }

    /// The repository's path in the registry.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What the latest attempt failed with, unless one succeeded since. Who stops waiting for a call
    /// learns from it why the call took so long.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.0.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn note_trouble(&self, told: Option<String>) {
        let mut trouble = self
            .0
            .trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *trouble = told;
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }

    pub(crate) async fn plan(&self) -> Result<Arc<Plan>, Cause> {
        self.shared()
            .plans
            .get(self.registry(), &self.shared().options)
            .await
    }

    pub(crate) fn error(&self, doing: &str, cause: Cause) -> RegistryError {
        RegistryError::new(self.registry(), self.name(), doing, cause)
    }

    pub(crate) async fn attempts(
        &self,
        purpose: Purpose,
        doing: String,
        bytes: u64,
    ) -> Result<Attempts, RegistryError> {
        let time = self.shared().options.timeouts.deadline(bytes);
        Attempts::begin(self, purpose, doing, time).await
    }

    /// A call without body on `path` below this repository.
    pub(crate) fn call(
        &self,
        endpoint: &Endpoint,
        method: reqwest::Method,
        path: &str,
        access: Access,
    ) -> Result<Call, Cause> {
        Ok(Call {
            method,
            url: endpoint.url(self.name(), path)?,
            headers: HeaderMap::new(),
            payload: Payload::Empty,
            access,
            timeout: endpoint.timeouts.answer,
            bare: false,
        })
    }

    /// Sends `call`, logging in where asked.
    pub(crate) async fn send(&self, endpoint: &Endpoint, call: &Call) -> Result<Response, Cause> {
        // Boxed, because every call has one in it and the others need not carry its size.
        Box::pin(exchange::call(
            &self.shared().sessions,
            endpoint,
            self.name(),
            call,
        ))
        .await
    }

    /// Sends a read and follows where it leads; see [`redirect::follow`].
    pub(crate) async fn read(
        &self,
        endpoint: &Endpoint,
        call: Call,
    ) -> Result<(Response, Option<Target>), Cause> {
        Box::pin(redirect::follow(
            &self.shared().sessions,
            endpoint,
            self.name(),
            call,
        ))
        .await
    }

    /// The cause that `response`, whose status is no success, stands for.
    pub(crate) async fn refusal(&self, endpoint: &Endpoint, response: Response) -> Cause {
        exchange::refusal(response, &endpoint.host, &*endpoint.clock).await
    }
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Identifier {
    Tag(String),
    Digest(Digest),
}

impl Identifier {
    pub(crate) fn parse(text: &str) -> Result<Self, Cause> {
        if is_tag(text) {
            return Ok(Self::Tag(text.into()));
        }
        let refuse = |_| Cause::Local(format!("{text:?} is neither a tag nor a sha256 digest"));
        text.parse().map(Self::Digest).map_err(refuse)
    }

    pub(crate) const fn purpose(&self) -> Purpose {
        match self {
            Self::Tag(_) => Purpose::Resolve,
            Self::Digest(_) => Purpose::Pull,
        }
    }

    pub(crate) fn path(&self) -> String {
        match self {
            Self::Tag(tag) => format!("manifests/{tag}"),
            Self::Digest(digest) => format!("manifests/{digest}"),
        }
    }
}
