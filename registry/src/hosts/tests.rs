//! What a certs.d directory makes of a registry's name.

use super::*;

fn hosts(dir: &std::path::Path, plain_http: bool) -> Hosts {
    let options = ClientOptions {
        hosts_dir: Some(dir.into()),
        plain_http,
        ..ClientOptions::default()
    };
    Hosts::new(&options).unwrap()
}

fn all(setup: &Setup) -> Vec<&EndpointSetup> {
    setup.mirrors.iter().chain([&setup.server]).collect()
}

/// Each endpoint as `base namespace pull resolve`.
fn describe(setup: &Setup) -> Vec<String> {
    let endpoint = |e: &EndpointSetup| {
        let namespace = e.namespace.as_deref().unwrap_or("-");
        let Capabilities { pull, resolve } = e.capabilities;
        format!("{} {namespace} {pull} {resolve}", e.base)
    };
    all(setup).into_iter().map(endpoint).collect()
}

#[test]
fn registries_without_configuration_get_tls_except_on_loopback() {
    let dir = tempfile::tempdir().unwrap();
    for (registry, plain_http, base) in [
        ("r.io", false, "https://r.io/v2/"),
        ("r.io:5000", false, "https://r.io:5000/v2/"),
        ("docker.io", false, "https://registry-1.docker.io/v2/"),
        ("localhost:5000", false, "http://localhost:5000/v2/"),
        ("127.8.0.1:5000", false, "http://127.8.0.1:5000/v2/"),
        ("[::1]:5000", false, "http://[::1]:5000/v2/"),
        ("128.0.0.1", false, "https://128.0.0.1/v2/"),
        ("localhost.evil.io", false, "https://localhost.evil.io/v2/"),
        ("r.io", true, "http://r.io/v2/"),
    ] {
        let setup = hosts(dir.path(), plain_http).read(registry).unwrap();
        assert_eq!(
            describe(&setup),
            [format!("{base} - true true")],
            "{registry}"
        );
        assert_eq!(all(&setup)[0].host, registry);
    }
}

#[test]
fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("docker.io");
    std::fs::create_dir(&place).unwrap();
    let text = r#"
        server = "https://docker.io"
        [host."https://zebra.io"]
          capabilities = ["pull"]
        [host."http://apple.io:5000/team/v2"]
          capabilities = ["pull", "resolve", "push"]
          dial_timeout = "1s"
        [host."mango.io/proxy"]
        [host."https://kept.io/odd/path"]
          override_path = true
          [host."https://kept.io/odd/path".header]
            x-one = "1"
            x-two = ["2", "3"]
        [host."https://odd.io".rewrite]
          "a" = "b"
    "#;
    std::fs::write(place.join("hosts.toml"), text).unwrap();
    let setup = hosts(dir.path(), true).read("docker.io").unwrap();
    assert_eq!(
        describe(&setup),
        [
            "https://zebra.io/v2/ docker.io true false",
            "http://apple.io:5000/team/v2/ docker.io true true",
            "https://mango.io/proxy/v2/ docker.io true true",
            "https://kept.io/odd/path/ docker.io true true",
            "https://odd.io/v2/ docker.io true true",
            "https://registry-1.docker.io/v2/ - true true",
        ]
    );
    assert_eq!(all(&setup)[1].connect, Duration::from_secs(1));
    assert_eq!(all(&setup)[3].headers.len(), 3);
    assert!(!format!("{setup:?}").contains("\"3\""), "{setup:?}");
    assert_eq!(all(&setup)[5].host, "docker.io");
}

#[test]
fn a_directory_is_found_by_name_port_or_default() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, server: &str| {
        let place = dir.path().join(name);
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("hosts.toml"), format!("server = \"{server}\"\n")).unwrap();
    };
    write("a.io_5000_", "https://by-port.io");
    write("b.io", "https://by-name.io");
    write("_default", "https://by-default.io");
    write("c.io:5000", "https://by-colon.io");
    for (registry, base) in [
        ("a.io:5000", "https://by-port.io/v2/"),
        ("b.io", "https://by-name.io/v2/"),
        ("c.io:5000", "https://by-colon.io/v2/"),
        ("d.io", "https://by-default.io/v2/"),
    ] {
        let setup = hosts(dir.path(), false).read(registry).unwrap();
        assert_eq!(all(&setup)[0].base.as_str(), base);
        assert_eq!(all(&setup)[0].namespace.as_deref(), Some(registry));
    }
}

/// Two authorities, as far as a file shows them.
const A: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
const B: &str = "-----BEGIN CERTIFICATE-----\nBBBB\n-----END CERTIFICATE-----\n";

