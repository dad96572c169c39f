//! Logging in: once, with the right scope, and again when the registry forgets.

use std::time::Duration;

use larder_proto::digest::Digest;
use larder_registry::{Client, ClientOptions, Repository};
use larder_test_support::registry::{Auth, Cdn, FakeRegistry, Fault, On, Seen, Settings};

use crate::world::{TestClock, authfile, login, noise, options, repository};

const LIFETIME: Duration = Duration::from_mins(5);

async fn with(auth: Auth) -> (FakeRegistry, Digest) {
    let registry = FakeRegistry::start_with(Settings {
        auth,
        ..Settings::default()
    })
    .await;
    let digest = registry.push_blob(noise(100_000));
    (registry, digest)
}

fn tokens() -> Auth {
    let account = Some(("anna".to_owned(), "hunter2".to_owned()));
    Auth::Token {
        account,
        identity: Some("refresh+me".into()),
        lifetime: LIFETIME,
    }
}

fn asked(seen: &[Seen], path: &str) -> usize {
    seen.iter()
        .filter(|request| request.path.starts_with(path))
        .count()
}

fn as_anna(registry: &FakeRegistry, clock: &TestClock) -> Repository {
    let authfile = Some(login(&registry.host(), "anna", "hunter2"));
    repository(
        registry,
        ClientOptions {
            authfile,
            ..options(clock)
        },
    )
}

#[tokio::test]
async fn a_password_is_sent_once_it_is_asked_for() {
    let (registry, digest) = with(basic()).await;
    let repository = as_anna(&registry, &TestClock::new());
    for _ in 0..3 {
        assert_eq!(
            repository.blob_exists(&digest).await.unwrap(),
            Some(100_000)
        );
    }
    let authorized: Vec<_> = registry.requests().iter().map(|r| r.authorized).collect();
    assert_eq!(authorized, [false, true, true, true]);
}

/// 401 for ever: two requests, no loop, and a sentence that says what to do.
#[tokio::test]
async fn wrong_or_missing_credentials_are_refused_after_two_requests() {
    for (auth, file) in [
        (basic(), true),
        (basic(), false),
        (tokens(), true),
        (tokens(), false),
    ] {
        let text = format!("{auth:?} {file}");
        let (registry, digest) = with(auth).await;
        let host = registry.host();
        let wrong = if file {
            login(&host, "anna", "wrong-password")
        } else {
            authfile("{}")
        };
        let clock = TestClock::new();
        let repository = repository(
            &registry,
            ClientOptions {
                authfile: Some(wrong),
                ..options(&clock)
            },
        );
        let error = repository.blob_range(&digest, 0..10).await.unwrap_err();
        assert!(
            error.is_unauthorized() && !error.is_transient(),
            "{text}: {error}"
        );
        let message = format!("{error} {error:?}");
        assert!(
            message.contains(&format!("docker login {host}")),
            "{text}: {message}"
        );
        assert!(!message.contains("wrong-password"), "{text}: {message}");
        assert!(
            registry.requests().len() <= 2,
            "{text}: {:?}",
            registry.requests()
        );
        assert_eq!(clock.waits(), []);
    }
}

