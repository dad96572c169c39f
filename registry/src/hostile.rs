//! Whatever a registry, a file or a user sends, no parser panics.

use std::time::SystemTime;

use proptest::prelude::*;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

use crate::{Reference, calendar, oci, retry};

/// Texts near the grammars that are parsed here: random ones rarely get past the first byte.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("Bearer "),
        Just("realm=\""),
        Just("https://r.io/"),
        Just("sha256:"),
        Just("bytes "),
        Just("2026"),
        Just("1120T"),
        Just(" Nov "),
        Just("GMT"),
        Just("Z"),
        Just("18446744073709551615"),
        Just("[host.\""),
        Just("\"]\n"),
        Just("client = [["),
        Just("ü"),
        Just(","),
        Just("-"),
        Just("/"),
        Just(":"),
        Just("="),
        Just("@"),
    ];
    let near = prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat());
    prop_oneof![near, ".{0,40}"]
}

proptest! {
    #[test]
    fn texts_never_panic(text in text()) {
        let _ = retry::retry_after(&text, SystemTime::UNIX_EPOCH);
        let _ = calendar::iso_date(&text);
        let _ = crate::hosts::parse(&text);
        let _ = serde_json::from_str::<oci::ImageIndex>(&text);
        if let Ok(value) = HeaderValue::from_str(&text) {
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]);
            let _ = crate::auth::read_challenge(&headers);
        }
    }

    /// What is accepted as a name is what it prints as, and fits a URL as it is.
    #[test]
    fn accepted_names_are_stable(text in "[a-zA-Z0-9._:/@-]{0,40}") {
        if let Ok(reference) = text.parse::<Reference>() {
            let long = reference.to_string();
            prop_assert_eq!(long.parse::<Reference>(), Ok(reference.clone()));
            let url = format!("https://{}/v2/{}/x", reference.registry(), reference.repository());
            let path = url::Url::parse(&url).map(|url| url.path().to_owned());
            prop_assert_eq!(path, Ok(format!("/v2/{}/x", reference.repository())));
        }
    }
}
