//! When a start is over.

use std::time::Duration;

/// How long a start may take to its first read: a kubelet prepares a container's snapshot, then its network
/// and volumes, and pulls the images of other containers of the pod before.
const FIRST_READ: Duration = Duration::from_mins(2);

/// Pause after which a start is over. Programs compute for some seconds between two reads while they start;
/// what is read after ten could have been fetched meanwhile, 250 MB of it at 200 Mbit/s, and is
/// rather the work that the container was started for.
const PAUSE: Duration = Duration::from_secs(10);

/// A start that reads for longer is none any more. As long as the completion of a layer waits at most.
const LONGEST: Duration = Duration::from_mins(5);

/// What makes a start over, as far as reads tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settling {
    /// Up to its first read, it takes at most this long.
    pub first_read: Duration,
    /// For this long, nothing was read for the first time.
    pub pause: Duration,
    /// It takes at most this long.
    pub longest: Duration,
}

impl Default for Settling {
    fn default() -> Self {
        Self {
            first_read: FIRST_READ,
            pause: PAUSE,
            longest: LONGEST,
        }
    }
}

impl Settling {
    /// When the start is over, after its beginning, unless there is another first read before.
    pub(super) fn over(&self, latest: Option<Duration>) -> Duration {
        let over = latest.map_or(self.first_read, |latest| latest + self.pause);
        over.min(self.longest)
    }
}
