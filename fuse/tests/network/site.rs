//! A registry with one layer, and a client that finds it by name.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use larder_fuse::{LayerSpec, RegistrySource, Source};
use larder_registry::clock::{Clock, SystemClock};
use larder_registry::{Client, ClientOptions, Names, Proxies, RetryPolicy, Secret, Timeouts};
use larder_test_support::certificates::Certificates;
use larder_test_support::layer::LayerFixture;
use larder_test_support::registry::{Auth, Cdn, FakeRegistry, Flaw, LookedUp, Network, Settings};
use tempfile::TempDir;

/// The password that no log may show.
pub(crate) const PASSWORD: &str = "hunter-canary-2";

/// How long reads wait in these tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);

/// How a registry is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By plain HTTP, with a token.
    Plain,
    /// The same, by a client without credentials.
    Stranger,
    /// Its blobs lie behind signed URLs on another host.
    Cdn,
    /// By TLS.
    Tls,
    /// It has a mirror, which is asked first and to which the faults happen.
    Mirror,
    /// By plain HTTP through a proxy; its name means nothing here.
    Proxy,
    /// By TLS through a proxy; its name means nothing here.
    TlsProxy,
    /// By plain HTTP; there is a proxy, which is not for it.
    NoProxy,
}

impl Way {
    const fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::TlsProxy)
    }
}

/// A registry, its surroundings, and a client.
#[derive(Debug)]
pub(crate) struct Site {
    /// The one with the faults.
    pub(crate) registry: FakeRegistry,
    /// The server behind it, if it is a mirror.
    server: Option<FakeRegistry>,
    /// Another host, which has the layer, too.
    pub(crate) other: FakeRegistry,
    pub(crate) fixture: LayerFixture,
    client: Client,
    clock: HandClock,
    reference: String,
    /// Whom clients trust, by TLS.
    certificates: Option<Certificates>,
    files: TempDir,
}

impl Site {
    pub(crate) fn new(way: Way, fixture: LayerFixture) -> Self {
        let cdn = (way == Way::Cdn).then(|| Cdn {
            lifetime: Some(Duration::from_mins(5)),
            told: true,
            ..Cdn::default()
        });
        Self::with(way, cdn, Duration::from_mins(5), fixture)
    }

