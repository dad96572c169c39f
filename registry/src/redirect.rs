//! Redirects of reads: followed with care, and remembered until they expire.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use larder_proto::digest::Digest;
use reqwest::Response;
use reqwest::header::LOCATION;
use url::Url;

use crate::auth::Sessions;
use crate::authority::host_of;
use crate::clock::Clock;
use crate::endpoint::Endpoint;
use crate::error::Cause;
use crate::exchange::{self, Call, same_origin};

mod expiry;

/// The parser of expiries, for [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    pub(crate) use super::expiry::of as expires;
}

/// Redirects followed for one request: a registry, its balancer, its store, and two to spare.
const HOPS_MAX: usize = 5;

/// Targets remembered, each about 2 KiB with its signed URL: the layers of a hundred images.
const TARGETS_MAX: usize = 4096;

/// Where a blob's bytes were last found.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) url: Url,
    /// Whether the way there never left the endpoint, so that its credentials may be sent.
    pub(crate) own: bool,
    expires: SystemTime,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever has a signed URL can read the blob.
        write!(
            f,
            "Target({}, until {:?})",
            host_of(&self.url),
            self.expires
        )
    }
}

/// The targets of one client.
#[derive(Debug)]
pub(crate) struct Targets {
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<Place, Target>>,
}

/// A blob of a repository at one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) base: Url,
    pub(crate) repository: String,
    pub(crate) digest: Digest,
}

impl Targets {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            known: Mutex::default(),
        }
    }

    /// Where `place` leads to, if that is known and has not expired.
    pub(crate) fn get(&self, place: &Place) -> Option<Target> {
        let now = self.clock.now();
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(place)
            .filter(|target| target.expires > now)
            .cloned()
    }

    /// Remembers a target that worked.
    pub(crate) fn remember(&self, place: Place, target: Target) {
        let now = self.clock.now();
        if target.expires <= now {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= TARGETS_MAX {
            known.retain(|_, target| target.expires > now);
        }
        if known.len() >= TARGETS_MAX {
            let soonest = known.iter().min_by_key(|(_, target)| target.expires);
            if let Some(place) = soonest.map(|(place, _)| place.clone()) {
                known.remove(&place);
            }
        }
        known.insert(place, target);
    }

    /// Forgets a target that failed.
    pub(crate) fn forget(&self, place: &Place) {
        self.known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(place);
    }
}

/// Sends a read and follows where it leads. The target is `None` if it led nowhere else.
///
/// Credentials go to the endpoint alone: once the way has left it, they are not sent again, even
/// if it comes back.
pub(crate) async fn follow(
    sessions: &Sessions,
    endpoint: &Endpoint,
    repository: &str,
    mut call: Call,
) -> Result<(Response, Option<Target>), Cause> {
    let mut target = None;
    for _ in 0..=HOPS_MAX {
        let response = exchange::call(sessions, endpoint, repository, &call).await?;
        if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Ok((response, target));
        }
        let next = next_hop(&call.url, &response, endpoint)?;
        call.bare |= !same_origin(&next, &endpoint.base);
        let expires = expiry::of(&next, response.headers(), endpoint.clock.now());
        target = Some(Target {
            url: next.clone(),
            own: !call.bare,
            expires,
        });
        call.url = next;
    }
    let detail = format!("more than {HOPS_MAX} times");
    Err(Cause::Redirect {
        host: endpoint.host.clone(),
        detail,
    })
}

/// Where `response` to a request for `from` leads.
fn next_hop(from: &Url, response: &Response, endpoint: &Endpoint) -> Result<Url, Cause> {
    let wrong = |detail: String| Cause::Redirect {
        host: endpoint.host.clone(),
        detail,
    };
    let location = response
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| wrong("without saying where to".into()))?;
    let next = from
        .join(location)
        .map_err(|_| wrong("to something that is no URL".into()))?;
    if !matches!(next.scheme(), "http" | "https") {
        return Err(wrong(format!("to a URL of scheme {:?}", next.scheme())));
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        let host = host_of(&next);
        return Err(wrong(format!(
            "to {host} without TLS; not following from https to http"
        )));
    }
    if next == *from {
        return Err(wrong("to the same address again".into()));
    }
    Ok(next)
}
