//! What a registry asks for with its 401.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use url::Url;

use super::Access;
use crate::error::Cause;

/// Longest challenge read, bytes: real ones have a few hundred.
const CHALLENGE_BYTES_MAX: usize = 8 << 10;

/// The best of the challenges in an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user name and a password with every request.
    Basic,
    /// A token from a token server.
    Bearer(Bearer),
}

/// Where to get a token, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    /// The token server.
    pub(super) realm: Url,
    /// The name the token server knows the registry by.
    pub(super) service: Option<String>,
    /// What the registry thinks the request needs.
    pub(super) scope: Option<String>,
}

impl Challenge {
    /// Chooses a token if the registry offers it, else a password.
    pub(super) fn read(headers: &HeaderMap, host: &str) -> Result<Self, Cause> {
        let wrong = |detail: &str| Cause::Malformed {
            host: host.into(),
            detail: detail.into(),
        };
        let mut basic = false;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let text = value.to_str().unwrap_or_default();
            if text.len() > CHALLENGE_BYTES_MAX {
                return Err(wrong("its login challenge is too long"));
            }
            let Ok(challenges) = http_auth::parse_challenges(text) else {
                continue;
            };
            for challenge in challenges {
                let parameter = |name: &str| {
                    let found = challenge
                        .params
                        .iter()
                        .find(|p| p.0.eq_ignore_ascii_case(name));
                    found
                        .map(|(_, value)| value.to_unescaped())
                        .filter(|text| !text.is_empty())
                };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = true;
                } else if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let realm = parameter("realm")
                        .ok_or_else(|| wrong("its login challenge names no token server"))?;
                    let realm = Url::parse(&realm)
                        .ok()
                        .filter(|url| matches!(url.scheme(), "http" | "https"));
                    let realm =
                        realm.ok_or_else(|| wrong("the token server it names is no URL"))?;
                    let (service, scope) = (parameter("service"), parameter("scope"));
                    return Ok(Self::Bearer(Bearer {
                        realm,
                        service,
                        scope,
                    }));
                }
            }
        }
        if basic {
            return Ok(Self::Basic);
        }
        let detail = " (it offers no way to log in that we know)".into();
        Err(Cause::Unauthorized {
            host: host.into(),
            detail,
            refused: false,
        })
    }
}

impl Bearer {
    /// The scopes to ask for: what the registry named, and all that our access will need, so that
    /// a HEAD before a push does not cost a token of its own.
    ///
    /// A registry behind a rewriting mirror knows the repository by another name; then what it
    /// named is all that helps.
    pub(super) fn scopes(&self, repository: &str, access: &Access) -> Vec<String> {
        let ours = format!("repository:{repository}:");
        let named: Vec<&str> = self
            .scope
            .as_deref()
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let other = |scope: &&str| !scope.starts_with(&ours);
        let mut scopes: Vec<String> = named
            .iter()
            .copied()
            .filter(other)
            .map(String::from)
            .collect();
        if scopes.len() < named.len() || named.is_empty() {
            let actions = match access {
                Access::Pull => "pull",
                Access::Push | Access::Mount { .. } => "pull,push",
                Access::Delete => "pull,push,delete",
            };
            scopes.insert(0, format!("{ours}{actions}"));
        }
        if let Access::Mount { from } = access {
            let scope = format!("repository:{from}:pull");
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        scopes
    }

    /// The same without what it says of one repository, for the others of the registry. `None` where the registry has
    /// another name for `repository` than we: then ours of the others mean nothing to it.
    pub(super) fn of_all(&self, repository: &str) -> Option<Self> {
        let ours = format!("repository:{repository}:");
        let named = self.scope.as_deref().unwrap_or_default();
        let is_ours = named
            .split_whitespace()
            .all(|scope| scope.starts_with(&ours));
        is_ours.then(|| Self {
            scope: None,
            ..self.clone()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Result<Challenge, Cause> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        Challenge::read(&headers, "r.io")
    }

    #[test]
    fn tokens_are_preferred_and_nonsense_is_refused() {
        let bearer = r#"Bearer realm="https://a.io/t?x=1",service="s",scope="repository:a:pull""#;
        for (values, expected) in [
            (&[r#"Basic realm="x""#][..], Some("basic")),
            (&[bearer], Some("bearer")),
            (&[r#"Basic realm="x""#, bearer], Some("bearer")),
            (&[r#"bearer REALM="https://a.io/t""#], Some("bearer")),
            (&[r#"Bearer service="s""#], None),
            (&[r#"Bearer realm="file:///etc/passwd""#], None),
            (&[r#"Bearer realm="/token""#], None),
            (&["Negotiate"], None),
            (&["\"\""], None),
            (&[], None),
        ] {
            let found = match read(values) {
                Ok(Challenge::Basic) => Some("basic"),
                Ok(Challenge::Bearer(_)) => Some("bearer"),
                Err(_) => None,
            };
            assert_eq!(found, expected, "{values:?}");
        }
    }

    #[test]
    fn scopes_cover_what_the_access_needs() {
        let mount = Access::Mount { from: "b".into() };
        for (scope, access, expected) in [
            (None, Access::Pull, "repository:a:pull"),
            (None, Access::Push, "repository:a:pull,push"),
            (
                Some("repository:a:pull"),
                Access::Push,
                "repository:a:pull,push",
            ),
            (
                Some("repository:proxy/a:pull"),
                Access::Pull,
                "repository:proxy/a:pull",
            ),
            (
                Some("repository:a:pull,push repository:b:pull"),
                mount.clone(),
                "repository:a:pull,push repository:b:pull",
            ),
            (
                Some("repository:a:push"),
                mount,
                "repository:a:pull,push repository:b:pull",
            ),
            (Some("aws"), Access::Pull, "aws"),
        ] {
            let realm = Url::parse("https://a.io/t").unwrap();
            let bearer = Bearer {
                realm,
                service: None,
                scope: scope.map(Into::into),
            };
            assert_eq!(bearer.scopes("a", &access).join(" "), expected, "{scope:?}");
        }
    }
}