/// A registry that wants a password, a client with a wrong one, and the file it is in.
struct Mistaken {
    registry: FakeRegistry,
    digest: Digest,
    clock: TestClock,
    repository: Repository,
    file: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Mistaken {
    async fn with(auth: Auth) -> Self {
        let (registry, digest) = with(auth).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        let clock = TestClock::new();
        let mistaken = Self {
            repository: repository(
                &registry,
                ClientOptions {
                    authfile: Some(file.clone()),
                    ..options(&clock)
                },
            ),
            registry,
            digest,
            clock,
            file,
            _dir: dir,
        };
        mistaken.login("wrong-password");
        mistaken
    }

    fn login(&self, password: &str) {
        let source = login(&self.registry.host(), "anna", password);
        std::fs::copy(source, &self.file).unwrap();
    }

    /// How often a password was shown since the last look.
    fn shown(&self) -> usize {
        let shown = self
            .registry
            .requests()
            .iter()
            .filter(|r| r.authorized)
            .count();
        self.registry.clear_requests();
        shown
    }

    async fn read(&self) -> Result<(), larder_registry::RegistryError> {
        let read = self.repository.blob_range(&self.digest, 0..10).await;
        read.map(drop)
    }
}

fn basic() -> Auth {
    Auth::Basic {
        username: "anna".into(),
        password: "hunter2".into(),
    }
}

/// Promise: credentials that were refused are not shown again for thirty seconds, whoever asks:
/// otherwise reads lock the account. Nothing is sent meanwhile, and other credentials are tried at
/// once.
#[tokio::test]
async fn refused_credentials_are_not_shown_again_for_thirty_seconds() {
    for auth in [basic(), tokens()] {
        let text = format!("{auth:?}");
        let world = Mistaken::with(auth).await;
        for _ in 0..10 {
            let error = world.read().await.unwrap_err();
            assert!(error.is_refused(), "{text}: {error}");
            assert!(error.to_string().contains("docker login"), "{error}");
            // Longer than one failure is shared.
            world.clock.advance(Duration::from_secs(2));
        }
        assert_eq!(world.shown(), 1, "{text}");
        let _ = world.read().await.unwrap_err();
        assert_eq!(world.registry.requests().len(), 0, "{text}");
        world.clock.advance(Duration::from_secs(11));
        let _ = world.read().await.unwrap_err();
        assert_eq!(world.shown(), 1, "{text}: thirty seconds later");
        world.clock.advance(Duration::from_secs(2));
        world.login("hunter2");
        world.read().await.unwrap();
    }
}

/// Promise: a crowd of readers shows a wrong password once, and a right one as often as needed.
///
/// Regression: who asked while the first answer was awaited got the password, too, and showed it at once.
#[tokio::test]
async fn a_crowd_shows_a_wrong_password_once() {
    for auth in [basic(), tokens()] {
        let text = format!("{auth:?}");
        let world = Mistaken::with(auth).await;
        for (password, is_right) in [("wrong-password", false), ("hunter2", true)] {
            world.login(password);
            let readers = (0..64).map(|_| {
                let (repository, digest) = (world.repository.clone(), world.digest);
                tokio::spawn(async move { repository.blob_range(&digest, 0..10).await })
            });
            for reader in readers.collect::<Vec<_>>() {
                assert_eq!(reader.await.unwrap().is_ok(), is_right, "{text}");
            }
            let shown = world.shown();
            assert!(is_right || shown == 1, "{text}: {shown} times");
            world.clock.advance(Duration::from_secs(2));
        }
    }
}

/// Nothing that prints shows a password, a token or a signed URL.
#[tokio::test]
async fn what_prints_shows_no_secret() {
    let auth = tokens();
    let cdn = Some(Cdn {
        query: "X-Signature=hunter3".into(),
        ..Cdn::default()
    });
    let registry = FakeRegistry::start_with(Settings {
        auth,
        cdn,
        ..Settings::default()
    })
    .await;
    let digest = registry.push_blob(noise(1000));
    let repository = as_anna(&registry, &TestClock::new());
    repository.blob_range(&digest, 0..10).await.unwrap();
    registry.fault(On::Cdn, Fault::Status(500, None));
    let error = repository.blob_range(&digest, 0..10).await.unwrap_err();
    let printed = format!("{repository:?} {error:?} {error}");
    assert!(printed.contains("Sensitive"), "{printed}");
    for secret in ["hunter", "token-", "aHVudGVy"] {
        assert!(!printed.contains(secret), "{secret} in {printed}");
    }
}

#[tokio::test]
async fn sixty_four_readers_ask_for_one_token() {
    let (registry, digest) = with(tokens()).await;
    let clock = TestClock::new();
    let repository = as_anna(&registry, &clock);
    for expected in 1..=3 {
        let readers = (0..64).map(|n| {
            let repository = repository.clone();
            tokio::spawn(async move { repository.blob_range(&digest, n..n + 1000).await })
        });
        for reader in readers.collect::<Vec<_>>() {
            reader.await.unwrap().unwrap();
        }
        assert_eq!(asked(&registry.requests(), "/token"), expected);
        match expected {
            // The client sees that the token is about to expire …
            1 => clock.advance(LIFETIME),
            // … or hears from the registry that it is no longer good.
            _ => registry.revoke_tokens(),
        }
    }
}

/// A registry whose token server somebody knows who read from one of its repositories, and that has recorded nothing yet; another repository
/// of it, and a blob in that.
async fn known_by_another_repository() -> (FakeRegistry, Repository, Digest) {
    let (registry, digest) = with(tokens()).await;
    let client = Client::new(ClientOptions {
        authfile: Some(login(&registry.host(), "anna", "hunter2")),
        ..options(&TestClock::new())
    });
    let client = client.unwrap();
    let first = registry.reference("team/app", "v1").parse().unwrap();
    let first = client.repository(&first);
    first.blob_range(&digest, 0..10).await.unwrap();
    let digest = registry.push_blob_into("team/other", noise(1000));
    let other = registry.reference("team/other", "v1").parse().unwrap();
    registry.clear_requests();
    let other = client.repository(&other);
    (registry, other, digest)
}

/// Promise: the registry says once where its tokens come from: of its next repository, the first request brings one already,
/// and is not refused.
#[tokio::test]
async fn the_next_repository_is_not_refused_first() {
    let (registry, other, digest) = known_by_another_repository().await;
    let readers = (0..8).map(|_| other.blob_range(&digest, 0..10));
    for read in futures_util::future::join_all(readers).await {
        read.unwrap();
    }
    let seen = registry.requests();
    assert_eq!(asked(&seen, "/token"), 1);
    assert_eq!(seen.len(), 9, "{seen:?}");
}

/// Promise: a token server that gives none for the next repository is asked once; then the registry says whether it wants one.
#[tokio::test]
async fn a_token_that_nobody_asked_for_may_be_refused() {
    let (registry, other, digest) = known_by_another_repository().await;
    registry.fault_times(1, On::Path("GET", "/token"), Fault::Status(403, None));
    for _ in 0..3 {
        other.blob_range(&digest, 0..10).await.unwrap();
    }
    let seen = registry.requests();
    assert_eq!(asked(&seen, "/token"), 2, "{seen:?}");
    assert_eq!(seen.len(), 2 + 1 + 3, "{seen:?}");
}

/// Regression: it was told as a blob that is not there.
///
/// Promise: a token server that is not where the registry says is told as that.
#[tokio::test]
async fn a_token_server_that_is_not_there_is_told() {
    let (registry, digest) = with(tokens()).await;
    registry.fault(On::Path("GET", "/token"), Fault::Status(404, None));
    let repository = as_anna(&registry, &TestClock::new());
    let refused = repository.blob_range(&digest, 0..1000).await.unwrap_err();
    assert!(!refused.is_not_found(), "{refused}");
    assert!(refused.to_string().contains("answered 404"), "{refused}");
    assert!(refused.to_string().contains("token server"), "{refused}");
}

/// When the token server fails, those who waited for the same token do not ask it one by one.
#[tokio::test]
async fn a_failing_token_server_is_not_stormed() {
    let (registry, digest) = with(tokens()).await;
    registry.fault(On::Path("GET", "/token"), Fault::Status(403, None));
    let repository = as_anna(&registry, &TestClock::new());
    let readers = (0..64).map(|_| {
        let repository = repository.clone();
        tokio::spawn(async move { repository.blob_range(&digest, 0..1000).await })
    });
    for reader in readers.collect::<Vec<_>>() {
        assert!(reader.await.unwrap().unwrap_err().is_unauthorized());
    }
    assert_eq!(asked(&registry.requests(), "/token"), 1);
}

#[tokio::test]
async fn everybody_may_read_what_is_public() {
    let auth = Auth::Token {
        account: None,
        identity: None,
        lifetime: LIFETIME,
    };
    let (registry, digest) = with(auth).await;
    let repository = repository(&registry, options(&TestClock::new()));
    repository.blob_range(&digest, 0..10).await.unwrap();
    let seen = registry.requests();
    let token = seen
        .iter()
        .find(|request| request.path == "/token")
        .unwrap();
    assert!(!token.authorized);
    assert_eq!(
        token.query,
        "service=fake&scope=repository%3Ateam%2Fapp%3Apull"
    );
    let error = repository
        .put_manifest("v1", "x/y", "{}".into())
        .await
        .unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
}

#[tokio::test]
async fn a_refresh_token_is_posted_and_never_in_a_url() {
    let (registry, digest) = with(tokens()).await;
    let json = format!(
        r#"{{"auths": {{"{}": {{"identitytoken": "refresh+me"}}}}}}"#,
        registry.host()
    );
    let authfile = Some(authfile(&json));
    let repository = repository(
        &registry,
        ClientOptions {
            authfile,
            ..options(&TestClock::new())
        },
    );
    repository.blob_range(&digest, 0..10).await.unwrap();
    let seen = registry.requests();
    let token = seen
        .iter()
        .find(|request| request.path == "/token")
        .unwrap();
    assert_eq!(
        (&*token.method, &*token.query, token.authorized),
        ("POST", "", false)
    );
}

/// A push asks for one token at its first request, and a mount for both repositories.
#[tokio::test]
async fn a_push_needs_one_token_and_a_mount_another() {
    let (registry, _) = with(tokens()).await;
    let base = registry.push_blob_into("team/base", noise(5000));
    let repository = as_anna(&registry, &TestClock::new());
    let bytes = bytes::Bytes::from(noise(70_000));
    let digest = Digest::of(&bytes);
    repository
        .upload_blob(&digest, 70_000, bytes, |_| ())
        .await
        .unwrap();
    assert_eq!(asked(&registry.requests(), "/token"), 1);
    assert!(repository.mount_blob(&base, "team/base").await.unwrap());
    assert_eq!(asked(&registry.requests(), "/token"), 2);
}

/// A token that dies in the middle of an upload is replaced; the upload goes on.
#[tokio::test]
async fn a_token_that_expires_in_an_upload_is_renewed() {
    let (registry, _) = with(tokens()).await;
    let repository = as_anna(&registry, &TestClock::new());
    let once = std::sync::Once::new();
    let registry = std::sync::Arc::new(registry);
    let revoke = std::sync::Arc::clone(&registry);
    let bytes = bytes::Bytes::from(noise(700_000));
    let digest = Digest::of(&bytes);
    let progress = move |at| {
        if at > 0 {
            once.call_once(|| revoke.revoke_tokens());
        }
    };
    repository
        .upload_blob(&digest, 700_000, bytes.clone(), progress)
        .await
        .unwrap();
    assert_eq!(registry.blob("team/app", &digest), Some(bytes));
    assert_eq!(asked(&registry.requests(), "/token"), 2);
}
