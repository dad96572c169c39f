//! The parsers of this crate, each with what holds whatever it is given: for the fuzz targets, and
//! for tests with random input. No part of the library.

use std::time::{Duration, SystemTime};

use reqwest::header::{
    CACHE_CONTROL, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE,
};
use url::Url;

use crate::Reference;
use crate::oci::{ImageIndex, Manifest};

fn headers(name: HeaderName, text: &str) -> Option<HeaderMap> {
    let value = HeaderValue::from_str(text).ok()?;
    Some(HeaderMap::from_iter([(name, value)]))
}

/// A challenge that is accepted leads to a web server, and costs at most a scope for each word.
pub fn www_authenticate(text: &str) {
    if let Some(headers) = headers(WWW_AUTHENTICATE, text) {
        crate::auth::fuzzing::challenge(&headers, text.len());
    }
}

/// A range that is accepted is not empty, and within the whole.
pub fn content_range(text: &str) {
    if let Some(headers) = headers(CONTENT_RANGE, text)
        && let Some((start, end, total)) = crate::blob::fuzzing::content_range(&headers)
    {
        assert!(start < end && total.is_none_or(|total| end <= total));
    }
}

/// A wait that is believed is bearable, and no redirect is believed for more than an hour.
pub fn times(text: &str) {
    let now = SystemTime::UNIX_EPOCH + Duration::from_hours(498_660);
    if let Some(wait) = crate::retry::retry_after(text, now) {
        assert!((Duration::from_millis(100)..=Duration::from_secs(30)).contains(&wait));
    }
    let _ = crate::calendar::iso_date(text);
    let longest = Duration::from_hours(1);
    let mut url = Url::parse("https://cdn.io/b").expect("a URL");
    url.set_query(Some(text));
    assert!(crate::redirect::fuzzing::life(&url, &HeaderMap::new(), now) <= longest);
    if let Some(headers) = headers(CACHE_CONTROL, text) {
        url.set_query(None);
        assert!(crate::redirect::fuzzing::life(&url, &headers, now) <= longest);
    }
}

/// What is accepted as a name is what it prints as, and fits a URL as it is.
pub fn reference(text: &str) {
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let long = reference.to_string();
    assert_eq!(long.parse::<Reference>(), Ok(reference.clone()));
    let path = format!("/v2/{}/x", reference.repository());
    let url = Url::parse(&format!("https://{}{path}", reference.registry()));
    assert_eq!(url.map(|url| url.path().to_owned()), Ok(path));
}

/// A hosts.toml has a bounded number of hosts, and an error never quotes what may be a secret.
pub fn hosts_toml(text: &str) {
    if let Err(error) = crate::hosts::fuzzing::parse(text) {
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// A document that is accepted is written back as what it was read as.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let again = serde_json::to_vec(&manifest).expect("what was read can be written");
        assert_eq!(Manifest::parse(&again).expect("and read again"), manifest);
        assert!(ImageIndex::parse(bytes).is_err(), "it is two things");
    }
}

/// The same of an index.
pub fn index(bytes: &[u8]) {
    if let Ok(index) = ImageIndex::parse(bytes) {
        let again = serde_json::to_vec(&index).expect("what was read can be written");
        assert_eq!(ImageIndex::parse(&again).expect("and read again"), index);
    }
}

/// The answers of token servers and credential programs, and credential files: an error repeats
/// nothing of them.
pub fn credentials(bytes: &[u8]) {
    for error in [
        crate::auth::fuzzing::token(bytes).err(),
        crate::credentials::fuzzing::file(bytes).err(),
        crate::credentials::fuzzing::program(bytes).err(),
    ] {
        let told = error.unwrap_or_default();
        assert!(!told.contains("hunter2"), "{told}");
    }
}

/// What a registry says about an error is repeated briefly, and never obeyed by a terminal.
pub fn refusal(bytes: &[u8]) {
    let told = crate::exchange::fuzzing::words(bytes);
    assert!(told.chars().count() <= 303, "{told}");
    assert!(!told.chars().any(char::is_control), "{told:?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            Just("hunter2"),
            Just("header = "),
            Just("{\"token\":"),
            Just("{\"auths\":{"),
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
            www_authenticate(&text);
            content_range(&text);
            times(&text);
            hosts_toml(&text);
            manifest(text.as_bytes());
            index(text.as_bytes());
            credentials(text.as_bytes());
            refusal(text.as_bytes());
        }

        /// Found by fuzzing: the last digit of a long fraction changed on the way.
        #[test]
        fn unknown_fields_are_written_back_as_they_were_read(number in any::<f64>(), digits in "[0-9]{1,40}") {
            for number in [format!("{number:e}"), format!("0.{digits}")] {
                let text = format!(r#"{{"schemaVersion":2,"manifests":[],"x":{number}}}"#);
                prop_assume!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
                assert!(ImageIndex::parse(text.as_bytes()).is_ok(), "{text}");
                index(text.as_bytes());
            }
        }

        #[test]
        fn accepted_names_are_stable(text in "[a-zA-Z0-9._:/@-]{0,40}") {
            reference(&text);
        }
    }
}
