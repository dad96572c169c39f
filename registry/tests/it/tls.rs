//! TLS: whom the client trusts, and how it says that it does not.

use std::time::Duration;

use larder_proto::digest::Digest;
use larder_registry::{Cause, ClientOptions, Repository};
use larder_test_support::certificates::Certificates;
use larder_test_support::registry::{Cdn, FakeRegistry, Fault, On, Settings};

use crate::world::{TestClock, noise, open, options};

struct World {
    registry: FakeRegistry,
    certificates: Certificates,
    digest: Digest,
    dir: tempfile::TempDir,
}

impl World {
    async fn new(certificates: Certificates, cdn: Option<Cdn>) -> Self {
        let tls = Some(certificates.clone());
        let registry = FakeRegistry::start_with(Settings {
            tls,
            cdn,
            ..Settings::default()
        })
        .await;
        let digest = registry.push_blob(noise(10_000));
        Self {
            registry,
            certificates,
            digest,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// A client whose certs.d has `files` for this registry.
    fn client(&self, files: &[(&str, &[u8])]) -> Repository {
        let place = self.dir.path().join(self.registry.host());
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(&place).unwrap();
        for (name, bytes) in files {
            std::fs::write(place.join(name), bytes).unwrap();
        }
        let hosts_dir = Some(self.dir.path().into());
        let options = ClientOptions {
            hosts_dir,
            ..options(&TestClock::new())
        };
        open(&self.registry.reference("team/app", "v1"), options)
    }

    fn authority(&self) -> Vec<u8> {
        std::fs::read(self.certificates.authority()).unwrap()
    }

    async fn read(&self, repository: &Repository) -> Result<usize, larder_registry::RegistryError> {
        repository
            .blob_range(&self.digest, 0..10_000)
            .await
            .map(|bytes| bytes.len())
    }
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_named() {
    let world = World::new(Certificates::new(), Some(Cdn::default())).await;
    let authority = world.authority();
    let toml = format!(
        "server = \"https://{}\"\nca = \"my.pem\"\n",
        world.registry.host()
    );
    for files in [
        &[("ca.crt", &authority[..])][..],
        &[("hosts.toml", toml.as_bytes()), ("my.pem", &authority)],
    ] {
        assert_eq!(world.read(&world.client(files)).await.unwrap(), 10_000);
    }
    let toml = format!("server = \"https://{}\"\n", world.registry.host());
    std::fs::create_dir_all(world.dir.path().join("x")).unwrap();
    let options = ClientOptions {
        extra_ca: vec![world.certificates.authority()],
        hosts_dir: Some(world.dir.path().into()),
        ..options(&TestClock::new())
    };
    let _ = world.client(&[("hosts.toml", toml.as_bytes())]);
    let repository = open(&world.registry.reference("team/app", "v1"), options);
    assert_eq!(world.read(&repository).await.unwrap(), 10_000);
}

/// Promise: a file of authorities that broke is as it was known to be, and nobody else is trusted for that; mended, it
/// is read again.
#[tokio::test]
async fn an_authority_that_is_known_is_trusted_while_its_file_is_broken() {
    let world = World::new(Certificates::new(), None).await;
    let toml = format!("server = \"https://{}\"\n", world.registry.host());
    let _ = world.client(&[("hosts.toml", toml.as_bytes())]);
    let other = std::fs::read(Certificates::new().authority()).unwrap();
    let file = world.dir.path().join("extra.pem");
    let read = async |known: Option<&[u8]>| {
        let known = known.map(|pem| (file.clone(), pem.to_owned()));
        let options = ClientOptions {
            extra_ca: vec![file.clone()],
            known_ca: known.into_iter().collect(),
            unchecked: true,
            hosts_dir: Some(world.dir.path().into()),
            ..options(&TestClock::new())
        };
        let repository = open(&world.registry.reference("team/app", "v1"), options);
        world.read(&repository).await
    };
    let good = world.authority();
    for broken in [None, Some(&good[..good.len() / 2]), Some(&b""[..])] {
        match broken {
            None => assert!(!file.exists()),
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
        }
        assert_eq!(read(Some(&good)).await.unwrap(), 10_000);
        assert!(read(Some(&other)).await.is_err());
        let told = read(None).await.unwrap_err().to_string();
        assert!(told.contains("extra.pem"), "{told}");
    }
    std::fs::write(&file, &good).unwrap();
    assert_eq!(read(Some(&other)).await.unwrap(), 10_000);
}

#[tokio::test]
async fn an_unknown_authority_is_refused_at_once_with_advice() {
    let world = World::new(Certificates::new(), None).await;
    let other = std::fs::read(Certificates::new().authority()).unwrap();
    let error = world
        .read(&world.client(&[("ca.crt", &other)]))
        .await
        .unwrap_err();
    assert!(matches!(error.cause(), Cause::Untrusted { .. }), "{error}");
    assert!(!error.is_transient());
    let advice = format!("put ca.crt into certs.d/{}/", world.registry.host());
    assert!(error.to_string().contains(&advice), "{error}");
    assert_eq!(world.registry.requests(), []);
}

/// `skip_verify` is for the one host it is said of, not for where that sends us.
#[tokio::test]
async fn verification_is_skipped_only_where_hosts_toml_says_so() {
    let world = World::new(Certificates::new(), None).await;
    let toml = format!(
        "server = \"https://{}\"\nskip_verify = true\n",
        world.registry.host()
    );
    let repository = world.client(&[("hosts.toml", toml.as_bytes())]);
    assert_eq!(world.read(&repository).await.unwrap(), 10_000);
    let other = World::new(Certificates::new(), None).await;
    let away = format!("https://{}/x", other.registry.host());
    world.registry.set_fault(Fault::RedirectTo(away));
    let error = world.read(&repository).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Untrusted { .. }), "{error}");
    assert_eq!(other.registry.requests(), []);
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_its_registry_only() {
    let world = World::new(Certificates::new().asking_clients(), None).await;
    let authority = world.authority();
    let (certificate, key) = world.certificates.client();
    let (certificate, key) = (
        std::fs::read(certificate).unwrap(),
        std::fs::read(key).unwrap(),
    );
    let repository = world.client(&[("ca.crt", &authority)]);
    assert!(world.read(&repository).await.is_err());
    let repository = world.client(&[
        ("ca.crt", &authority),
        ("me.cert", &certificate),
        ("me.key", &key),
    ]);
    assert_eq!(world.read(&repository).await.unwrap(), 10_000);
    // The same host on another port is another host, and asks for a certificate in vain.
    let tls = Some(world.certificates.clone());
    let other = FakeRegistry::start_with(Settings {
        tls,
        ..Settings::default()
    })
    .await;
    world
        .registry
        .set_fault(Fault::RedirectTo(format!("https://{}/x", other.host())));
    assert!(world.read(&repository).await.is_err());
    assert_eq!(other.requests(), []);
}

#[tokio::test]
async fn tls_is_never_left_by_a_redirect() {
    let world = World::new(Certificates::new(), None).await;
    let plain = FakeRegistry::start().await;
    let repository = world.client(&[("ca.crt", &world.authority())]);
    world
        .registry
        .set_fault(Fault::RedirectTo(format!("http://{}/x", plain.host())));
    let error = world.read(&repository).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not following from https to http"),
        "{error}"
    );
    assert_eq!(plain.requests(), []);
    // Nor by the address of a token server.
    let challenge = format!("Bearer realm=\"http://{}/token\"", plain.host());
    world.registry.clear_faults();
    world.registry.fault(On::Blobs, Fault::Challenge(challenge));
    let error = world.read(&repository).await.unwrap_err();
    assert!(
        error.to_string().contains("token server without TLS"),
        "{error}"
    );
    assert_eq!(plain.requests(), []);
}

/// TLS spoken to plain HTTP, and the other way round, is told apart from a broken network.
#[tokio::test]
async fn a_registry_of_the_other_kind_is_recognised() {
    let world = World::new(Certificates::new(), None).await;
    let plain = FakeRegistry::start().await;
    let toml = format!("server = \"https://{}\"\n", plain.host());
    let repository = world.client(&[("hosts.toml", toml.as_bytes())]);
    let error = world.read(&repository).await.unwrap_err();
    assert!(error.to_string().contains("it speaks no TLS"), "{error}");
    assert!(!error.is_transient(), "{error}");
}

/// Promise: a CA and a client certificate that are exchanged in certs.d are used within thirty seconds, without
/// a restart; before, and with the old ones, nobody is let in and nobody is trusted.
#[tokio::test]
async fn exchanged_certificates_are_used_without_a_restart() {
    let world = World::new(Certificates::new().asking_clients(), None).await;
    let (stranger, clock) = (Certificates::new(), TestClock::new());
    let place = world.dir.path().join(world.registry.host());
    std::fs::create_dir(&place).unwrap();
    let write = |authority: &Certificates, owner: &Certificates| {
        let (certificate, key) = owner.client();
        for (name, from) in [
            ("ca.crt", authority.authority()),
            ("me.cert", certificate),
            ("me.key", key),
        ] {
            std::fs::copy(from, place.join(name)).unwrap();
        }
    };
    write(&stranger, &world.certificates);
    let options = ClientOptions {
        hosts_dir: Some(world.dir.path().into()),
        ..options(&clock)
    };
    let repository = open(&world.registry.reference("team/app", "v1"), options);
    let error = world.read(&repository).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Untrusted { .. }), "{error}");
    write(&world.certificates, &stranger);
    clock.advance(Duration::from_secs(31));
    assert!(world.read(&repository).await.is_err());
    assert_eq!(world.registry.requests(), []);
    write(&world.certificates, &world.certificates);
    clock.advance(Duration::from_secs(31));
    assert_eq!(world.read(&repository).await.unwrap(), 10_000);
    // The authority is taken back: what was connected by it is not used any more.
    write(&stranger, &world.certificates);
    clock.advance(Duration::from_secs(31));
    let error = world.read(&repository).await.unwrap_err();
    assert!(matches!(error.cause(), Cause::Untrusted { .. }), "{error}");
}
