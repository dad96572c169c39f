//! One request to a token server.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use serde::Deserialize;

use super::challenge::Bearer;
use super::unauthorized;
use crate::authority::host_of;
use crate::body;
use crate::credentials::Credential;
use crate::endpoint::Endpoint;
use crate::error::Cause;
use crate::exchange::{self, Payload, same_origin};
use crate::secret::Secret;

/// Largest answer of a token server, bytes: tokens with many scopes have up to 16 KiB.
const ANSWER_BYTES_MAX: u64 = 256 << 10;

/// A token's life if the server does not say, as the token specification has it.
const LIFETIME_DEFAULT: u64 = 60;

/// The longest life believed, seconds: a token is asked for once a day at least.
const LIFETIME_MAX: u64 = 86_400;

/// What is asked, and by whom.
pub(super) struct Request<'a> {
    pub(super) bearer: &'a Bearer,
    pub(super) scopes: &'a [String],
    pub(super) credential: &'a Option<Credential>,
}

/// What a token server gave.
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) lifetime: Duration,
}

#[derive(Deserialize)]
struct Answer {
    // Servers send `null` for the one they do not use, and 0 or less for a life they do not tell.
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<i64>,
}

impl Request<'_> {
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        timeout: Duration,
    ) -> Result<Token, Cause> {
        let realm = &self.bearer.realm;
        let host = host_of(realm).to_owned();
        if endpoint.base.scheme() == "https" && realm.scheme() == "http" {
            let detail =
                format!("to a token server without TLS, {host}; not sending credentials there");
            return Err(Cause::Redirect {
                host: endpoint.host.clone(),
                detail,
            });
        }
        let own = same_origin(realm, &endpoint.base);
        let lent = endpoint.transport.client(realm, own)?;
        let (method, url, headers, payload) = self.build()?;
        let request = exchange::request(lent.client(), method, url, headers, &payload);
        let response = exchange::send(lent, request, &host, timeout).await?;
        let status = response.status();
        if matches!(status.as_u16(), 400 | 401 | 403) {
            return Err(match self.credential {
                None => {
                    let detail = format!(" (token server {host}: {status}; there are none for it)");
                    unauthorized(endpoint, &detail)
                }
                Some(_) => Cause::Unauthorized {
                    host: endpoint.host.clone(),
                    detail: format!(" (token server {host}: {status})"),
                    refused: true,
                },
            });
        }
        if !status.is_success() {
            let refusal = exchange::refusal(response, &host, &*endpoint.clock).await;
            return Err(told_of_the_server(refusal, &host, status.as_u16()));
        }
        let bytes = body::read_all(
            response,
            &host,
            "a token",
            ANSWER_BYTES_MAX,
            &endpoint.timeouts,
        )
        .await?;
        parse(&bytes, &host)
    }

    fn build(&self) -> Result<(Method, url::Url, HeaderMap, Payload), Cause> {
        let mut url = self.bearer.realm.clone();
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let service = self.bearer.service.as_deref();
        if let Some(Credential::Identity(token)) = self.credential {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token");
            form.append_pair("client_id", "larder");
            form.append_pair("service", service.unwrap_or_default());
            form.append_pair("scope", &self.scopes.join(" "));
            form.append_pair("refresh_token", token.expose());
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, kind);
            return Ok((
                Method::POST,
                url,
                headers,
                Payload::Bytes(form.finish().into()),
            ));
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            for scope in self.scopes {
                query.append_pair("scope", scope);
            }
            if let Some(Credential::Password { username, .. }) = self.credential {
                query.append_pair("account", username);
            }
        }
        if let Some(Credential::Password { username, password }) = self.credential {
            headers.insert(AUTHORIZATION, basic(username, password)?);
        }
        Ok((Method::GET, url, headers, Payload::Empty))
    }
}

/// A token server that is not there says nothing of what was wanted with its token.
fn told_of_the_server(refusal: Cause, host: &str, status: u16) -> Cause {
    match refusal {
        Cause::NotFound { detail } => Cause::Refused {
            host: host.into(),
            status,
            detail: format!(
                "{detail} where the registry says that tokens are given: see to the registry's address of its \
                 token server (realm)"
            ),
        },
        other => other,
    }
}

pub(super) fn parse(bytes: &[u8], host: &str) -> Result<Token, Cause> {
    let wrong = |detail: &str| Cause::Malformed {
        host: host.into(),
        detail: detail.into(),
    };
    // What is wrong with a value quotes it, and it may be a token.
    let answer: Answer = serde_json::from_slice(bytes).map_err(|error| {
        wrong(if error.is_data() {
            "its token answer has a token or a life of another type than it should"
        } else {
            "its token answer is not JSON"
        })
    })?;
    let texts = [&answer.token, &answer.access_token].into_iter().flatten();
    let text = texts.into_iter().find(|text| !text.is_empty());
    let text = text.ok_or_else(|| wrong("its token answer has no token"))?;
    let seconds = answer
        .expires_in
        .and_then(|seconds| u64::try_from(seconds).ok())
        .filter(|seconds| *seconds > 0)
        .unwrap_or(LIFETIME_DEFAULT);
    let lifetime = Duration::from_secs(seconds.min(LIFETIME_MAX));
    Ok(Token {
        header: header("Bearer ", text)?,
        lifetime,
    })
}

/// The header that sends a user name and a password.
pub(super) fn basic(username: &str, password: &Secret) -> Result<HeaderValue, Cause> {
    header(
        "Basic ",
        &STANDARD.encode(format!("{username}:{}", password.expose())),
    )
}

/// A header that does not print.
pub(super) fn header(scheme: &str, text: &str) -> Result<HeaderValue, Cause> {
    let value = HeaderValue::try_from(format!("{scheme}{text}"));
    let mut value =
        value.map_err(|_| Cause::Local("a token has characters no header can have".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Regression: `null` for the name that a server does not use, and a negative life, were refused as no JSON.
    ///
    /// Promise: an answer that containerd takes is taken; what is wrong with another is told without its values.
    #[test]
    fn answers_of_servers_are_read_as_they_give_them() {
        for (answer, expected) in [
            (r#"{"token":"t"}"#, Some(LIFETIME_DEFAULT)),
            (
                r#"{"token":"t","access_token":null,"expires_in":300}"#,
                Some(300),
            ),
            (
                r#"{"token":"","access_token":"t","expires_in":null}"#,
                Some(LIFETIME_DEFAULT),
            ),
            (
                r#"{"access_token":"t","expires_in":-5}"#,
                Some(LIFETIME_DEFAULT),
            ),
            (r#"{"token":"t","expires_in":0}"#, Some(LIFETIME_DEFAULT)),
            (
                r#"{"token":"t","expires_in":99999999999}"#,
                Some(LIFETIME_MAX),
            ),
            (r#"{"token":"t","expires_in":"secret"}"#, None),
            (r#"{"token":["secret"]}"#, None),
            (r#"{"token":null}"#, None),
            ("secret", None),
        ] {
            let lifetime = match parse(answer.as_bytes(), "r.test") {
                Ok(token) => Some(token.lifetime.as_secs()),
                Err(cause) => {
                    assert!(!cause.to_string().contains("secret"), "{cause}");
                    None
                }
            };
            assert_eq!(lifetime, expected, "{answer}");
        }
    }
}
