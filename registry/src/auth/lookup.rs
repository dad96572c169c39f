//! Obtaining one grant: the credentials there are, shown to whoever the challenge names.

use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::header::HeaderValue;

use super::challenge::Challenge;
use super::refusal::Refusal;
use super::{
    Access, Grant, SKEW, Session, Sessions, State, TokenServer, lasting, token, unauthorized,
};
use crate::credentials::Credential;
use crate::endpoint::Endpoint;
use crate::error::Cause;

/// One repository's access, while a grant for it is being obtained.
pub(super) struct Lookup<'a> {
    pub(super) sessions: &'a Sessions,
    pub(super) endpoint: &'a Endpoint,
    pub(super) repository: &'a str,
    pub(super) access: &'a Access,
}

impl Lookup<'_> {
    /// Obtains a grant by the state's challenge and remembers the outcome, good or bad.
    pub(super) async fn renew(&self, session: &Session, state: &mut State) -> Result<Grant, Cause> {
        let generation = session.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let outcome = self.log_in(state, generation).await;
        match outcome {
            Ok((grant, expires)) => {
                state.grant = Some(grant.clone());
                state.expires = expires;
                state.failure = None;
                Ok(grant)
            }
            Err(cause) => {
                state.failure = Some((self.sessions.clock.uptime(), cause.clone()));
                Err(cause)
            }
        }
    }

    /// Shows the credentials there are now, unless they were refused a while ago.
    async fn log_in(
        &self,
        state: &mut State,
        generation: u64,
    ) -> Result<(Grant, Option<Duration>), Cause> {
        let credential = self.credential().await?;
        let shown = self.sessions.marker.of(credential.as_ref());
        let now = self.sessions.clock.uptime();
        if let Some(refusal) = &state.refusal
            && let Some(cause) = refusal.of(shown, now)
        {
            return Err(cause.clone());
        }
        state.refusal = None;
        let obtained = self.obtain(state.challenge.as_ref(), credential).await;
        if let (Ok(_), Some(Challenge::Bearer(bearer))) = (&obtained, &state.challenge)
            && let Some(bearer) = bearer.of_all(self.repository)
        {
            let known = TokenServer { bearer, shown };
            self.sessions.remember(self.endpoint, known);
        }
        // Also where there are no credentials at all: having none is refused like having wrong ones.
        let obtained = obtained.map_err(lasting);
        if let Err(cause @ Cause::Unauthorized { .. }) = &obtained {
            state.refusal = Some(Refusal::new(shown, now, cause.clone()));
            // What it was to replace is no longer good.
            state.grant = None;
        }
        let (mut header, expires) = obtained?;
        header.set_sensitive(true);
        let grant = Grant {
            header,
            generation,
            shows: expires.is_none().then_some(shown),
        };
        Ok((grant, expires))
    }

    /// A grant by what the registry said of its token server when it was asked for another repository, which
    /// saves the round trip of a 401. Only if the credentials are the same ones, which that server took: others are shown when
    /// they are asked for. If there is none to be had, the registry itself is asked, which may want no token here.
    pub(super) async fn ahead(&self, session: &Session, state: &mut State) -> Option<Grant> {
        if state.challenge.is_some() || state.looked_ahead || state.refusal.is_some() {
            return None;
        }
        let known = self.sessions.token_server(self.endpoint)?;
        state.looked_ahead = true;
        let credential = self.credential().await.ok()?;
        if self.sessions.marker.of(credential.as_ref()) != known.shown {
            return None;
        }
        let challenge = Challenge::Bearer(known.bearer);
        let (mut header, expires) = self.obtain(Some(&challenge), credential).await.ok()?;
        header.set_sensitive(true);
        let grant = Grant {
            header,
            generation: session.asked.fetch_add(1, Ordering::AcqRel) + 1,
            shows: expires.is_none().then_some(known.shown),
        };
        (state.challenge, state.expires) = (Some(challenge), expires);
        state.grant = Some(grant.clone());
        Some(grant)
    }

    /// Fails if the credentials there are now were refused a while ago.
    pub(super) async fn still_welcome(&self, state: &State) -> Result<(), Cause> {
        let now = self.sessions.clock.uptime();
        let Some(refusal) = state.refusal.as_ref().filter(|one| one.stands(now)) else {
            return Ok(());
        };
        let credential = self.credential().await?;
        let shown = self.sessions.marker.of(credential.as_ref());
        refusal
            .of(shown, now)
            .map_or(Ok(()), |cause| Err(cause.clone()))
    }

    async fn credential(&self) -> Result<Option<Credential>, Cause> {
        let credentials = &self.sessions.credentials;
        let found = credentials.find(&self.endpoint.host, self.repository).await;
        found.map_err(|error| Cause::Local(error.to_string()))
    }

    async fn obtain(
        &self,
        challenge: Option<&Challenge>,
        credential: Option<Credential>,
    ) -> Result<(HeaderValue, Option<Duration>), Cause> {
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
                let token = request.send(self.endpoint, self.sessions.timeout).await;
                self.endpoint.counts.token(token.is_ok());
                let token = token?;
                let lifetime = token.lifetime.saturating_sub(SKEW.min(token.lifetime / 4));
                Ok((token.header, Some(self.sessions.clock.uptime() + lifetime)))
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
