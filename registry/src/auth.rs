//! Logging in: one session for each registry, repository and kind of access.
//!
//! A session is begun by the registry's first 401, or by what that said of the token server to another one, renewed shortly before its token expires and
//! on every later 401. However many requests wait for it, one of them asks the token server.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};

use crate::clock::Clock;
use crate::credentials::CredentialStore;
use crate::endpoint::Endpoint;
use crate::error::Cause;

mod challenge;
mod lookup;
mod refusal;
mod showing;
mod token;

use challenge::{Bearer, Challenge};
use lookup::Lookup;
use refusal::{Mark, Marker, Refusal};

/// Sessions kept, each about 4 KiB with its token: more than the repositories of any node. Above
/// it all are forgotten, which costs one more 401 each.
const SESSIONS_MAX: usize = 1024;

/// How long before its end a token is renewed, so that it does not expire on its way.
const SKEW: Duration = Duration::from_secs(10);

/// How long a refusal of the token server stands for those who would ask the same again: long
/// enough for a crowd, too short to be noticed by somebody who has just logged in.
const FAILURE_MEMORY: Duration = Duration::from_secs(1);

/// What a request wants to do, as far as tokens tell it apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    /// Read a repository.
    Pull,
    /// Read and write a repository.
    Push,
    /// Take away from a repository.
    Delete,
    /// Write a repository and read the blobs of another one.
    Mount {
        /// The other repository.
        from: String,
    },
}

/// The sessions of one client.
#[derive(Debug)]
pub(crate) struct Sessions {
    credentials: CredentialStore,
    clock: Arc<dyn Clock>,
    timeout: Duration,
    marker: Marker,
    known: std::sync::Mutex<HashMap<Key, Arc<Session>>>,
    /// By endpoint; as many as there are sessions at most.
    token_servers: std::sync::Mutex<HashMap<String, TokenServer>>,
}

/// Who gives out an endpoint's tokens, and what it took for one.
#[derive(Debug, Clone)]
struct TokenServer {
    bearer: Bearer,
    shown: Mark,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    base: String,
    repository: String,
    access: Access,
}

#[derive(Debug, Default)]
struct Session {
    /// Counts the times a grant was asked for, so that those who waited meanwhile can tell.
    asked: AtomicU64,
    /// The latest grant that the registry took.
    taken: AtomicU64,
    /// Held while a password is shown that the registry has not taken yet.
    showing: Arc<tokio::sync::Mutex<()>>,
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    challenge: Option<Challenge>,
    /// Whether a token was asked for before the registry said that it wants one.
    looked_ahead: bool,
    grant: Option<Grant>,
    /// These two by the clock's uptime.
    expires: Option<Duration>,
    failure: Option<(Duration, Cause)>,
    refusal: Option<Refusal>,
}

/// A header that lets a request through, until the registry says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    /// The `Authorization` header; marked sensitive, so it does not print.
    pub(crate) header: HeaderValue,
    generation: u64,
    /// Set if the header is the credentials themselves, which cannot be renewed.
    shows: Option<Mark>,
}

impl Sessions {
    pub(crate) fn new(
        credentials: CredentialStore,
        clock: Arc<dyn Clock>,
        timeout: Duration,
    ) -> Self {
        Self {
            credentials,
            clock,
            timeout,
            marker: Marker::default(),
            known: std::sync::Mutex::default(),
            token_servers: std::sync::Mutex::default(),
        }
    }

    fn remember(&self, endpoint: &Endpoint, known: TokenServer) {
        let servers = self.token_servers.lock();
        let mut servers = servers.unwrap_or_else(PoisonError::into_inner);
        if servers.len() >= SESSIONS_MAX {
            servers.clear();
        }
        servers.insert(endpoint.base.to_string(), known);
    }

    fn token_server(&self, endpoint: &Endpoint) -> Option<TokenServer> {
        let servers = self.token_servers.lock();
        let servers = servers.unwrap_or_else(PoisonError::into_inner);
        servers.get(endpoint.base.as_str()).cloned()
    }

    fn session(&self, endpoint: &Endpoint, repository: &str, access: &Access) -> Arc<Session> {
        let key = Key {
            base: endpoint.base.to_string(),
            repository: repository.into(),
            access: access.clone(),
        };
        let mut sessions = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS_MAX && !sessions.contains_key(&key) {
            sessions.clear();
        }
        Arc::clone(sessions.entry(key).or_default())
    }

