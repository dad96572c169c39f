//! containerd's `hosts.toml`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;

use crate::bounded;
use crate::endpoint::Capabilities;

/// What it is called.
const NAME: &str = "hosts.toml";

/// The key of the registry's own address.
pub(super) const SERVER: &str = "server";

/// Largest hosts.toml, bytes: ten mirrors need two kilobytes.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Mirrors tried for one registry at most: each may cost a timeout before the next is tried.
pub(super) const MIRRORS_MAX: usize = 16;

/// The longest time to wait for a connection that is believed: twice containerd's default. A longer
/// one would only keep the next mirror from being asked.
const DIAL_TIMEOUT_MAX: Duration = Duration::from_mins(1);

/// A hosts.toml with its hosts in the order of the file, which is the order to try them in.
pub(super) struct HostsFile {
    text: String,
    pub(super) server: Option<String>,
    pub(super) root: Section,
    pub(super) hosts: Vec<(String, Section)>,
}

/// A value that cannot be used.
#[derive(Debug)]
pub(super) struct Unusable {
    /// The key in its section; nothing if it is not in this file.
    key: Option<&'static str>,
    pub(super) reason: String,
}

impl Unusable {
    /// Makes one of the value of `key`; of an entry for a host, `server` is the entry's own name.
    pub(super) fn of(key: &'static str) -> impl Fn(String) -> Self {
        move |reason| Self {
            key: Some(key),
            reason,
        }
    }

    pub(super) const fn elsewhere(reason: String) -> Self {
        Self { key: None, reason }
    }
}

/// What can be said about one host. Unknown keys are ignored, as containerd does: some
/// distributions add their own.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Section {
    #[serde(default)]
    capabilities: Option<Vec<String>>,
    #[serde(default)]
    pub(super) ca: Option<OneOrMany>,
    #[serde(default)]
    pub(super) client: Option<Client>,
    #[serde(default)]
    pub(super) skip_verify: bool,
    #[serde(default)]
    pub(super) override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    dial_timeout: Option<String>,
}

/// An address without what stands before an @, which may be a password.
pub(super) fn without_password(address: &str) -> &str {
    address.rsplit_once('@').map_or(address, |(_, host)| host)
}

/// A text or a list of texts.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// Client certificates: files that hold both, or pairs of a certificate and a key.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Client {
    Files(OneOrMany),
    Pairs(Vec<OneOrMany>),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    server: Option<String>,
    #[serde(flatten)]
    root: Section,
    #[serde(default)]
    host: BTreeMap<String, Section>,
}

/// The directory for `registry` below `root`: by its name, its name with the port as `_port_`, or
/// the default for all.
pub(super) fn directory(root: &Path, registry: &str) -> Option<PathBuf> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names
        .into_iter()
        .map(|name| root.join(name))
        .find(|path| path.is_dir())
}

impl HostsFile {
    /// Reads the file in `dir`; `None` if there is none.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, String> {
        let path = dir.join(NAME);
        let wrong =
            |reason: &dyn std::fmt::Display| format!("cannot use {}: {reason}", path.display());
        let text = match bounded::read(&path, FILE_BYTES_MAX) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| wrong(&"it is not UTF-8"))?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(&error)),
        };
        Self::parse(&text).map(Some).map_err(|error| wrong(&error))
    }

    /// What cannot be used of the file in `dir`: with the line of the key, in the section of `host` or at the
    /// top.
    pub(super) fn told(&self, dir: &Path, host: Option<&str>, wrong: &Unusable) -> String {
        let (reason, file) = (&wrong.reason, dir.join(NAME));
        let Some(key) = wrong.key else {
            return reason.clone();
        };
        let mut path: Vec<_> = host.into_iter().flat_map(|host| ["host", host]).collect();
        let mut words: Vec<_> = host.map(without_password).into_iter().collect();
        if host.is_none() || key != SERVER {
            path.push(key);
            words.push(key);
        }
        let line = line(&self.text, &path).map(|line| format!(", line {line}"));
        format!(
            "cannot use {}{}: {}: {reason}",
            file.display(),
            line.unwrap_or_default(),
            words.join(": ")
        )
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        // The whole error would quote the line, which may hold a header with a secret.
        let brief = |error: toml::de::Error| {
            let line = error
                .span()
                .map(|span| text[..span.start.min(text.len())].lines().count());
            let said = without_value(error.message());
            format!("{said} (near line {})", line.unwrap_or(0).max(1))
        };
        let raw: Raw = toml::from_str(text).map_err(brief)?;
        let places = places(text);
        let mut hosts: Vec<_> = raw.host.into_iter().collect();
        hosts.sort_by_key(|(name, _)| places.get(name).copied());
        if hosts.len() > MIRRORS_MAX {
            return Err(format!("it has more than {MIRRORS_MAX} hosts"));
        }
        Ok(Self {
            text: text.to_owned(),
            server: raw.server,
            root: raw.root,
            hosts,
        })
    }
}

