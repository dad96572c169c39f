//! Nothing of a secret in what the program says or keeps, with everything logged that can be.

use std::fs;
use std::time::Duration;

use larder_test_support::registry::{Auth, Cdn, FakeRegistry, Fault, On, Settings};

use crate::fixture::*;
use crate::registry::pushed;

/// What must not be found: the canaries, the two as a header has them, and what tokens are called.
const SECRETS: [&str; 5] = ["canary", "Y2FuYXJ5", "token-1", "token-2", "token-3"];

fn settings() -> Settings {
    Settings {
        auth: Auth::Token {
            account: Some(("canary-user".into(), "canary-password".into())),
            identity: None,
            lifetime: Duration::from_mins(5),
        },
        cdn: Some(Cdn {
            query: "X-Amz-Signature=canary-signature".into(),
            hops: 1,
            ..Cdn::default()
        }),
        ..Settings::default()
    }
}

/// A docker configuration with this password for the registry.
fn log_in(world: &World, registry: &FakeRegistry, password: &str) {
    let entry = format!(r#"{{"username": "canary-user", "password": "{password}"}}"#);
    let file = format!(r#"{{"auths": {{"{}": {entry}}}}}"#, registry.host());
    fs::create_dir_all(world.path("docker")).unwrap();
    fs::write(world.path("docker/config.json"), file).unwrap();
}

/// Promise: conversions that succeed, and that fail in ways that repeat what was sent, say nothing of
/// password, tokens and signed URLs at TRACE of all libraries, nor leave them in the cache.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_what_a_conversion_says_or_keeps() {
    let (world, registry, _) = pushed(settings()).await;
    let faults = [
        None,
        Some((On::All, Fault::Echo(500))),
        Some((On::All, Fault::Echo(403))),
        Some((On::Cdn, Fault::Echo(403))),
        Some((On::Path("PUT", "/uploads/"), Fault::Echo(418))),
        Some((
            On::Blobs,
            Fault::RedirectTo("http://canary:canary@127.0.0.1:1/x?sig=canary".into()),
        )),
    ];
    let mut said = Vec::new();
    for (number, fault) in faults.into_iter().enumerate() {
        for password in ["canary-password", "canary-wrong-password"] {
            log_in(&world, &registry, password);
            if let Some((on, fault)) = fault.clone() {
                registry.fault(on, fault);
            }
            let convert = format!("convert R/a/source:v1 R/b/dest{number}:v1");
            let convert = convert.replace("R/", &format!("{}/", registry.host()));
            let mut command = world.command(&convert);
            command
                .env("LARDER_LOG", "trace")
                .env("DOCKER_CONFIG", world.path("docker"));
            let ran = tokio::task::spawn_blocking(move || run(&mut command)).await;
            said.push(ran.unwrap());
            registry.clear_faults();
            registry.revoke_tokens();
            fs::remove_dir_all(world.path("cache")).unwrap_or_default();
        }
    }
    assert_eq!(said[0].code, 0, "{}", said[0].err);
    assert!(said[1..].iter().all(|ran| ran.code != 0));
    assert!(said[0].err.contains("TRACE"), "{}", said[0].err);
    let last = |ran: &Ran| ran.err.lines().last().unwrap_or_default().to_owned();
    let told: Vec<_> = said.iter().map(last).collect();
    assert!(
        told.iter().any(|one| one.contains("<redacted>")),
        "{told:#?}"
    );
    let signed = |seen: &larder_test_support::registry::Seen| {
        seen.cdn && seen.query.contains("canary-signature")
    };
    assert!(registry.requests().iter().any(signed));
    let found: Vec<_> = said
        .iter()
        .flat_map(|ran| ran.out.lines().chain(ran.err.lines()))
        .filter(|line| SECRETS.iter().any(|secret| line.contains(secret)))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}
