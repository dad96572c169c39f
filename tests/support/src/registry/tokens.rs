//! Who is let in, and the tokens that open the door.

use std::time::Instant;

use axum::http::Method;

use super::answer::Reply;
use super::settings::Auth;
use super::state::{Asked, State, Token, parameters};

/// The refusal of a request, if it is to be refused.
pub(super) fn refuse(state: &State, asked: &Asked, rest: &str) -> Option<Reply> {
    let header = asked.header("authorization").unwrap_or_default();
    match &state.settings.auth {
        Auth::None => None,
        Auth::Basic { username, password } => {
            let good = header == format!("Basic {}", base64(&format!("{username}:{password}")));
            let refusal = || Reply::error(401, "UNAUTHORIZED");
            (!good).then(|| refusal().header("www-authenticate", "Basic realm=\"fake\""))
        }
        Auth::Token { .. } => {
            let needed = scopes(asked, rest);
            let token = header
                .strip_prefix("Bearer ")
                .and_then(|text| state.tokens.get(text));
            let good = token.is_some_and(|token| {
                token.expires > Instant::now() && needed.iter().all(|one| covers(token, one))
            });
            (!good).then(|| challenge(state, &needed, token.is_some()))
        }
    }
}

fn challenge(state: &State, needed: &[(String, &str)], known: bool) -> Reply {
    let scope: Vec<_> = needed
        .iter()
        .map(|(r, a)| format!("repository:{r}:{a}"))
        .collect();
    let mut text = format!(
        "Bearer realm=\"{}/token\",service=\"fake\",scope=\"{}\"",
        state.origin,
        scope.join(" ")
    );
    if known {
        text.push_str(",error=\"invalid_token\"");
    }
    Reply::error(401, "UNAUTHORIZED").header("www-authenticate", text)
}

/// The repositories and actions a request needs.
fn scopes(asked: &Asked, rest: &str) -> Vec<(String, &'static str)> {
    let ends = ["/blobs/", "/manifests/", "/referrers/"];
    let repository = ends
        .iter()
        .find_map(|end| rest.split_once(end))
        .map(|(name, _)| name);
    let Some(repository) = repository else {
        return Vec::new();
    };
    let reads = [Method::GET, Method::HEAD].contains(&asked.method) && !rest.contains("/uploads/");
    let mut needed = vec![(
        repository.to_owned(),
        match asked.method {
            _ if reads => "pull",
            Method::DELETE if rest.contains("/manifests/") => "delete",
            _ => "pull,push",
        },
    )];
    if let Some(from) = asked.parameter("from") {
        needed.push((from, "pull"));
    }
    needed
}

fn covers(token: &Token, (repository, actions): &(String, &str)) -> bool {
    let granted = token
        .scopes
        .split_whitespace()
        .find_map(|scope| scope.strip_prefix(&format!("repository:{repository}:")));
    granted.is_some_and(|granted| {
        actions
            .split(',')
            .all(|action| granted.split(',').any(|one| one == action))
    })
}

/// Answers `/token`: GET with a password or nothing, POST with a refresh token.
pub(super) fn give(state: &mut State, asked: &Asked) -> Reply {
    let Auth::Token {
        account,
        identity,
        lifetime,
    } = state.settings.auth.clone()
    else {
        return Reply::error(404, "NO_TOKENS");
    };
    let form = if asked.method == Method::POST {
        parameters(&String::from_utf8_lossy(&asked.body))
    } else {
        parameters(&asked.query)
    };
    let values = |name: &str| -> Vec<String> {
        form.iter()
            .filter(|(key, _)| key == name)
            .map(|(_, value)| value.clone())
            .collect()
    };
    let scopes = values("scope").join(" ");
    let known = if asked.method == Method::POST {
        identity.is_some() && values("refresh_token").first() == identity.as_ref()
    } else {
        let header = asked.header("authorization");
        let good = account
            .as_ref()
            .map(|(user, password)| format!("Basic {}", base64(&format!("{user}:{password}"))));
        header.is_some() && header == good.as_deref()
    };
    if !known && (account.is_some() || asked.method == Method::POST) {
        return Reply::error(401, "UNAUTHORIZED");
    }
    let granted = if known {
        scopes
    } else {
        scopes.replace("pull,push", "pull")
    };
    let number = state.next();
    let text = format!("token-{number}");
    let expires = Instant::now() + lifetime;
    state.tokens.insert(
        text.clone(),
        Token {
            scopes: granted,
            expires,
        },
    );
    let seconds = lifetime.as_secs();
    let answer = format!(r#"{{"access_token":"{text}","expires_in":{seconds}}}"#);
    Reply::new(200)
        .header("content-type", "application/json")
        .body(answer)
}

pub(super) fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut encoded = String::new();
    for group in text.as_bytes().chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            encoded.push(if place <= group.len() {
                digit.into()
            } else {
                '='
            });
        }
    }
    encoded
}
