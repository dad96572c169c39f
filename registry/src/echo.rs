//! What a request carried in secret, kept beside its answer: registries, proxies and object stores
//! repeat in their errors what they were asked with, and errors end up in logs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Request;
use reqwest::header::CONTENT_TYPE;

use crate::secret::Secret;

/// Shortest text that is hidden, bytes: hiding one or two letters would only spoil the words, and no
/// secret is so short.
const HIDDEN_BYTES_MIN: usize = 4;

/// Parameters that name what is asked for, and may be repeated. Every other one may be a signature.
const TOLD: [&str; 11] = [
    "service",
    "scope",
    "ns",
    "digest",
    "n",
    "last",
    "from",
    "mount",
    "artifactType",
    "grant_type",
    "client_id",
];

/// The secrets of one request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sent(Vec<Secret>);

impl Sent {
    /// The sensitive headers, signed parameters and refresh tokens of `request`.
    pub(crate) fn of(request: &Request) -> Self {
        let mut sent = Self::default();
        for value in request.headers().values().filter(|v| v.is_sensitive()) {
            if let Ok(text) = value.to_str() {
                sent.add_header(text);
            }
        }
        if let Some(query) = request.url().query() {
            sent.add_parameters(query);
        }
        if let Some(body) = request.body().and_then(reqwest::Body::as_bytes)
            && is_form(request)
        {
            sent.add_parameters(&String::from_utf8_lossy(body));
        }
        // The longest first, or a part of one would keep the rest of it from being found.
        sent.0
            .sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
        sent
    }

    /// `text` without any of them.
    pub(crate) fn hide(&self, mut text: String) -> String {
        for secret in &self.0 {
            if text.contains(secret.expose()) {
                text = text.replace(secret.expose(), "<redacted>");
            }
        }
        text
    }

    fn add(&mut self, text: &str) {
        if text.len() >= HIDDEN_BYTES_MIN {
            self.0.push(Secret::new(text));
        }
    }

    fn add_header(&mut self, text: &str) {
        self.add(text);
        let Some((scheme, rest)) = text.split_once(' ') else {
            return;
        };
        self.add(rest);
        if scheme.eq_ignore_ascii_case("basic")
            && let Ok(pair) = STANDARD.decode(rest.trim())
            && let Ok(pair) = String::from_utf8(pair)
        {
            self.add(&pair);
            if let Some((_, password)) = pair.split_once(':') {
                self.add(password);
            }
        }
    }

    fn add_parameters(&mut self, query: &str) {
        for raw in query.split('&') {
            let (name, value) = raw.split_once('=').unwrap_or(("", raw));
            if TOLD.contains(&name) {
                continue;
            }
            self.add(value);
            for (_, decoded) in url::form_urlencoded::parse(raw.as_bytes()) {
                self.add(&decoded);
            }
        }
    }
}

fn is_form(request: &Request) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    kind.is_some_and(|kind| kind == "application/x-www-form-urlencoded")
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{AUTHORIZATION, HeaderValue};
    use reqwest::{Method, Url};

    fn request(url: &str) -> Request {
        Request::new(Method::GET, Url::parse(url).unwrap())
    }

    fn with_authorization(text: &str) -> Request {
        let mut request = request("https://r.io/v2/");
        let mut value = HeaderValue::try_from(text).unwrap();
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
        request
    }

    /// Promise: whatever of a secret a registry repeats, whole or taken apart, is not repeated here.
    #[test]
    fn what_was_sent_in_secret_is_not_repeated() {
        let basic = format!("Basic {}", STANDARD.encode("anna:hunter2"));
        for (request, said, told) in [
            (
                with_authorization("Bearer tok.en-1"),
                "no: 'Bearer tok.en-1' (tok.en-1)",
                "no: '<redacted>' (<redacted>)",
            ),
            (
                with_authorization(&basic),
                "anna:hunter2 and hunter2 are wrong",
                "<redacted> and <redacted> are wrong",
            ),
            (
                request("https://cdn.io/b?X-Sig=ab%2Fcd12&scope=repository:a:pull"),
                "ab%2Fcd12 ab/cd12 repository:a:pull",
                "<redacted> <redacted> repository:a:pull",
            ),
        ] {
            assert_eq!(Sent::of(&request).hide(said.to_owned()), told);
        }
        let mut form = request("https://r.io/token");
        let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
        form.headers_mut().insert(CONTENT_TYPE, kind);
        *form.body_mut() = Some("grant_type=refresh_token&refresh_token=re%2Bfresh".into());
        let sent = Sent::of(&form);
        assert_eq!(
            sent.hide("re+fresh refresh_token".into()),
            "<redacted> refresh_token"
        );
        assert!(!format!("{sent:?}").contains("fresh"));
    }
}
