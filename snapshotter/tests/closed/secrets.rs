//! Nothing of a secret in anything that can be read: logs at TRACE, answers over gRPC, `status`, command
//! lines, files of the root directory.
//!
//! The daemon runs as it does on a node, on a registry with log-in, signed URLs and headers of hosts.toml,
//! which then fails in every way that makes it talk about them.

use std::fs;

use larder_test_support::registry::{Fault, On};

use crate::daemon::{PASSWORD, World, text};

/// Ways to fail that make a client speak of what it sent.
fn faults() -> Vec<(On, Fault)> {
    vec![
        (On::All, Fault::Echo(500)),
        (On::All, Fault::Echo(403)),
        (On::All, Fault::Echo(404)),
        (On::All, Fault::Echo(418)),
        (On::Cdn, Fault::Echo(403)),
        (On::Cdn, Fault::Echo(400)),
        (
            On::All,
            Fault::Challenge("Bearer realm=\"http://canary:canary@127.0.0.1:1/token\"".into()),
        ),
        (
            On::Blobs,
            Fault::RedirectTo("http://canary:canary@127.0.0.1:1/x?sig=canary".into()),
        ),
        (
            On::Blobs,
            Fault::RedirectTo("ftp://canary:canary@127.0.0.1/x?sig=canary".into()),
        ),
        (On::Blobs, Fault::RedirectLoop),
        (On::Cdn, Fault::Reset),
        (On::Cdn, Fault::WrongContentRange),
        (On::Cdn, Fault::FlippedBit),
        (On::Cdn, Fault::Portal),
    ]
}

/// Promise: a daemon that logs everything, on a registry that repeats everything, says nothing of the
/// password, the tokens, the signed URLs or the headers of hosts.toml, to anybody; nor does it keep them.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_anything_that_a_daemon_says_or_keeps() {
    let mut world = World::new();
    world.start().await;
    assert!(world.prepare(0).await, "{}", world.log());
    assert_eq!(world.read(0, "f0").await, None, "{}", world.log());
    // What is searched for was there to be found.
    let seen = world.registry.requests();
    assert!(
        seen.iter()
            .any(|one| one.authorized && one.headers.contains_key("x-larder-test"))
    );
    assert!(
        seen.iter()
            .any(|one| one.cdn && one.query.contains("canary-signature"))
    );
    for (number, (on, fault)) in faults().into_iter().enumerate() {
        world.registry.fault(on, fault.clone());
        let file = format!("f{}", 1 + number % 7);
        // Each file fails once; what was fetched before a fault is read from the store.
        let _ = world.read(0, &file).await;
        if number < 8 {
            world.prepare(1 + number).await;
        }
        let (root, socket) = (world.path("root"), world.path("config.toml"));
        world.run(&["status", "--root", text(&root)]);
        world.run(&[
            "status",
            "--json",
            "--config",
            text(&socket),
            "--root",
            text(&root),
        ]);
        world.registry.clear_faults();
        world.registry.revoke_tokens();
        world.registry.expire_urls();
    }
    world.log_in("canary-wrong-password");
    world.prepare(9).await;
    let _ = world.read(0, "f7").await;
    world.command_lines();
    let log = world.log();
    assert!(log.contains("\"TRACE\""), "{log}");
    assert!(log.contains("<redacted>"), "nothing was repeated: {log}");
    let found = world.found();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Promise: the same of `mount`, by hand, with and without success.
#[test]
fn no_secret_is_in_what_mount_says() {
    let mut world = World::new();
    let at = world.path("at");
    fs::create_dir(&at).unwrap();
    let (root, config) = (world.path("root"), world.path("config.toml"));
    let reference = world.registry.reference("team/app", "1");
    for password in [PASSWORD, "canary-wrong-password"] {
        for fault in [
            None,
            Some(Fault::Echo(500)),
            Some(Fault::Echo(401)),
            Some(Fault::Portal),
        ] {
            world.log_in(password);
            if let Some(fault) = fault {
                world.registry.fault(On::All, fault);
            }
            let words = [
                "mount",
                "--detach",
                "--config",
                text(&config),
                "--root",
                text(&root),
            ];
            world.run(&[&words[..], &[&reference, text(&at)]].concat());
            world.registry.clear_faults();
        }
    }
    fs::create_dir_all(&root).unwrap();
    let found = world.found();
    assert!(found.is_empty(), "{}", found.join("\n"));
    assert!(
        world.said.iter().any(|said| said.contains("credentials")),
        "{:?}",
        world.said
    );
}
