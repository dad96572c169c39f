//! One request and its answer: sent, logged in where asked, and named when it is refused.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, DATE, HeaderMap, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use rustls::CertificateError;
use url::Url;

use crate::auth::{Access, Grant, Sessions};
use crate::authority::host_of;
use crate::calendar;
use crate::clock::Clock;
use crate::connections::Lent;
use crate::echo::Sent;
use crate::endpoint::Endpoint;
use crate::error::Cause;
use crate::options::HOSTS_DIR;
use crate::{retry, transport};

/// What is read of a refusal, bytes: the error documents of registries have a few hundred.
const REFUSAL_BYTES_MAX: usize = 16 << 10;

/// What is repeated of a registry's own words, characters: four lines of a terminal. Their messages
/// have about fifty.
const DETAIL_CHARS_MAX: usize = 300;

/// How long a refusal's body is waited for: as long as Prepare waits for everything. The body mostly
/// comes with the status, which is what matters.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(2);

/// What to do about a proxy that answers 407.
const PROXY_REFUSES: &str = "the proxy on the way wants a user and a password, or other ones: \
    http://USER:PASSWORD@PROXY in HTTP_PROXY and HTTPS_PROXY";

/// The body of a request, which can be sent again.
#[derive(Clone)]
pub(crate) enum Payload {
    Empty,
    Bytes(Bytes),
    /// A body made anew for each attempt, and its length.
    Stream(Arc<dyn Fn() -> reqwest::Body + Send + Sync>, u64),
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Self::Empty => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Stream(_, bytes) => *bytes,
        };
        write!(f, "Payload({bytes} bytes)")
    }
}

/// A request to a registry.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    pub(crate) access: Access,
    /// For the headers of the answer.
    pub(crate) timeout: Duration,
    /// Send neither credentials nor configured headers, wherever it goes.
    pub(crate) bare: bool,
}

/// Sends `call` to `endpoint`, logging in if it asks for that; any status is an answer.
pub(crate) async fn call(
    sessions: &Sessions,
    endpoint: &Endpoint,
    repository: &str,
    call: &Call,
) -> Result<Response, Cause> {
    let own = !call.bare && same_origin(&call.url, &endpoint.base);
    let fixed = endpoint.headers.contains_key(AUTHORIZATION);
    if !own || fixed {
        return once(endpoint, call, own, None).await;
    }
    let used = sessions.grant(endpoint, repository, &call.access).await?;
    let response = match &used {
        Some(grant) => showing(sessions, endpoint, repository, call, grant).await?,
        None => once(endpoint, call, own, None).await?,
    };
    if response.status() != StatusCode::UNAUTHORIZED {
        return Ok(response);
    }
    let headers = response.headers().clone();
    // Reading the body lets the connection be used again.
    let _ = read_refusal(response).await;
    let grant = sessions
        .challenged(endpoint, repository, &call.access, used.as_ref(), &headers)
        .await?;
    showing(sessions, endpoint, repository, call, &grant).await
}

/// Sends `call` to its own endpoint with `grant`: one at a time, as long as that is a password which the
/// registry has not taken yet.
async fn showing(
    sessions: &Sessions,
    endpoint: &Endpoint,
    repository: &str,
    call: &Call,
    grant: &Grant,
) -> Result<Response, Cause> {
    let shown = sessions
        .show(endpoint, repository, &call.access, grant)
        .await?;
    let response = once(endpoint, call, true, Some(&grant.header)).await?;
    match shown {
        Some(shown) if response.status() == StatusCode::UNAUTHORIZED => {
            let cause = refusal(response, &endpoint.host, &*endpoint.clock).await;
            Err(shown.refused(cause).await)
        }
        Some(shown) => {
            shown.taken();
            Ok(response)
        }
        None => Ok(response),
    }
}

async fn once(
    endpoint: &Endpoint,
    call: &Call,
    own: bool,
    authorization: Option<&reqwest::header::HeaderValue>,
) -> Result<Response, Cause> {
    let lent = endpoint.transport.client(&call.url, own)?;
    let mut headers = call.headers.clone();
    if own {
        headers.extend(endpoint.headers.clone());
    }
    if let Some(value) = authorization {
        headers.insert(AUTHORIZATION, value.clone());
    }
    let (method, url) = (call.method.clone(), call.url.clone());
    let host = if own { &endpoint.host } else { host_of(&url) }.to_owned();
    let request = request(lent.client(), method, url, headers, &call.payload);
    let sent = send(lent, request, &host, call.timeout).await;
    match &sent {
        Ok(response) => endpoint.counts.answered(response.status().as_u16()),
        Err(_) => endpoint.counts.broken(),
    }
    sent
}

/// Builds a request.
pub(crate) fn request(
    client: &Client,
    method: Method,
    url: Url,
    headers: HeaderMap,
    payload: &Payload,
) -> RequestBuilder {
    let wants_body = matches!(method, Method::POST | Method::PUT | Method::PATCH);
    let request = client.request(method, url).headers(headers);
    match payload {
        Payload::Empty if wants_body => request.body(Bytes::new()),
        Payload::Empty => request,
        Payload::Bytes(bytes) => request.body(bytes.clone()),
        Payload::Stream(body, length) => request
            .header(reqwest::header::CONTENT_LENGTH, *length)
            .body(body()),
    }
}