    /// The same with another CDN, and tokens that live for `tokens`.
    #[expect(
        clippy::too_many_lines,
        clippy::needless_pass_by_value,
        reason = "one thing after the other is set up, of what is made for it"
    )]
    pub(crate) fn with(
        way: Way,
        cdn: Option<Cdn>,
        tokens: Duration,
        fixture: LayerFixture,
    ) -> Self {
        let tls = way.is_tls().then(certificates);
        let proxied = matches!(way, Way::Proxy | Way::TlsProxy | Way::NoProxy);
        let settings = || Settings {
            auth: Auth::Token {
                account: (way != Way::Stranger).then(|| ("anna".into(), PASSWORD.into())),
                identity: None,
                lifetime: tokens,
            },
            cdn: cdn.clone(),
            tls: tls.clone(),
            proxy: proxied.then(|| format!("anna:{PASSWORD}")),
            ..Settings::default()
        };
        let registry = FakeRegistry::start_now(match way {
            Way::Mirror => Settings::default(),
            _ => settings(),
        });
        let server = (way == Way::Mirror).then(|| FakeRegistry::start_now(settings()));
        let other = FakeRegistry::start_now(Settings::default());
        for one in [Some(&registry), server.as_ref(), Some(&other)]
            .into_iter()
            .flatten()
        {
            one.push_blob(fixture.blob.clone());
        }
        let files = tempfile::tempdir().unwrap();
        let main = server.as_ref().unwrap_or(&registry);
        let host = format!("registry.test:{}", main.address().port());
        let login = if way == Way::Stranger {
            "{}".into()
        } else {
            format!(
                r#"{{"auths": {{"{host}": {{"username": "anna", "password": "{PASSWORD}"}}}}}}"#
            )
        };
        let authfile = files.path().join("auth.json");
        std::fs::write(&authfile, login).unwrap();
        if server.is_some() {
            let place = files.path().join("certs.d").join(&host);
            std::fs::create_dir_all(&place).unwrap();
            let mirror = registry.address();
            let toml = format!("server = \"http://{host}\"\n[host.\"http://{mirror}\"]\n");
            std::fs::write(place.join("hosts.toml"), toml).unwrap();
        }
        let authority = files.path().join("ca.pem");
        if let Some(tls) = &tls {
            std::fs::copy(tls.authority(), &authority).unwrap();
        }
        let proxies = main.proxy().map(|url| Proxies::One {
            url: Secret::new(url),
            not_for: if way == Way::NoProxy {
                "registry.test"
            } else {
                ""
            }
            .into(),
        });
        let names = ToldNames {
            network: main.network(),
            // Who goes through a proxy need not know them.
            known: !matches!(way, Way::Proxy | Way::TlsProxy),
        };
        let clock = HandClock {
            network: registry.network(),
            ahead: Arc::default(),
        };
        let options = ClientOptions {
            plain_http: !way.is_tls(),
            authfile: Some(authfile),
            hosts_dir: Some(files.path().join("certs.d")),
            extra_ca: tls.iter().map(|_| authority.clone()).collect(),
            // As the snapshotter has it, for a deadline ten times as short.
            retry: RetryPolicy {
                attempts_max: 3,
                delay_min: Duration::from_millis(15),
                delay_max: Duration::from_millis(100),
            },
            timeouts: Timeouts {
                connect: Duration::from_millis(900),
                answer: Duration::from_millis(900),
                rate_window: Duration::from_millis(900),
                rate_bytes_min: 900,
                ..Timeouts::default()
            },
            clock: Arc::new(clock.clone()),
            names: Arc::new(names),
            proxies: proxies.unwrap_or_default(),
            ..ClientOptions::default()
        };
        Self {
            registry,
            server,
            other,
            fixture,
            client: Client::new(options).unwrap(),
            clock,
            reference: format!("{host}/team/app:v1"),
            certificates: tls,
            files,
        }
    }

    pub(crate) fn spec(&self) -> LayerSpec {
        let reference = self.reference.parse().unwrap();
        let repository = self.client.repository(&reference);
        let source = RegistrySource::new(repository, self.fixture.digest);
        LayerSpec {
            blob: self.fixture.digest,
            index: self.fixture.index,
            sources: vec![Arc::new(source) as Arc<dyn Source>],
            elsewhere: None,
        }
    }

    /// Lets as much time pass for the client as anything is remembered by it.
    pub(crate) fn pass_time(&self) {
        *self.clock.ahead.lock().unwrap() += Duration::from_secs(31);
    }

    /// Adds the authority of [`Flaw::OtherAuthority`] to the CA file, which is read again as time passes.
    pub(crate) fn trust_other_authority(&self) {
        let certificates = self.certificates.as_ref().unwrap();
        let both = [certificates.authority(), certificates.other_authority()];
        let both = both.map(|path| std::fs::read(path).unwrap()).concat();
        std::fs::write(self.files.path().join("ca.pem"), both).unwrap();
        self.pass_time();
    }

    /// Whether any host was shown credentials that are not its own.
    pub(crate) fn leaks(&self) -> bool {
        let mirror = self.server.is_some();
        let abroad = self.registry.requests();
        let abroad = abroad.iter().filter(|seen| seen.cdn || mirror);
        let other = self.other.requests();
        abroad.chain(&other).any(|seen| seen.authorized)
    }
}

/// One authority for all sites of the process, with all its bad certificates: making them takes a while,
/// and blocks the thread. To be called before anything is timed.
pub(crate) fn certificates() -> Certificates {
    static MADE: Mutex<Option<Certificates>> = Mutex::new(None);
    let made = || {
        let made = Certificates::new();
        for flaw in [
            Flaw::Expired,
            Flaw::NotYetValid,
            Flaw::OtherName,
            Flaw::SelfSigned,
            Flaw::OtherAuthority,
        ] {
            let _ = made.flawed_config(flaw);
        }
        made
    };
    MADE.lock().unwrap().get_or_insert_with(made).clone()
}

/// The system's clock, wrong as the network says, and moved by hand.
#[derive(Debug, Clone)]
struct HandClock {
    network: Network,
    ahead: Arc<Mutex<Duration>>,
}

impl Clock for HandClock {
    fn now(&self) -> SystemTime {
        let error = self.network.clock_error();
        let by = Duration::from_secs(error.unsigned_abs());
        let now = SystemTime::now();
        if error < 0 { now - by } else { now + by }
    }

    fn uptime(&self) -> Duration {
        SystemClock.uptime() + *self.ahead.lock().unwrap()
    }

    fn sleep(&self, delay: Duration) -> BoxFuture<'static, ()> {
        SystemClock.sleep(delay)
    }

    fn fraction(&self) -> f64 {
        SystemClock.fraction()
    }
}

/// `registry.test` as the network has it.
#[derive(Debug)]
struct ToldNames {
    network: Network,
    known: bool,
}

impl Names for ToldNames {
    fn look_up(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let told = self.network.addresses();
        let known = self.known && host == "registry.test";
        Box::pin(async move {
            match told {
                LookedUp::Addresses(found) if known => Ok(found),
                LookedUp::Silence => std::future::pending().await,
                LookedUp::Failure => Err(io::Error::other("the name servers fail")),
                _ => Err(io::Error::other("no such name")),
            }
        })
    }
}
