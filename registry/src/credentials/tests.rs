//! Which credential is found, and where.

use std::os::unix::fs::PermissionsExt as _;

use super::*;

#[expect(
    clippy::unnecessary_wraps,
    reason = "it is compared with what a search finds"
)]
fn password(username: &str, password: &str) -> Option<Credential> {
    let password = Secret::new(password);
    Some(Credential::Password {
        username: username.into(),
        password,
    })
}

async fn look(json: &str, host: &str, repository: &str) -> Result<Option<Credential>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    std::fs::write(&path, json).unwrap();
    let store = CredentialStore::new(Some(&path), |_| None);
    store
        .find(host, repository)
        .await
        .map_err(|e| e.to_string())
}

#[tokio::test]
async fn the_most_specific_entry_wins() {
    // dTpw is u:p, dTE6cA== is u1:p, dTI6cDpx is u2:p:q without padding.
    let json = r#"{"auths": {
        "r.io": {"auth": "dTpw"},
        "r.io/team": {"auth": "dTE6cA=="},
        "r.io/team/app": {"auth": "dTI6cDpx"},
        "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
        "https://old.io/v2/": {"username": "old", "password": "x"},
        "id.io": {"auth": "dTpw", "identitytoken": "refresh"},
        "tok.io": {"registrytoken": "ready"},
        "mark.io": {"username": "<token>", "password": "refresh"},
        "empty.io": {}
    }, "HttpHeaders": {"x": "y"}}"#;
    let identity = Some(Credential::Identity(Secret::new("refresh")));
    for (host, repository, expected) in [
        ("r.io", "other/app", password("u", "p")),
        ("r.io", "teams/app", password("u", "p")),
        ("r.io", "team/other", password("u1", "p")),
        ("r.io", "team/app", password("u2", "p:q")),
        ("r.io", "team/app/part", password("u2", "p:q")),
        ("docker.io", "library/alpine", password("hub", "x")),
        ("old.io", "a", password("old", "x")),
        ("id.io", "a", identity.clone()),
        ("mark.io", "a", identity),
        ("tok.io", "a", Some(Credential::Token(Secret::new("ready")))),
        ("empty.io", "a", None),
        ("r.io:5000", "a", None),
        ("none.io", "a", None),
    ] {
        assert_eq!(
            look(json, host, repository).await,
            Ok(expected),
            "{host}/{repository}"
        );
    }
}

/// The text of a broken file may hold passwords.
#[tokio::test]
async fn a_broken_file_is_named_and_not_quoted() {
    for json in [
        r#"{"auths": {"r.io": "hunter2""#,
        r#"{"auths": {"r.io": {"auth": "hunter2!"}}}"#,
    ] {
        let error = look(json, "r.io", "a").await.unwrap_err();
        assert!(error.contains("auth.json"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert_eq!(look("", "r.io", "a").await, Ok(None));
}

#[tokio::test]
async fn a_named_file_must_exist_and_the_usual_ones_need_not() {
    let nowhere = Path::new("/nonexistent/auth.json");
    let store = CredentialStore::new(Some(nowhere), |_| None);
    assert!(store.find("r.io", "a").await.is_err());
    let store = CredentialStore::new(None, |_| Some("/nonexistent".into()));
    // REGISTRY_AUTH_FILE names a file too.
    assert!(store.find("r.io", "a").await.is_err());
    let home = |name: &str| (name == "HOME").then(|| "/nonexistent".into());
    let store = CredentialStore::new(None, home);
    assert_eq!(store.find("r.io", "a").await.unwrap(), None);
}

#[tokio::test]
async fn the_usual_files_are_searched_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, user: &str, host: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let entry =
            format!(r#"{{"auths": {{"{host}": {{"username": "{user}", "password": "x"}}}}}}"#);
        std::fs::write(path, entry).unwrap();
    };
    write("home/.docker/config.json", "docker", "a.io");
    write("run/containers/auth.json", "podman", "a.io");
    write("run/containers/auth.json", "podman", "b.io");
    write("home/.config/containers/auth.json", "config", "c.io");
    let variables = |name: &str| match name {
        "HOME" => Some(dir.path().join("home").into()),
        "XDG_RUNTIME_DIR" => Some(dir.path().join("run").into()),
        _ => None,
    };
    let store = CredentialStore::new(None, variables);
    for (host, user) in [("a.io", "docker"), ("b.io", "podman"), ("c.io", "config")] {
        assert_eq!(
            store.find(host, "r").await.unwrap(),
            password(user, "x"),
            "{host}"
        );
    }
}

/// A credential program, put where programs are found: a path in its name is refused.
struct Program(PathBuf);

impl Program {
    fn new(name: &str, script: &str) -> Self {
        let path = PathBuf::from(format!("/usr/local/bin/docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(path)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn programs_are_asked_and_their_failures_are_explained() {
    let id = std::process::id();
    let name = |what: &str| format!("larder-test-{what}-{id}");
    let echo = r#"read server; echo "{\"Username\":\"$1\",\"Secret\":\"$server\"}""#;
    let _programs = [
        Program::new(&name("echo"), echo),
        Program::new(
            &name("none"),
            "echo credentials not found in native keychain; exit 1",
        ),
        Program::new(&name("fail"), "echo hunter2; exit 1"),
        Program::new(&name("junk"), "echo hunter2"),
        Program::new(&name("flood"), "yes hunter2"),
    ];
    let with = |what: &str| format!(r#"{{"credHelpers": {{"r.io": "{}"}}}}"#, name(what));
    assert_eq!(
        look(&with("echo"), "r.io", "a").await,
        Ok(password("get", "r.io"))
    );
    assert_eq!(look(&with("none"), "r.io", "a").await, Ok(None));
    for (what, reason) in [
        ("fail", "failed"),
        ("junk", "no JSON"),
        ("flood", "more than"),
        ("absent", "cannot be run"),
    ] {
        let error = look(&with(what), "r.io", "a").await.unwrap_err();
        assert!(
            error.contains(reason) && !error.contains("hunter2"),
            "{error}"
        );
    }
    let evil = r#"{"credHelpers": {"r.io": "../../bin/sh"}}"#;
    assert!(
        look(evil, "r.io", "a")
            .await
            .unwrap_err()
            .contains("no program's name")
    );
    let all = format!(
        r#"{{"auths": {{"docker.io": {{}}}}, "credsStore": "{}"}}"#,
        name("echo")
    );
    let hub = look(&all, "docker.io", "library/a").await;
    assert_eq!(hub, Ok(password("get", "https://index.docker.io/v1/")));
}