#[test]
fn certificates_are_found_in_both_layouts() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for (path, text) in [
        ("docker.local:1/ca.crt", A),
        ("docker.local:1/me.cert", "C"),
        ("docker.local:1/me.key", "K"),
        ("new.local/ca.pem", A),
        ("new.local/c.pem", "C"),
        ("new.local/k.pem", "K"),
        (
            "new.local/hosts.toml",
            "ca = [\"ca.pem\"]\nclient = [[\"c.pem\", \"k.pem\"]]\nskip_verify = true",
        ),
        ("localhost:1/ca.crt", A),
    ] {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    for (registry, skip_verify, identities) in [
        ("docker.local:1", false, 1),
        ("new.local", true, 1),
        ("localhost:1", false, 0),
    ] {
        let setup = hosts(root, false).read(registry).unwrap();
        let trust = &all(&setup)[0].trust;
        assert_eq!(trust.authorities, [A.as_bytes()], "{registry}");
        assert_eq!(trust.identities, vec![b"C\nK"; identities], "{registry}");
        assert_eq!(trust.skip_verify, skip_verify, "{registry}");
        // With certificates for it, even a loopback registry speaks TLS.
        assert_eq!(all(&setup)[0].base.scheme(), "https", "{registry}");
    }
}

/// containerd's documents show a registry's own CA in an entry for its own address.
#[test]
fn an_entry_for_the_server_itself_tells_its_authority_once() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("r.io");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("own.pem"), A).unwrap();
    std::fs::write(place.join("other.pem"), B).unwrap();
    let own = "[host.\"https://mirror.io\"]\nca = \"other.pem\"\n[host.\"https://r.io\"]\nca = \"own.pem\"\n";
    for (top, authority) in [
        ("", A),
        ("server = \"https://r.io\"\n", A),
        ("server = \"https://r.io\"\nca = \"other.pem\"\n", B),
    ] {
        std::fs::write(place.join("hosts.toml"), format!("{top}{own}")).unwrap();
        let setup = hosts(dir.path(), false).read("r.io").unwrap();
        let found = &setup.server.trust.authorities;
        assert_eq!(*found, [authority.as_bytes()], "{top}");
    }
}

#[test]
fn a_broken_file_is_named_and_its_secrets_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("r.io");
    std::fs::create_dir(&place).unwrap();
    let many = (0..17)
        .map(|n| format!("[host.\"h{n}.io\"]"))
        .collect::<Vec<_>>()
        .join("\n");
    for text in [
        "[host.\"x\".header]\nauthorization = \"hunter2\" nonsense",
        "server = \"https://user:hunter2@r.io\"",
        "server = \"ftp://r.io\"",
        "server = 7",
        "ca = \"missing.pem\"",
        // A file, and no certificate in it.
        "ca = \"hosts.toml\"",
        "dial_timeout = \"soon\"",
        "[host.\"x\".header]\n\"bad name\" = \"hunter2\"",
        &many,
    ] {
        std::fs::write(place.join("hosts.toml"), text).unwrap();
        let error = hosts(dir.path(), false).read("r.io").unwrap_err();
        assert!(!error.contains("hunter2"), "{error}");
        let file = place.join("hosts.toml").display().to_string();
        assert!(error.contains(&file), "{error}");
    }
}

/// Regression: an address that is none and a certificate that is not there were told without the file that
/// names them.
///
/// Promise: a value that cannot be used is told with file, line and key.
#[test]
fn what_cannot_be_used_is_told_with_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("r.io");
    std::fs::create_dir(&place).unwrap();
    let file = place.join("hosts.toml");
    for (text, told) in [
        (
            "\nserver = \"ftp://x\"",
            "line 2: server: \"ftp://x\" is no address",
        ),
        ("ca = \"/nope\"", "line 1: ca: cannot read /nope"),
        (
            "# one\n\n[host.\"https://m.io\"]\n\n  ca = [\"/nope\"]",
            "line 5: https://m.io: ca: cannot read /nope",
        ),
        (
            "[host.\"ftp://m.io\"]",
            "line 1: ftp://m.io: \"ftp://m.io\" is no address",
        ),
        (
            "[host.\"u:hunter2@m.io\"]\nclient = [[\"a\", \"b\", \"c\"]]",
            "line 2: m.io: client: an entry is no [certificate, key]",
        ),
        (
            "dial_timeout = \"soon\"",
            "line 1: dial_timeout: \"soon\" is no time",
        ),
        (
            "[host.\"https://m.io\".header]\n\"bad name\" = \"hunter2\"",
            "line 1: https://m.io: header: \"bad name\" is no header",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let error = hosts(dir.path(), false).read("r.io").unwrap_err();
        let expected = format!("cannot use {}, {told}", file.display());
        assert!(error.starts_with(&expected), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