    /// The grant to send along, if the registry is known to want one.
    pub(crate) async fn grant(
        &self,
        endpoint: &Endpoint,
        repository: &str,
        access: &Access,
    ) -> Result<Option<Grant>, Cause> {
        let session = self.session(endpoint, repository, access);
        let asked = session.asked.load(Ordering::Acquire);
        let mut state = session.state.lock().await;
        let lookup = Lookup {
            sessions: self,
            endpoint,
            repository,
            access,
        };
        let expired = state.expires.is_some_and(|end| end <= self.clock.uptime());
        if state.grant.is_none() {
            if *access == Access::Pull
                && let Some(grant) = lookup.ahead(&session, &mut state).await
            {
                return Ok(Some(grant));
            }
            return lookup.still_welcome(&state).await.map(|()| None);
        }
        if !expired {
            return Ok(state.grant.clone());
        }
        if let Some(failure) = self.shared_failure(&session, asked, &state) {
            return Err(failure);
        }
        lookup.renew(&session, &mut state).await.map(Some)
    }

    /// The failure of somebody else's attempt that is also ours: of one we waited for, or of one
    /// that will not end otherwise so soon.
    fn shared_failure(&self, session: &Session, asked: u64, state: &State) -> Option<Cause> {
        let (at, cause) = state.failure.as_ref()?;
        let age = self.clock.uptime().saturating_sub(*at);
        let waited = session.asked.load(Ordering::Acquire) != asked;
        (age < FAILURE_MEMORY && (waited || !cause.is_transient())).then(|| cause.clone())
    }

    /// A better grant after a 401 on a request that was sent with `used`.
    pub(crate) async fn challenged(
        &self,
        endpoint: &Endpoint,
        repository: &str,
        access: &Access,
        used: Option<&Grant>,
        headers: &HeaderMap,
    ) -> Result<Grant, Cause> {
        let session = self.session(endpoint, repository, access);
        let asked = session.asked.load(Ordering::Acquire);
        let mut state = session.state.lock().await;
        let generation = |grant: Option<&Grant>| grant.map_or(0, |grant| grant.generation);
        if let Some(grant) = &state.grant
            && grant.generation > generation(used)
        {
            return Ok(grant.clone());
        }
        if let Some(failure) = self.shared_failure(&session, asked, &state) {
            return Err(failure);
        }
        let challenge = Challenge::read(headers, &endpoint.host)?;
        state.challenge = Some(challenge);
        let lookup = Lookup {
            sessions: self,
            endpoint,
            repository,
            access,
        };
        let grant = lookup.renew(&session, &mut state).await?;
        // Only a token can be better than the last; the same password will be refused again.
        if used.is_some_and(|used| used.header == grant.header) {
            return Err(state.refuse(&grant, self.clock.uptime(), unauthorized(endpoint, "")));
        }
        Ok(grant)
    }
}

impl State {
    /// Remembers that the registry refused what `grant` shows.
    fn refuse(&mut self, grant: &Grant, now: Duration, cause: Cause) -> Cause {
        let Some(shown) = grant.shows else {
            return cause;
        };
        let cause = lasting(cause);
        self.grant = None;
        self.refusal = Some(Refusal::new(shown, now, cause.clone()));
        cause
    }
}

/// The cause, if it is a refusal, as one of the credentials themselves.
fn lasting(cause: Cause) -> Cause {
    match cause {
        Cause::Unauthorized { host, detail, .. } => Cause::Unauthorized {
            host,
            detail,
            refused: true,
        },
        other => other,
    }
}

/// The error that tells people to log in.
pub(crate) fn unauthorized(endpoint: &Endpoint, detail: &str) -> Cause {
    Cause::Unauthorized {
        host: endpoint.host.clone(),
        detail: detail.into(),
        refused: false,
    }
}

/// The parsers of this module, for [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    use super::{Access, Challenge, HeaderMap, token};

    pub(crate) fn challenge(headers: &HeaderMap, len: usize) {
        if let Ok(Challenge::Bearer(bearer)) = Challenge::read(headers, "r.io") {
            assert!(matches!(bearer.realm.scheme(), "http" | "https"));
            assert!(bearer.scopes("team/app", &Access::Push).len() <= 1 + len);
        }
    }

    pub(crate) fn token(bytes: &[u8]) -> Result<(), String> {
        let read = token::parse(bytes, "r.io");
        read.map(drop).map_err(|cause| cause.to_string())
    }
}
