//! The packaged `docker-registry`, run for one test.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::certificates::Certificates;

/// How long the registry may take to listen.
const START_MAX: Duration = Duration::from_mins(1);

/// How many ports are tried: another process may take one between our look and the start.
const PORTS_MAX: usize = 5;

/// What a real registry is to be like.
#[derive(Debug, Clone, Default)]
pub struct RealOptions {
    /// The one user and the password, by htpasswd.
    pub account: Option<(String, String)>,
    /// Speak TLS with this certificate.
    pub tls: Option<Certificates>,
}

/// A running `docker-registry` with its storage in a directory of its own; killed when dropped.
#[derive(Debug)]
pub struct RealRegistry {
    child: Child,
    address: SocketAddr,
    dir: TempDir,
}

impl RealRegistry {
    /// An empty registry without log-in on a free loopback port.
    pub fn start() -> Self {
        Self::start_with(&RealOptions::default())
    }

    /// An empty registry as `options` say.
    pub fn start_with(options: &RealOptions) -> Self {
        for _ in 0..PORTS_MAX {
            let dir = tempfile::tempdir().expect("make a directory for the registry");
            let free = TcpListener::bind(("127.0.0.1", 0)).expect("find a free port");
            let address = free.local_addr().expect("a bound socket has an address");
            drop(free);
            let config = dir.path().join("config.yml");
            let text = configuration(dir.path(), address, options);
            std::fs::write(&config, text).expect("write the registry's configuration");
            let log = std::fs::File::create(dir.path().join("log")).expect("create a log");
            let child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("run docker-registry; the tests need that package");
            let mut registry = Self {
                child,
                address,
                dir,
            };
            if registry.wait() {
                return registry;
            }
        }
        panic!("docker-registry does not start; see whether it runs by hand");
    }

    /// Waits until it listens; `false` if it ended instead.
    fn wait(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < START_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return false;
            }
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its name in references: `127.0.0.1:<port>`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `127.0.0.1:<port>/<repository>:<tag>`.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Where it keeps everything.
    pub fn storage(&self) -> std::path::PathBuf {
        self.dir.path().join("storage")
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, address: SocketAddr, options: &RealOptions) -> String {
    let storage = dir.join("storage");
    let mut text = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  \
         delete: {{enabled: true}}\nhttp:\n  addr: {address}\n  secret: larder-test\n",
        storage.display()
    );
    if let Some(certificates) = &options.tls {
        let (certificate, key) = certificates.server();
        let (certificate, key) = (certificate.display(), key.display());
        let _ = writeln!(text, "  tls: {{certificate: {certificate}, key: {key}}}");
    }
    if let Some((username, password)) = &options.account {
        let file = dir.join("htpasswd");
        let entry = format!("{username}:{}\n", bcrypt(password));
        std::fs::write(&file, entry).expect("write the registry's passwords");
        let _ = writeln!(
            text,
            "auth:\n  htpasswd: {{realm: test, path: {}}}",
            file.display()
        );
    }
    text
}

/// The hash the registry wants, by the C library: every Debian has perl, few have htpasswd.
fn bcrypt(password: &str) -> String {
    let program = "print crypt($ARGV[0], q($2b$05$larderlarderlarderlaru))";
    let output = Command::new("perl")
        .args(["-e", program, password])
        .output()
        .expect("run perl");
    String::from_utf8(output.stdout).expect("a hash is text")
}
