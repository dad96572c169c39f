//! Names of images: `HOST/REPOSITORY:TAG`, `@DIGEST`, or both.

use std::fmt;
use std::str::FromStr;

use larder_proto::digest::Digest;
use url::Url;

/// Longest repository name with its registry, bytes: the limit of Docker's reference grammar.
const NAME_BYTES_MAX: usize = 255;

/// Longest tag, bytes: the limit of the distribution specification.
const TAG_BYTES_MAX: usize = 128;

/// The name under which Docker Hub's images are known.
const HUB: &str = "docker.io";

/// The host that serves Docker Hub's images.
const HUB_API: &str = "registry-1.docker.io";

/// An image's name, checked against Docker's reference grammar.
///
/// Short names mean what they mean to Docker: `alpine` is `docker.io/library/alpine:latest`. The
/// text form is always the long one, which is also how containerd names images.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that names no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not an image reference (HOST/REPOSITORY:TAG or HOST/REPOSITORY@sha256:…): {reason}"
)]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// The registry as `host` or `host:port`; `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path in the registry, such as `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was given; `latest` if neither tag nor digest was.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given.
    pub const fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask the registry for: the digest if there is one, else the tag.
    pub fn identifier(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| "latest".into()),
        }
    }

    /// The same image pinned to `digest`, keeping the tag for people to read.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same repository with `tag` and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(refuse(tag, "the tag is malformed"));
        }
        Ok(Self {
            tag: Some(tag.into()),
            digest: None,
            ..self.clone()
        })
    }

    /// The host that answers for a registry's name: itself, except for Docker Hub.
    pub(crate) fn api_host(registry: &str) -> &str {
        if registry == HUB { HUB_API } else { registry }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse();
                let digest = digest.map_err(|_| refuse(text, "no sha256 digest after @"))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it begins a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(refuse(text, "the tag is malformed"));
        }
        let (registry, repository) = split_name(name);
        if !is_registry(&registry) {
            return Err(refuse(text, "the registry is no host or host:port"));
        }
        if !is_repository(&repository) {
            return Err(refuse(
                text,
                "the repository has other than lowercase letters, digits, separators",
            ));
        }
        if registry.len() + 1 + repository.len() > NAME_BYTES_MAX {
            return Err(refuse(text, "the name is longer than 255 bytes"));
        }
        if name.len() == 64 && is_hex(name) {
            return Err(refuse(text, "64 hex digits would be taken for an image id"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest"),
            (tag, _) => tag,
        };
        Ok(Self {
            registry,
            repository,
            tag: tag.map(Into::into),
            digest,
        })
    }
}

fn refuse(text: &str, reason: &'static str) -> ReferenceError {
    ReferenceError {
        text: text.chars().take(300).collect(),
        reason,
    }
}

/// Splits off the registry by Docker's rule: the first component is one only if it could not be
/// part of a repository on Docker Hub.
fn split_name(name: &str) -> (String, String) {
    let is_host = |first: &str| {
        first.contains(['.', ':'])
            || first == "localhost"
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (first, rest),
        _ => (HUB, name),
    };
    let registry = if registry == "index.docker.io" {
        HUB
    } else {
        registry
    };
    if registry == HUB && !repository.contains('/') {
        return (HUB.into(), format!("library/{repository}"));
    }
    (registry.into(), repository.into())
}

/// Whether `text` is a tag: a word character, then word characters, dots and dashes.
pub(crate) fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    (1..=TAG_BYTES_MAX).contains(&bytes.len())
        && word(bytes[0])
        && bytes.iter().all(|&b| word(b) || b == b'.' || b == b'-')
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                let port = if port.is_empty() {
                    None
                } else {
                    port.strip_prefix(':').or(Some(""))
                };
                return address.parse::<std::net::Ipv6Addr>().is_ok() && port.is_none_or(is_port);
            }
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port) && is_kept_by_urls(host)
}

/// Whether a URL with `host` goes to `host`: Docker's grammar also lets through what a URL refuses
/// (`a.8`, an IPv4 address that is none) or takes for another (`127.1`).
fn is_kept_by_urls(host: &str) -> bool {
    Url::parse(&format!("https://{host}/")).is_ok_and(|url| {
        url.host_str()
            .is_some_and(|kept| kept.eq_ignore_ascii_case(host))
    })
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether `text` is a repository: components of `[a-z0-9]+` joined by `.`, `_`, `__` or dashes.
pub(crate) fn is_repository(text: &str) -> bool {
    text.split('/').all(|component| {
        let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = component.as_bytes();
        let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
            return false;
        };
        alphanumeric(first)
            && alphanumeric(last)
            && component
                .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
    })
}

#[cfg(test)]
mod tests;
