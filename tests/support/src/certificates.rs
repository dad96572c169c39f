//! A certificate authority of our own, made by the `openssl` program for one test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;

use crate::registry::Flaw;

/// An authority, a server's certificate for 127.0.0.1 and localhost, and a client's certificate.
#[derive(Debug, Clone)]
pub struct Certificates {
    dir: Arc<TempDir>,
    /// Whether servers ask clients for their certificate.
    ask_clients: bool,
}

impl Certificates {
    /// Makes a new authority and what it signs.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("make a directory for certificates");
        let path = dir.path();
        std::fs::write(path.join("ca.cnf"), AUTHORITY).expect("write the authority's settings");
        std::fs::write(path.join("index.txt"), "").expect("write an empty register");
        authority(path, "ca");
        sign(
            path,
            "server",
            &names("IP:127.0.0.1,DNS:localhost,DNS:registry.test"),
        );
        sign(path, "client", "extendedKeyUsage=clientAuth");
        Self {
            dir: Arc::new(dir),
            ask_clients: false,
        }
    }

    /// The same, with servers that let in nobody without the client certificate.
    #[must_use]
    pub fn asking_clients(self) -> Self {
        Self {
            ask_clients: true,
            ..self
        }
    }

    /// The authority's certificate, PEM.
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// The certificate of another authority, PEM: that of servers with [`Flaw::OtherAuthority`].
    pub fn other_authority(&self) -> PathBuf {
        // Made with the certificate that it signs.
        let _ = self.flawed_config(Flaw::OtherAuthority);
        self.dir.path().join("ca2.crt")
    }

    /// The server's certificate and key, PEM.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        self.pair("server")
    }

    /// The client's certificate and key, PEM.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        self.pair("client")
    }

    fn pair(&self, name: &str) -> (PathBuf, PathBuf) {
        let path = self.dir.path();
        (
            path.join(format!("{name}.crt")),
            path.join(format!("{name}.key")),
        )
    }

    /// What a TLS server needs.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config("server")
    }

    /// What a TLS server needs that speaks nothing but HTTP/2.
    pub fn http2_config(&self) -> Arc<ServerConfig> {
        let mut config = (*self.server_config()).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    /// What a TLS server needs to show a certificate with this flaw.
    pub fn flawed_config(&self, flaw: Flaw) -> Arc<ServerConfig> {
        // One after the other: they share the authority's register.
        static MAKING: Mutex<()> = Mutex::new(());
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.dir.path();
        let missing = |name: &str| !path.join(name).with_extension("crt").exists();
        let good = names("DNS:registry.test,IP:127.0.0.1");
        let name = match flaw {
            Flaw::Expired => {
                if missing("expired") {
                    sign_for(path, "expired", &good, "20200101000000Z", "20210101000000Z");
                }
                "expired"
            }
            Flaw::NotYetValid => {
                if missing("early") {
                    sign_for(path, "early", &good, "20900101000000Z", "20910101000000Z");
                }
                "early"
            }
            Flaw::OtherName => {
                if missing("other") {
                    sign(path, "other", &names("DNS:other.test"));
                }
                "other"
            }
            Flaw::SelfSigned => {
                if missing("own") {
                    self_sign(path, "own", "DNS:registry.test,IP:127.0.0.1");
                }
                "own"
            }
            Flaw::OtherAuthority => {
                if missing("foreign") {
                    authority(path, "ca2");
                    sign_by(path, "ca2", "foreign", &good);
                }
                "foreign"
            }
            Flaw::OldProtocol | Flaw::Plain => "server",
        };
        self.config(name)
    }

    fn config(&self, name: &str) -> Arc<ServerConfig> {
        let (certificate, key) = self.pair(name);
        let chain = CertificateDer::pem_file_iter(certificate).expect("open the certificate");
        let chain = chain
            .collect::<Result<_, _>>()
            .expect("read the certificate");
        let key = PrivateKeyDer::from_pem_file(key).expect("read the key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let config = config
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS");
        let config = if self.ask_clients {
            let mut roots = RootCertStore::empty();
            let authority = CertificateDer::from_pem_file(self.authority()).expect("read the CA");
            roots.add(authority).expect("the CA is a certificate");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            config.with_client_cert_verifier(verifier.build().expect("the CA is an authority"))
        } else {
            config.with_no_client_auth()
        };
        let mut config = config.with_single_cert(chain, key).expect("the key fits");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

/// The settings of `openssl ca`, which signs for any time.
const AUTHORITY: &str = "[ca]\ndefault_ca = d\n[d]\ndatabase = index.txt\nnew_certs_dir = .\n\
    rand_serial = yes\ndefault_md = sha256\npolicy = p\nunique_subject = no\n\
    [p]\ncommonName = supplied\n";

/// The extensions of a server's certificate for these names.
fn names(names: &str) -> String {
    format!("subjectAltName={names}\nextendedKeyUsage=serverAuth")
}

/// A certificate for another time than now.
fn sign_for(dir: &Path, name: &str, extensions: &str, begin: &str, end: &str) {
    sign(dir, name, extensions);
    openssl(
        dir,
        &format!(
            "ca -config ca.cnf -batch -notext -cert ca.crt -keyfile ca.key -in {name}.csr \
             -out {name}.crt -extfile {name}.ext -startdate {begin} -enddate {end}"
        ),
    );
}

/// A certificate that nobody but its owner vouches for.
fn self_sign(dir: &Path, name: &str, names: &str) {
    openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {name}.key \
             -out {name}.crt -subj /CN=larder-test-{name} -addext subjectAltName={names}"
        ),
    );
}

/// A new authority.
fn authority(dir: &Path, name: &str) {
    openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -keyout {name}.key \
             -out {name}.crt -subj /CN=larder-test-{name} -addext basicConstraints=critical,CA:TRUE"
        ),
    );
}

fn sign(dir: &Path, name: &str, extensions: &str) {
    sign_by(dir, "ca", name, extensions);
}

fn sign_by(dir: &Path, authority: &str, name: &str, extensions: &str) {
    std::fs::write(dir.join(format!("{name}.ext")), extensions).expect("write extensions");
    openssl(
        dir,
        &format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key \
             -out {name}.csr -subj /CN=larder-test-{name}"
        ),
    );
    openssl(
        dir,
        &format!(
            "x509 -req -in {name}.csr -CA {authority}.crt -CAkey {authority}.key -CAcreateserial -days 2 \
             -out {name}.crt -extfile {name}.ext"
        ),
    );
}

fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("run openssl; the tests need that package");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments}: {text}");
}
