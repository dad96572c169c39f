//! What a fake registry holds and remembers.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::http::{HeaderMap, Method};
use bytes::Bytes;
use larder_proto::digest::Digest;

use super::fault::{Fault, On};
use super::settings::Settings;
use crate::noise::Random;

pub(super) type Shared = Arc<Mutex<State>>;

/// A request as the registry saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `HEAD`, …
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The query, without its question mark; empty if there is none.
    pub query: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// The `Host` header.
    pub host: String,
    /// Whether there was an `Authorization` header.
    pub authorized: bool,
    /// Whether the CDN was asked.
    pub cdn: bool,
    /// Bytes of the request's body.
    pub body_bytes: u64,
    /// All headers, lowercase names.
    pub headers: BTreeMap<String, String>,
}

/// A fault, the requests it is for, and how many more of them.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) on: On,
    pub(super) fault: Fault,
    pub(super) left: Option<u32>,
    /// Which of the requests, if not all.
    pub(super) some: Option<OneIn>,
    /// Requests it was done to.
    pub(super) done: usize,
}

/// One request of so many, at a place that a seed decides.
#[derive(Debug)]
pub(super) struct OneIn {
    many: usize,
    random: Random,
    asked: usize,
    chosen: usize,
}

impl OneIn {
    pub(super) const fn new(many: usize, seed: u64) -> Self {
        Self {
            many,
            random: Random::new(seed),
            asked: 0,
            chosen: 0,
        }
    }

    /// Whether this request is the one.
    fn is_next(&mut self) -> bool {
        let place = self.asked % self.many;
        if place == 0 {
            self.chosen = self.random.below(self.many);
        }
        self.asked += 1;
        place == self.chosen
    }
}

/// An upload on its way.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) repository: String,
    pub(super) bytes: Vec<u8>,
    /// Changes with every answer, so that clients must follow the location they are given.
    pub(super) turn: u32,
}

/// A token given out.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) scopes: String,
    pub(super) expires: Instant,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) settings: Settings,
    pub(super) origin: String,
    pub(super) cdn_origin: String,
    /// By repository (`None`: all of them) and digest.
    pub(super) blobs: HashMap<(Option<String>, Digest), Bytes>,
    pub(super) manifests: HashMap<(String, Digest), (String, Bytes)>,
    pub(super) tags: HashMap<(String, String), Digest>,
    pub(super) uploads: HashMap<String, Upload>,
    pub(super) tokens: HashMap<String, Token>,
    pub(super) rules: Vec<Rule>,
    pub(super) seen: Vec<Seen>,
    pub(super) blob_bytes_sent: u64,
    pub(super) last_signature: u64,
    pub(super) oldest_signature: u64,
    pub(super) signed: HashMap<u64, Instant>,
    pub(super) counter: u64,
}

impl State {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            origin: String::new(),
            cdn_origin: String::new(),
            blobs: HashMap::new(),
            manifests: HashMap::new(),
            tags: HashMap::new(),
            uploads: HashMap::new(),
            tokens: HashMap::new(),
            rules: Vec::new(),
            seen: Vec::new(),
            blob_bytes_sent: 0,
            last_signature: 0,
            oldest_signature: 0,
            signed: HashMap::new(),
            counter: 0,
        }
    }

    pub(super) fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        let own = self.blobs.get(&(Some(repository.to_owned()), *digest));
        own.or_else(|| self.blobs.get(&(None, *digest))).cloned()
    }

    pub(super) fn manifest(
        &self,
        repository: &str,
        tag_or_digest: &str,
    ) -> Option<(Digest, (String, Bytes))> {
        let tagged = self
            .tags
            .get(&(repository.to_owned(), tag_or_digest.to_owned()));
        let digest = tagged.copied().or_else(|| tag_or_digest.parse().ok())?;
        let entry = self.manifests.get(&(repository.to_owned(), digest))?;
        Some((digest, entry.clone()))
    }

    /// A number nobody has seen yet.
    pub(super) fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// Refuses all signed URLs given out so far.
    pub(super) fn expire_urls(&mut self) {
        self.oldest_signature = self.last_signature + 1;
    }

    /// The fault for a request, counting it off.
    pub(super) fn fault_for(&mut self, method: &str, path: &str, cdn: bool) -> Option<Fault> {
        let fits = |rule: &Rule| rule.left != Some(0) && rule.on.fits(method, path, cdn);
        let rule = self.rules.iter_mut().find(|rule| fits(rule))?;
        if rule.some.as_mut().is_some_and(|some| !some.is_next()) {
            return None;
        }
        rule.left = rule.left.map(|left| left - 1);
        rule.done += 1;
        Some(rule.fault.clone())
    }
}

/// A request, read whole.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Asked {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// A parameter of the query, decoded.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        parameters(&self.query)
            .into_iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }
}

/// The decoded pairs of a query or a form.
pub(super) fn parameters(text: &str) -> Vec<(String, String)> {
    let pair = |part: &str| {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(key), decode(value))
    };
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(pair)
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text
            .get(at + 1..at + 3)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 2;
            }
            (b'+', _) => decoded.push(b' '),
            (byte, _) => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
