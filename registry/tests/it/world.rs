//! A client, a repository and time, as the tests want them.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use larder_registry::clock::Clock;
use larder_registry::{Client, ClientOptions, Repository, Timeouts};
use larder_test_support::registry::FakeRegistry;

/// A clock that tests move: sleeping takes no time, and is noted.
#[derive(Debug, Clone)]
pub(crate) struct TestClock(Arc<Mutex<Times>>);

#[derive(Debug)]
struct Times {
    wall: SystemTime,
    uptime: Duration,
    waits: Vec<Duration>,
}

impl Times {
    fn pass(&mut self, time: Duration) {
        self.wall += time;
        self.uptime += time;
    }
}

impl TestClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Times {
            wall: SystemTime::now(),
            uptime: Duration::ZERO,
            waits: Vec::new(),
        })))
    }

    /// Lets time pass.
    pub(crate) fn advance(&self, time: Duration) {
        self.0.lock().unwrap().pass(time);
    }

    /// Sets the wall clock by so many seconds, as an operator or a broken time server does.
    pub(crate) fn step(&self, seconds: i64) {
        let mut times = self.0.lock().unwrap();
        let by = Duration::from_secs(seconds.unsigned_abs());
        let wall = times.wall;
        times.wall = if seconds < 0 { wall - by } else { wall + by };
    }

    /// How long the client has waited before each retry.
    pub(crate) fn waits(&self) -> Vec<Duration> {
        self.0.lock().unwrap().waits.clone()
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        self.0.lock().unwrap().wall
    }

    fn uptime(&self) -> Duration {
        self.0.lock().unwrap().uptime
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        let mut times = self.0.lock().unwrap();
        times.pass(delay);
        times.waits.push(delay);
        Box::pin(tokio::task::yield_now())
    }

    fn fraction(&self) -> f64 {
        0.5
    }
}

/// Options of tests: no credentials of this machine, and little patience.
pub(crate) fn options(clock: &TestClock) -> ClientOptions {
    ClientOptions {
        authfile: Some(authfile("{}")),
        clock: Arc::new(clock.clone()),
        timeouts: Timeouts {
            connect: Duration::from_secs(2),
            // Enough for a busy machine; each stall that a test makes costs so much.
            answer: Duration::from_millis(1500),
            commit: Duration::from_secs(5),
            call: Duration::from_secs(30),
            rate_window: Duration::from_secs(1),
            rate_bytes_min: 1000,
        },
        ..ClientOptions::default()
    }
}

/// A credential file; the same text has the same file, so that runs leave no more and more of them.
pub(crate) fn authfile(json: &str) -> std::path::PathBuf {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = dir.join(format!(
        "{}.json",
        larder_proto::digest::Digest::of(json.as_bytes()).hex()
    ));
    // Tests run side by side: none may see another's half-written file.
    let file = tempfile::NamedTempFile::new_in(dir).unwrap();
    std::fs::write(file.path(), json).unwrap();
    file.persist(&path).unwrap();
    path
}

/// A credential file with one user for `host`.
pub(crate) fn login(host: &str, username: &str, password: &str) -> std::path::PathBuf {
    authfile(&format!(
        r#"{{"auths": {{"{host}": {{"username": "{username}", "password": "{password}"}}}}}}"#
    ))
}

/// The repository `team/app` of `registry`.
pub(crate) fn repository(registry: &FakeRegistry, options: ClientOptions) -> Repository {
    open(&registry.reference("team/app", "v1"), options)
}

/// The repository of a reference.
pub(crate) fn open(reference: &str, options: ClientOptions) -> Repository {
    let reference = reference.parse().unwrap();
    Client::new(options).unwrap().repository(&reference)
}

/// Bytes that differ everywhere.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    larder_test_support::noise::noise(1, length)
}
