//! Who sent bytes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::Count;

/// Hosts told apart. A node fetches from a few registries and their mirrors; without a bound, a
/// metric would grow with every host an image names.
const HOSTS_MAX: usize = 32;

/// Characters of a host's name that are kept: the longest DNS name with a port.
const HOST_CHARS_MAX: usize = 260;

/// What hosts beyond [`HOSTS_MAX`] are counted as.
const OTHERS: &str = "other";

/// What a sender is to the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SenderKind {
    /// The registry the image's name says.
    Registry,
    /// A host that stands in for it.
    Mirror,
}

impl SenderKind {
    /// One word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Mirror => "mirror",
        }
    }
}

/// What one host sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderCounts {
    /// What it is.
    pub kind: SenderKind,
    /// Host or host:port; `other` stands for all beyond the first 32.
    pub host: String,
    /// Bytes of blobs that came and were right.
    pub bytes: u64,
    /// Chunks that came and were wrong.
    pub rejected: u64,
}

type Table = BTreeMap<(SenderKind, String), Arc<Sent>>;

/// All senders.
#[derive(Debug, Default)]
pub(super) struct Senders(RwLock<Table>);

#[derive(Debug, Default)]
struct Sent {
    bytes: Count,
    rejected: Count,
}

impl Senders {
    pub(super) fn fetched(&self, source: &str, host: Option<&str>, bytes: u64) {
        self.of(source, host).bytes.add(bytes);
    }

    pub(super) fn rejected(&self, source: &str, host: Option<&str>) {
        self.of(source, host).rejected.one();
    }

    pub(super) fn all(&self) -> Vec<SenderCounts> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let told = table.iter().map(|((kind, host), sent)| SenderCounts {
            kind: *kind,
            host: host.clone(),
            bytes: sent.bytes.get(),
            rejected: sent.rejected.get(),
        });
        told.collect()
    }

    /// The counts of `host`, or of the registry that `source`, `host/repository`, names.
    fn of(&self, source: &str, host: Option<&str>) -> Arc<Sent> {
        let registry = source.split('/').next().unwrap_or_default();
        let host = host.unwrap_or(registry);
        let kind = if host == registry {
            SenderKind::Registry
        } else {
            SenderKind::Mirror
        };
        let name: String = host.chars().take(HOST_CHARS_MAX).collect();
        let key = (kind, name);
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(sent) = known.get(&key) {
            return sent.clone();
        }
        drop(known);
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let key = if table.contains_key(&key) || table.len() < HOSTS_MAX {
            key
        } else {
            (kind, OTHERS.to_owned())
        };
        table.entry(key).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a registry and what stands in for it are told apart, and many hosts make few lines.
    #[test]
    fn hosts_are_told_apart_up_to_a_bound() {
        let senders = Senders::default();
        senders.fetched("r.test/team/app", Some("r.test"), 10);
        senders.fetched("r.test/team/app", None, 5);
        senders.fetched("r.test/team/app", Some("m.test:5000"), 7);
        senders.rejected("r.test/team/app", Some("m.test:5000"));
        let told: Vec<_> = senders
            .all()
            .into_iter()
            .map(|one| (one.kind.name(), one.host, one.bytes, one.rejected))
            .collect();
        let (registry, mirror) = ("registry", "mirror");
        let expected = [
            (registry, "r.test".to_owned(), 15, 0),
            (mirror, "m.test:5000".to_owned(), 7, 1),
        ];
        assert_eq!(told, expected);
        for number in 0..10_000 {
            senders.fetched(&format!("h{number}.test/app"), None, 1);
            senders.fetched("r.test/app", Some(&format!("m{number}.test")), 1);
        }
        let told = senders.all();
        // One more for each kind.
        assert_eq!(told.len(), HOSTS_MAX + 2);
        let sum: u64 = told.iter().map(|one| one.bytes).sum();
        assert_eq!(sum, 22 + 20_000);
    }
}