/// Sends a request and waits for the headers of its answer.
pub(crate) async fn send(
    lent: Lent<'_>,
    request: RequestBuilder,
    host: &str,
    timeout: Duration,
) -> Result<Response, Cause> {
    let request = request
        .build()
        .map_err(|error| Cause::Local(transport::chain(&error)))?;
    tracing::trace!(host, method = %request.method(), path = request.url().path(), "request");
    let sent = Sent::of(&request);
    let answer = tokio::time::timeout(timeout, lent.client().execute(request)).await;
    if answer.is_ok() {
        lent.heard();
    }
    match answer {
        Ok(Ok(mut response)) => {
            response.extensions_mut().insert(sent);
            Ok(response)
        }
        Ok(Err(error)) => Err(broken(&error, host)),
        Err(_elapsed) => Err(Cause::Connection {
            host: host.into(),
            detail: format!("no answer within {timeout:?}"),
        }),
    }
}

/// Why there was no answer, or not all of it.
pub(crate) fn broken(error: &reqwest::Error, host: &str) -> Cause {
    let host = host.to_owned();
    let detail = transport::chain(error);
    match tls_error(error) {
        Some(rustls::Error::InvalidMessage(_)) => {
            let detail = "it speaks no TLS; allow plain HTTP if that is right (--plain-http, on nodes registry.plain_http)";
            Cause::Untrusted {
                host,
                detail: detail.into(),
            }
        }
        Some(rustls::Error::InvalidCertificate(why)) => {
            let detail = unacceptable(why, &host);
            Cause::Untrusted { host, detail }
        }
        Some(
            rustls::Error::PeerIncompatible(_)
            | rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion),
        ) => {
            let detail = "it speaks no version of TLS that is safe: it needs 1.2 or 1.3";
            Cause::Untrusted {
                host,
                detail: detail.into(),
            }
        }
        Some(other) => Cause::Untrusted {
            host,
            detail: other.to_string(),
        },
        None if detail.contains("proxy authorization required") => Cause::Connection {
            host,
            detail: PROXY_REFUSES.into(),
        },
        None => Cause::Connection { host, detail },
    }
}

/// What is wrong with a certificate, and what to do.
fn unacceptable(why: &CertificateError, host: &str) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; renew it there, or mend the clock here".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; is the clock here right?".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name".into()
        }
        // Of another authority of the same name, the signature is what does not fit.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "its certificate comes from nobody who is trusted here; if it has a private CA, \
             put ca.crt into certs.d/{host}/ ({HOSTS_DIR}, or --certs-dir)"
        ),
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => format!(
            "it signed its certificate itself; if that is meant, \
             put the certificate of its CA into certs.d/{host}/ ({HOSTS_DIR}, or --certs-dir)"
        ),
        other => format!("its certificate is not acceptable: {other}"),
    }
}

/// The TLS error in a chain of errors, however often it is wrapped into I/O errors: those hide
/// what they wrap from `source`.
fn tls_error<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let wrapped = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// Whether two URLs are on the same server, so that credentials for one may go to the other.
pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host() == b.host()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// What the time was where an answer with `headers` comes from: dates in it mean that clock, which may
/// be years away from ours.
pub(crate) fn sent_at(headers: &HeaderMap, clock: &dyn Clock) -> SystemTime {
    let date = headers.get(DATE).and_then(|value| value.to_str().ok());
    date.and_then(calendar::http_date)
        .unwrap_or_else(|| clock.now())
}

/// Names a refusal by its status and by what the registry says about it.
pub(crate) async fn refusal(response: Response, host: &str, clock: &dyn Clock) -> Cause {
    let status = response.status().as_u16();
    let now = sent_at(response.headers(), clock);
    let asked = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    let retry_after = asked.and_then(|text| retry::retry_after(text, now));
    let sent = response.extensions().get::<Sent>().cloned();
    let detail = words(&read_refusal(response).await, &sent.unwrap_or_default());
    let host = host.to_owned();
    match status {
        301 | 302 | 303 | 307 | 308 => {
            let detail = format!(
                "what may not be redirected (status {status}): use the name it redirects to"
            );
            Cause::Redirect { host, detail }
        }
        401 => Cause::Unauthorized {
            host,
            detail,
            refused: false,
        },
        403 => Cause::Forbidden { detail },
        404 | 410 => Cause::NotFound { detail },
        400 if detail.contains("HTTP request was sent to HTTPS port")
            || detail.contains("HTTP request to an HTTPS server") =>
        {
            let detail = format!(
                "it speaks TLS and was asked in plain HTTP, as loopback registries are and those of \
                 --plain-http (on nodes registry.plain_http): leave that out, or write \
                 `server = \"https://{host}\"` into certs.d/{host}/hosts.toml"
            );
            Cause::Untrusted { host, detail }
        }
        407 => Cause::Connection {
            host,
            detail: PROXY_REFUSES.into(),
        },
        408 | 429 | 500 | 502 | 503 | 504 => Cause::Unavailable {
            host,
            status,
            retry_after,
            detail,
        },
        _ => Cause::Refused {
            host,
            status,
            detail,
        },
    }
}