/// A parser's message without the value that it quotes, which may be a header's secret.
fn without_value(message: &str) -> String {
    match message.rsplit_once(", expected ") {
        Some((said, expected)) if said.starts_with("invalid") => {
            format!("something else where {expected} is expected")
        }
        _ => message.to_owned(),
    }
}

/// The line of the key that `path` leads to, or of the last one on the way that is there.
fn line(text: &str, path: &[&str]) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let (mut table, mut place) = (Some(document.get_ref()), None);
    for step in path {
        let Some((key, value)) = table?.iter().find(|(key, _)| key.get_ref() == *step) else {
            break;
        };
        place = Some(key.span().start);
        table = value.get_ref().as_table();
    }
    Some(text.get(..place?)?.matches('\n').count() + 1)
}

/// Where in the text each host is first named.
fn places(text: &str) -> BTreeMap<String, usize> {
    let Ok(document) = toml::de::DeTable::parse(text) else {
        return BTreeMap::new();
    };
    let hosts = document
        .get_ref()
        .get("host")
        .and_then(|hosts| hosts.get_ref().as_table());
    let place =
        |key: &toml::Spanned<toml::de::DeString<'_>>| (key.get_ref().to_string(), key.span().start);
    hosts
        .map(|hosts| hosts.keys().map(place).collect())
        .unwrap_or_default()
}

impl Section {
    /// All capabilities, unless some are listed.
    pub(super) fn capabilities(&self) -> Capabilities {
        let has = |name: &str| {
            let listed = self
                .capabilities
                .as_ref()
                .filter(|listed| !listed.is_empty());
            listed.is_none_or(|listed| listed.iter().any(|one| one == name))
        };
        Capabilities {
            pull: has("pull"),
            resolve: has("resolve"),
        }
    }

    /// The headers to add to every request.
    pub(super) fn headers(&self) -> Result<HeaderMap, Unusable> {
        let mut headers = HeaderMap::new();
        for (name, values) in &self.header {
            let wrong = || {
                let reason = format!("{name:?} is no header, or has a value that is none");
                Unusable::of("header")(reason)
            };
            let key = HeaderName::try_from(name).map_err(|_| wrong())?;
            for value in values.as_slice() {
                let mut value = HeaderValue::try_from(value).map_err(|_| wrong())?;
                // Whatever it is for, it may be a secret.
                value.set_sensitive(true);
                headers.append(key.clone(), value);
            }
        }
        Ok(headers)
    }

    /// The time to wait for a connection, if it is set.
    pub(super) fn connect(&self) -> Result<Option<Duration>, Unusable> {
        let Some(text) = &self.dial_timeout else {
            return Ok(None);
        };
        let parsed = duration(text).filter(|time| !time.is_zero());
        let wrong = || format!("{text:?} is no time such as \"1s\"");
        let parsed = parsed
            .ok_or_else(wrong)
            .map_err(Unusable::of("dial_timeout"))?;
        Ok(Some(parsed.min(DIAL_TIMEOUT_MAX)))
    }
}

/// Reads a duration as Go writes it: `1m30s`, `1.5s`, `200ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[end..];
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in [
            ("1s", Some(1000)),
            ("1m30s", Some(90_000)),
            ("1.5s", Some(1500)),
            ("200ms", Some(200)),
            ("1h", Some(3_600_000)),
            ("5", None),
            ("s", None),
            ("1x", None),
            ("1s2", None),
            ("-1s", None),
            ("", None),
            ("1.2.3s", None),
            ("99999999999999999999999999h", None),
        ] {
            assert_eq!(
                duration(text).map(|time| time.as_millis()),
                millis,
                "{text}"
            );
        }
    }
}
