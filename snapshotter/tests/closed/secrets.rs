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

/// Promise: the same of what `pull`, `fetch-blobs`, `pin` and `doctor` say, with and without success, of what they
/// leave in containerd (labels, names, documents, its own log), of the daemon's metrics, and of what the daemon
/// says meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_what_pull_and_fetch_blobs_say_or_leave() {
    let mut world = World::new();
    let config = world.path("config.toml");
    let metrics = world.path("metrics.sock");
    let settings = fs::read_to_string(&config).unwrap();
    let address = world.address();
    let settings = settings.replace("none.sock", "c.sock");
    let settings = format!("metrics_address = \"{}\"\n{settings}", metrics.display());
    fs::write(&config, settings).unwrap();
    world.start().await;
    world.start_containerd().await;
    let first = world.push_image("1");
    let place = ["--config", text(&config), "--address", text(&address)];
    let command = |world: &mut World, words: &[&str], image: &str| {
        world.run(&with_place(words, place, image));
    };
    command(&mut world, &["pull"], &first);
    let pulled = world.said.join("\n");
    assert!(pulled.contains("2 of 2 layers loaded lazily"), "{pulled}");
    for (number, (on, fault)) in faults().into_iter().enumerate() {
        let other = world.push_image(&format!("other-{number}"));
        world.registry.fault(on, fault);
        world.run_together(&[
            &with_place(&["pull"], place, &other),
            &with_place(&["pull", "--json"], place, &other),
            &with_place(&["fetch-blobs"], place, &first),
        ]);
        world.registry.clear_faults();
        world.registry.revoke_tokens();
        world.registry.expire_urls();
    }
    world.log_in("canary-wrong-password");
    let last = world.push_image("last");
    command(&mut world, &["pull"], &last);
    command(&mut world, &["fetch-blobs", "--json"], &first);
    world.log_in(PASSWORD);
    command(&mut world, &["fetch-blobs"], &first);
    ask_around(&mut world, &first, &config, &address);
    world.said.push(page(&metrics).await);
    world.command_lines();
    let said = world.said.join("\n");
    for part in [
        "refused",
        "<redacted>",
        "larder_build_info",
        "blobs fetched",
        "distribution.source",
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let found = world.found();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// A command's own words, where configuration and containerd are, and the image.
fn with_place<'a>(words: &[&'a str], place: [&'a str; 4], image: &'a str) -> Vec<&'a str> {
    [&words[..1], &place, &words[1..], &[image]].concat()
}

/// Runs what tells or keeps something of an image, and lists what containerd has of it.
fn ask_around(world: &mut World, image: &str, config: &std::path::Path, address: &std::path::Path) {
    let root = world.path("root");
    for words in [
        &[
            "pin",
            "--root",
            text(&root),
            "--address",
            text(address),
            image,
        ][..],
        &["status", "--json", "--root", text(&root)],
        &[
            "unpin",
            "--root",
            text(&root),
            "--address",
            text(address),
            image,
        ],
        &["doctor", "--json", "--config", text(config)],
    ] {
        world.run(words);
    }
    for words in [
        &["content", "ls"][..],
        &["images", "ls"],
        &["leases", "ls"],
        &["snapshots", "--snapshotter", "larder", "ls"],
    ] {
        let mut ctr = std::process::Command::new("ctr");
        let output = ctr.arg("-a").arg(address).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}");
        world
            .said
            .push(String::from_utf8_lossy(&output.stdout).into_owned());
    }
}

/// The metrics.
async fn page(socket: &std::path::Path) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
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
