//! Redirects of reads: followed with care, and remembered until they expire.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    pub(crate) use super::expiry::life;
}

/// Redirects followed for one request: a registry, its balancer, its store, and two to spare.
const HOPS_MAX: usize = 5;

/// Targets remembered, each about 2 KiB with its signed URL: the layers of a hundred images.
const TARGETS_MAX: usize = 4096;

/// How long one reader waits for another to learn where a place leads to now; then it asks itself.
const TURN_MAX: Duration = Duration::from_secs(2);

/// The shortest life that is believed of a target that was refused: one that is refused at once was not
/// refused for its age.
const OUTLIVED_MIN: Duration = Duration::from_millis(500);

/// How long what was learned of the life of targets is believed, if nothing confirms it: perhaps they were
/// revoked once, for a reason.
const OUTLIVED_MEMORY: Duration = Duration::from_hours(1);

/// Where a blob's bytes were last found.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) url: Url,
    /// Whether the way there never left the endpoint, so that its credentials may be sent.
    pub(crate) own: bool,
    /// When it was had, and how long it may be used; by the clock's uptime.
    since: Duration,
    life: Duration,
}

impl Target {
    const fn expires(&self) -> Duration {
        self.since.saturating_add(self.life)
    }

    /// Whether it is the very same, not another one with the same address.
    fn is(&self, other: &Self) -> bool {
        self.since == other.since && self.url == other.url
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever has a signed URL can read the blob.
        write!(
            f,
            "Target({}, until {:?})",
            host_of(&self.url),
            self.expires()
        )
    }
}

/// The targets of one client.
#[derive(Debug)]
pub(crate) struct Targets {
    clock: Arc<dyn Clock>,
    known: Mutex<HashMap<Place, Known>>,
}

/// What is known of a place that redirects.
#[derive(Debug)]
struct Known {
    target: Target,
    /// Whether the target is no longer to be used.
    spent: bool,
    /// The shortest time after which a target was refused that should have lived longer, and when that
    /// was seen last.
    outlived: Option<(Duration, Duration)>,
    /// Held by who asks for the next target.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// The right to ask for the next target of a place; others wait for it.
pub(crate) type Turn = tokio::sync::OwnedMutexGuard<()>;

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
        let now = self.clock.uptime();
        let known = self.lock();
        let known = known.get(place)?;
        (!known.spent && known.target.expires() > now).then(|| known.target.clone())
    }

    /// Waits until nobody else asks where `place` leads to now. `None` for a place that is not known to
    /// redirect, which has nothing to be waited for, and where the wait would take too long.
    pub(crate) async fn turn(&self, place: &Place) -> Option<Turn> {
        let turn = self
            .lock()
            .get(place)
            .map(|known| Arc::clone(&known.turn))?;
        let turn = tokio::time::timeout(TURN_MAX, turn.lock_owned()).await;
        turn.ok()
    }

    /// Remembers a target that worked.
    pub(crate) fn remember(&self, place: Place, mut target: Target) {
        let now = self.clock.uptime();
        let mut known = self.lock();
        if let Some(before) = known.get_mut(&place) {
            before.outlived = before
                .outlived
                .filter(|(_, seen)| now.saturating_sub(*seen) < OUTLIVED_MEMORY);
            if let Some((lived, _)) = before.outlived {
                target.life = target.life.min(expiry::early(lived));
            }
            before.spent = false;
            before.target = target;
            return;
        }
        if target.expires() <= now {
            return;
        }
        if known.len() >= TARGETS_MAX {
            known.retain(|_, known| known.target.expires() > now);
        }
        if known.len() >= TARGETS_MAX {
            let soonest = known.iter().min_by_key(|(_, known)| known.target.expires());
            if let Some(place) = soonest.map(|(place, _)| place.clone()) {
                known.remove(&place);
            }
        }
        let fresh = Known {
            target,
            spent: false,
            outlived: None,
            turn: Arc::default(),
        };
        known.insert(place, fresh);
    }

    /// Notes that `target` was refused as if it had expired: those after it are used for a shorter time.
    pub(crate) fn expired(&self, place: &Place, target: &Target) {
        let now = self.clock.uptime();
        let mut known = self.lock();
        // Perhaps another reader had a better one meanwhile.
        if let Some(known) = known.get_mut(place).filter(|known| known.target.is(target)) {
            let lived = now.saturating_sub(target.since);
            known.spent = true;
            if lived >= OUTLIVED_MIN {
                let shortest = known
                    .outlived
                    .map_or(lived, |(before, _)| before.min(lived));
                known.outlived = Some((shortest, now));
            }
        }
    }

    /// No longer uses `target`, which failed.
    pub(crate) fn drop_target(&self, place: &Place, target: &Target) {
        let mut known = self.lock();
        if let Some(known) = known.get_mut(place).filter(|known| known.target.is(target)) {
            known.spent = true;
        }
    }

    /// Forgets all about a place: it answers itself, or its answers cannot be trusted.
    pub(crate) fn forget(&self, place: &Place) {
        self.lock().remove(place);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Place, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
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
        let now = exchange::sent_at(response.headers(), &*endpoint.clock);
        let life = expiry::life(&next, response.headers(), now);
        target = Some(Target {
            url: next.clone(),
            own: !call.bare,
            since: endpoint.clock.uptime(),
            life,
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
