//! What a client can be told.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};
use crate::counts::RequestCounts;
use crate::names::{Names, SystemNames};
use crate::proxies::Proxies;
use crate::retry::RetryPolicy;

/// Where containerd's own settings per registry are: mirrors, private CAs, client certificates.
pub const HOSTS_DIR: &str = "/etc/containerd/certs.d";

/// How a [`crate::Client`] finds, trusts and waits for registries.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Speak plain HTTP to every registry that hosts.toml does not say otherwise about. Loopback
    /// registries get plain HTTP anyway, unless a certs.d directory says otherwise.
    pub plain_http: bool,
    /// The only file to take credentials from, as `--authfile` of podman and skopeo; without it
    /// the usual files of Docker and Podman are read.
    pub authfile: Option<PathBuf>,
    /// containerd's `certs.d` directory: mirrors, private CAs, client certificates.
    pub hosts_dir: Option<PathBuf>,
    /// PEM files of certificate authorities to trust besides the system's.
    pub extra_ca: Vec<PathBuf>,
    /// What such files held when they could last be used, for those that cannot be used now.
    pub known_ca: BTreeMap<PathBuf, Vec<u8>>,
    /// Make the client also where such a file cannot be used now: what needs it fails, until it can be used.
    pub unchecked: bool,
    /// How failed requests are repeated.
    pub retry: RetryPolicy,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// Upload in pieces of this many bytes. `None`, the default, sends what is left in one piece:
    /// several registries accept only that, and a broken upload is resumed all the same.
    pub upload_piece: Option<u64>,
    /// Time and chance.
    pub clock: Arc<dyn Clock>,
    /// Where requests are counted; clients may share it.
    pub counts: Arc<RequestCounts>,
    /// The addresses of hosts.
    pub names: Arc<dyn Names>,
    /// What requests go through.
    pub proxies: Proxies,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            plain_http: false,
            authfile: None,
            hosts_dir: None,
            extra_ca: Vec::new(),
            known_ca: BTreeMap::new(),
            unchecked: false,
            retry: RetryPolicy::default(),
            timeouts: Timeouts::default(),
            upload_piece: None,
            clock: Arc::new(SystemClock),
            counts: Arc::default(),
            names: Arc::new(SystemNames),
            proxies: Proxies::default(),
        }
    }
}

/// How long to wait for what.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// For a connection, TLS included. hosts.toml may say otherwise (`dial_timeout`).
    pub connect: Duration,
    /// For the status line and headers of an answer.
    pub answer: Duration,
    /// For the answer to the end of an upload: registries on object stores read back and hash the
    /// whole blob before they answer.
    pub commit: Duration,
    /// For a whole call with its retries, apart from the time its bytes may take.
    pub call: Duration,
    /// The time over which the rate of a body is measured.
    pub rate_window: Duration,
    /// The least number of bytes a body must bring in each [`Timeouts::rate_window`].
    pub rate_bytes_min: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            // Two attempts fit a read deadline of 30 s.
            answer: Duration::from_secs(10),
            // 10 GB read back from an object store at 50 MB/s.
            commit: Duration::from_secs(200),
            call: Duration::from_mins(1),
            // 1 KiB/s over 10 s: slower than any link worth waiting for.
            rate_window: Duration::from_secs(10),
            rate_bytes_min: 10 << 10,
        }
    }
}

/// The rate that the deadline of a call expects of its bytes, bytes per second: the deadline is
/// [`Timeouts::call`] plus the bytes at this rate. Stalls are caught long before, by the rate.
const DEADLINE_RATE: u64 = 64 << 10;

impl Timeouts {
    /// The deadline of a call that moves `bytes`.
    pub(crate) fn deadline(&self, bytes: u64) -> Duration {
        self.call + Duration::from_secs(bytes / DEADLINE_RATE)
    }
}