async fn read_refusal(mut response: Response) -> Vec<u8> {
    let mut text = Vec::new();
    let read = async {
        while let Ok(Some(bytes)) = response.chunk().await {
            text.extend_from_slice(&bytes[..bytes.len().min(REFUSAL_BYTES_MAX)]);
            if text.len() >= REFUSAL_BYTES_MAX {
                break;
            }
        }
    };
    // Whatever has come by then is enough to say what is wrong.
    let _ = tokio::time::timeout(REFUSAL_TIMEOUT, read).await;
    text
}

/// The registry's own words, cut and cleaned, without what was `sent` in secret, with a leading
/// separator; or nothing.
fn words(body: &[u8], sent: &Sent) -> String {
    let document: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let said = match &document {
        Some(document) => {
            let errors = document.get("errors").and_then(|errors| errors.as_array());
            let first = errors.and_then(|errors| errors.first());
            let field = |name| {
                first
                    .and_then(|e| e.get(name))
                    .and_then(|text| text.as_str())
            };
            match (field("code"), field("message")) {
                (Some(code), Some(message)) if !message.is_empty() => format!("{code}: {message}"),
                (Some(one), _) | (None, Some(one)) => one.to_owned(),
                (None, None) => String::new(),
            }
        }
        None => plain_text(body).unwrap_or_default().to_owned(),
    };
    // Before anything is cut: half a secret is one, too.
    let said: String = sent
        .hide(said)
        .trim()
        .chars()
        .map(|c| if is_printable(c) { c } else { ' ' })
        .take(DETAIL_CHARS_MAX)
        .collect();
    if said.is_empty() {
        said
    } else {
        format!(" ({said})")
    }
}

/// A body that is no JSON, if it is text a log can hold. HTML and XML say nothing in one line, and
/// a single byte that is no text makes the rest of it suspect, too.
fn plain_text(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?.trim();
    let is_text = |c: char| is_printable(c) || c.is_ascii_whitespace();
    (!text.starts_with('<') && text.chars().all(is_text)).then_some(text)
}

/// Whether a character shows as itself. Terminals obey control characters, and those that turn the
/// direction of writing make a line look like another one.
fn is_printable(c: char) -> bool {
    let turns_or_hides = matches!(
        c,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
            | '\u{feff}' | '\u{fffd}'
    );
    !c.is_control() && !turns_or_hides
}

/// What is repeated of a refusal, for [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    pub(crate) fn words(body: &[u8]) -> String {
        super::words(body, &super::Sent::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: what a proxy sends instead of an error document never reaches a log raw.
    #[test]
    fn a_refusal_that_is_no_text_is_left_out() {
        for body in [
            &b"\xef\xbf\xbd=/\x1f\x8b\x08"[..],
            b"denied\xff\xfe",
            b"\x1b]0;title\x07denied",
            "\u{202e}denied".as_bytes(),
            b" \n <html>portal</html>",
            "\u{feff}<html>".as_bytes(),
        ] {
            assert_eq!(words(body, &Sent::default()), "", "{body:?}");
        }
        let json = r#"{"errors":[{"code":"DENIED","message":"no\u001b[31m\u202epull"}]}"#;
        let words = |body: &[u8]| words(body, &Sent::default());
        assert_eq!(words(json.as_bytes()), " (DENIED: no [31m pull)");
        assert_eq!(words("zu früh".as_bytes()), " (zu früh)");
    }

    #[test]
    fn a_refusal_is_quoted_briefly() {
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"no pull"}]}"#,
                " (DENIED: no pull)",
            ),
            (r#"{"errors":[{"code":"DENIED"}]}"#, " (DENIED)"),
            (r#"{"errors":[]}"#, ""),
            (r#"{"errors":7}"#, ""),
            ("<html>portal</html>", ""),
            ("too\nfast\n", " (too fast)"),
            ("", ""),
        ] {
            assert_eq!(words(body.as_bytes(), &Sent::default()), expected, "{body}");
        }
        assert!(words(&[b'x'; 10_000], &Sent::default()).len() < 400);
    }

    #[test]
    fn credentials_belong_to_scheme_host_and_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        let own = url("https://r.io/v2/");
        for (other, same) in [
            ("https://r.io/elsewhere", true),
            ("https://r.io:443/", true),
            ("https://R.IO/", true),
            ("http://r.io/", false),
            ("https://r.io:8443/", false),
            ("https://cdn.r.io/", false),
            ("https://r.io.evil.io/", false),
            ("https://r.io@evil.io/", false),
        ] {
            assert_eq!(same_origin(&url(other), &own), same, "{other}");
        }
    }
}
