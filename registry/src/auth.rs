//! Logging in: one session for each registry, repository and kind of access.
//!
//! A session is begun by the registry's first 401, renewed shortly before its token expires and
//! on every later 401. However many requests wait for it, one of them asks the token server.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, HeaderValue};

use crate::clock::Clock;
use crate::credentials::{Credential, CredentialStore};
use crate::endpoint::Endpoint;
use crate::error::Cause;

mod challenge;
mod token;

use challenge::Challenge;

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
    known: std::sync::Mutex<HashMap<Key, Arc<Session>>>,
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
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    challenge: Option<Challenge>,
    grant: Option<Grant>,
    expires: Option<SystemTime>,
    failure: Option<(SystemTime, Cause)>,
}

/// A header that lets a request through, until the registry says otherwise.
#[derive(Debug, Clone)]
pub(crate) struct Grant {
    /// The `Authorization` header; marked sensitive, so it does not print.
    pub(crate) header: HeaderValue,
    generation: u64,
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
            known: std::sync::Mutex::default(),
        }
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
        let expired = state.expires.is_some_and(|end| end <= self.clock.now());
        if state.grant.is_none() || !expired {
            return Ok(state.grant.clone());
        }
        if let Some(failure) = self.shared_failure(&session, asked, &state) {
            return Err(failure);
        }
        let lookup = Lookup {
            sessions: self,
            endpoint,
            repository,
            access,
        };
        lookup.renew(&session, &mut state).await.map(Some)
    }

    /// The failure of somebody else's attempt that is also ours: of one we waited for, or of one
    /// that will not end otherwise so soon.
    fn shared_failure(&self, session: &Session, asked: u64, state: &State) -> Option<Cause> {
        let (at, cause) = state.failure.as_ref()?;
        let age = self.clock.now().duration_since(*at).unwrap_or_default();
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
            return Err(unauthorized(endpoint, ""));
        }
        Ok(grant)
    }
}

/// One repository's access, while a grant for it is being obtained.
struct Lookup<'a> {
    sessions: &'a Sessions,
    endpoint: &'a Endpoint,
    repository: &'a str,
    access: &'a Access,
}

impl Lookup<'_> {
    /// Obtains a grant by the state's challenge and remembers the outcome, good or bad.
    async fn renew(&self, session: &Session, state: &mut State) -> Result<Grant, Cause> {
        let generation = session.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let outcome = self.obtain(state.challenge.as_ref()).await;
        match outcome {
            Ok((mut header, expires)) => {
                header.set_sensitive(true);
                let grant = Grant { header, generation };
                state.grant = Some(grant.clone());
                state.expires = expires;
                state.failure = None;
                Ok(grant)
            }
            Err(cause) => {
                state.failure = Some((self.sessions.clock.now(), cause.clone()));
                Err(cause)
            }
        }
    }

    async fn obtain(
        &self,
        challenge: Option<&Challenge>,
    ) -> Result<(HeaderValue, Option<SystemTime>), Cause> {
        let host = &self.endpoint.host;
        let found = self.sessions.credentials.find(host, self.repository).await;
        let credential = found.map_err(|error| Cause::Local(error.to_string()))?;
        match (challenge, credential) {
            (Some(Challenge::Bearer(_)), Some(Credential::Token(token))) => {
                Ok((token::header("Bearer ", token.expose())?, None))
            }
            (Some(Challenge::Bearer(bearer)), credential) => {
                let scopes = bearer.scopes(self.repository, self.access);
                let request = token::Request {
                    bearer,
                    scopes: &scopes,
                    credential: &credential,
                };
                let token = request.send(self.endpoint, self.sessions.timeout).await?;
                let lifetime = token.lifetime.saturating_sub(SKEW.min(token.lifetime / 4));
                Ok((token.header, Some(self.sessions.clock.now() + lifetime)))
            }
            (Some(Challenge::Basic), Some(Credential::Password { username, password })) => {
                Ok((token::basic(&username, &password)?, None))
            }
            (Some(Challenge::Basic), Some(_)) => Err(unauthorized(
                self.endpoint,
                " (it wants a password, the file has a token)",
            )),
            (_, None) => Err(unauthorized(self.endpoint, " (there are none for it)")),
            (None, Some(_)) => Err(unauthorized(self.endpoint, "")),
        }
    }
}

/// The error that tells people to log in.
pub(crate) fn unauthorized(endpoint: &Endpoint, detail: &str) -> Cause {
    Cause::Unauthorized {
        host: endpoint.host.clone(),
        detail: detail.into(),
    }
}

/// Reads a challenge, for the tests with hostile input.
#[cfg(test)]
pub(crate) fn read_challenge(headers: &HeaderMap) -> Result<(), Cause> {
    Challenge::read(headers, "r.io").map(drop)
}
