//! What is an image's name and what is not.

use super::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// The long form is what Docker and containerd make of the same text.
#[test]
fn short_names_mean_what_they_mean_to_docker() {
    let pinned = format!("a.io/r@sha256:{HEX}");
    let both = format!("a.io/r:1@sha256:{HEX}");
    for (text, long) in [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        (
            "index.docker.io/library/alpine:1",
            "docker.io/library/alpine:1",
        ),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:x", "localhost:5000/app:x"),
        ("host:5000/a/b/c:T_1.2-3", "host:5000/a/b/c:T_1.2-3"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
        ("[2001:db8::1]/a:1", "[2001:db8::1]/a:1"),
        ("Upper/app:1", "Upper/app:1"),
        ("r.io/a__b/c-_d", ""),
        ("r.io/a__b/c--d.e_f:1", "r.io/a__b/c--d.e_f:1"),
        (&pinned, &pinned),
        (&both, &both),
    ] {
        match text.parse::<Reference>() {
            Ok(reference) => assert_eq!(reference.to_string(), long, "{text}"),
            Err(error) => assert!(long.is_empty(), "{error}"),
        }
    }
}

#[test]
fn malformed_names_are_refused() {
    let long = format!("r.io/{}", "a".repeat(251));
    let long_tag = format!("r.io/a:{}", "t".repeat(129));
    for text in [
        "",
        "/",
        ":tag",
        "r.io/",
        "a.8:2/7",
        "0x7f.1/a",
        "xn--a.io/a",
        "127.1/a",
        "r.io//a",
        "r.io/a/",
        "r.io/A",
        "r.io/../a",
        "r.io/a..b",
        "r.io/a___b",
        "r.io/.a",
        "r.io/a-",
        "r.io/a:",
        "r.io/a:-x",
        "r.io/a:x y",
        "r.io/a@",
        "r.io/a@sha256:00",
        "r.io/a@sha512:00",
        "r.io:port/a",
        "r.io:0/a",
        "r.io:99999/a",
        "-r.io/a",
        "r..io/a",
        "[::1/a",
        "[zz]:1/a",
        "[::1]x/a",
        "https://r.io/a",
        "r.io/a?x=y",
        "r.io/a b",
        "r.io/ä",
        HEX,
        &long,
        &long_tag,
    ] {
        assert!(text.parse::<Reference>().is_err(), "{text}");
    }
}

#[test]
fn the_identifier_prefers_the_digest() {
    let reference: Reference = "r.io/a:1".parse().unwrap();
    assert_eq!(reference.identifier(), "1");
    let digest = Digest::of(b"x");
    assert_eq!(
        reference.with_digest(digest).identifier(),
        digest.to_string()
    );
    assert_eq!(reference.with_tag("2").unwrap().to_string(), "r.io/a:2");
    assert!(reference.with_tag("../2").is_err());
}

#[test]
fn docker_hub_is_served_by_another_host() {
    assert_eq!(Reference::api_host("docker.io"), "registry-1.docker.io");
    assert_eq!(Reference::api_host("quay.io"), "quay.io");
}
