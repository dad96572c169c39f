//! Showing a password that the registry has not taken yet: one request at a time, so that a crowd of
//! readers does not show a wrong one many times at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::OwnedMutexGuard;

use super::{Access, Grant, Session, Sessions};
use crate::endpoint::Endpoint;
use crate::error::Cause;

impl Sessions {
    /// Waits until nobody else shows a password that may be wrong; fails if it was refused meanwhile.
    /// What this gives is to be kept until the answer is known, and told to [`Shown::taken`] or
    /// [`Shown::refused`].
    pub(crate) async fn show<'a>(
        &'a self,
        endpoint: &Endpoint,
        repository: &str,
        access: &Access,
        grant: &'a Grant,
    ) -> Result<Option<Shown<'a>>, Cause> {
        let session = self.session(endpoint, repository, access);
        let is_taken = || session.taken.load(Ordering::Acquire) >= grant.generation;
        if grant.shows.is_none() || is_taken() {
            return Ok(None);
        }
        let turn = Arc::clone(&session.showing).lock_owned().await;
        if is_taken() {
            return Ok(None);
        }
        if let Some(shows) = grant.shows
            && let Some(refusal) = &session.state.lock().await.refusal
            && let Some(cause) = refusal.of(shows, self.clock.uptime())
        {
            return Err(cause.clone());
        }
        Ok(Some(Shown {
            sessions: self,
            session: Arc::clone(&session),
            grant,
            _turn: turn,
        }))
    }
}

/// A password on its way to a registry that has not taken it yet.
#[derive(Debug)]
pub(crate) struct Shown<'a> {
    sessions: &'a Sessions,
    session: Arc<Session>,
    grant: &'a Grant,
    _turn: OwnedMutexGuard<()>,
}

impl Shown<'_> {
    /// The registry let it through.
    pub(crate) fn taken(self) {
        let taken = &self.session.taken;
        taken.fetch_max(self.grant.generation, Ordering::AcqRel);
    }

    /// The registry did not.
    pub(crate) async fn refused(self, cause: Cause) -> Cause {
        let mut state = self.session.state.lock().await;
        state.refuse(self.grant, self.sessions.clock.uptime(), cause)
    }
}
