//! What earlier conversions made of which layer, so that it is not done twice.
//!
//! One small file per source layer and set of options, below `$XDG_CACHE_HOME/larder/layers`. An
//! entry only says what the result is; whether the destination has it is asked there. It says which
//! tar the layer was found to hold, and is no answer for a config that names another: that is an
//! error, which converting the layer again finds.

use std::fs;
use std::path::PathBuf;

use larder_proto::annotation::{IndexLocation, StartList};
use larder_proto::digest::Digest;
use larder_registry::bounded;
use serde::{Deserialize, Serialize};

use crate::layer::LayerOptions;
use crate::plan::Replacement;
use crate::spool;

/// Repositories remembered per layer: where a registry may mount it from. They are asked one after
/// the other, so at 50 ms each all of them cost less than half a second.
const PLACES_MAX: usize = 8;

/// Longest entry read, bytes: start lists go into a manifest, which has at most so many.
const ENTRY_BYTES_MAX: u64 = larder_registry::MANIFEST_BYTES_MAX;

/// The cache; without a directory it remembers nothing.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: Option<PathBuf>,
    options: String,
}

/// An entry and the tar it is of.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    diff_id: String,
    #[serde(flatten)]
    entry: Entry,
}

/// What is remembered of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Entry {
    /// It was converted.
    Converted {
        /// Digest of the converted blob.
        digest: String,
        /// Its length, bytes.
        size: u64,
        /// Where its index lies.
        index: String,
        /// Length of its tar, bytes.
        tar_len: u64,
        /// Repositories it was pushed to, the latest last.
        #[serde(default)]
        places: Vec<String>,
    },
    /// It cannot be represented, for this reason.
    Unrepresentable {
        /// The reason.
        reason: String,
    },
}

impl Cache {
    /// The user's cache for conversions with these options.
    pub fn of_user(options: &LayerOptions) -> Self {
        let env = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let home = || env("HOME").map(|home| PathBuf::from(home).join(".cache"));
        // The specification of this variable says to ignore a relative one.
        let named = env("XDG_CACHE_HOME").map(PathBuf::from);
        let base = named.filter(|path| path.is_absolute()).or_else(home);
        Self::new(base.map(|base| base.join("larder/layers")), options)
    }

    /// A cache in `dir`, which need not exist.
    pub fn new(dir: Option<PathBuf>, options: &LayerOptions) -> Self {
        // Another version of this program may walk a tar otherwise.
        let options = format!(
            "{} larder={}",
            options.fingerprint(),
            env!("CARGO_PKG_VERSION")
        );
        Self { dir, options }
    }

    /// What is known of a layer whose tar has digest `diff_id`.
    pub fn get(&self, layer: &Digest, diff_id: &Digest) -> Option<Entry> {
        let bytes = bounded::read(&self.path(layer)?, ENTRY_BYTES_MAX).ok()?;
        let found: Remembered = serde_json::from_slice(&bytes).ok()?;
        (found.diff_id == diff_id.to_string()).then_some(found.entry)
    }

    /// Remembers what became of a layer whose tar was found to have digest `diff_id`. A cache that
    /// cannot be written is no reason to fail.
    pub fn put(&self, layer: &Digest, diff_id: &Digest, entry: Entry) {
        let diff_id = diff_id.to_string();
        let remembered = Remembered { diff_id, entry };
        let bytes = serde_json::to_vec(&remembered).expect("an entry has text keys only");
        self.write(layer, &bytes);
    }

    fn write(&self, key: &Digest, bytes: &[u8]) {
        let Some(path) = self.path(key) else { return };
        let wrote = fs::create_dir_all(path.parent().unwrap_or(&path))
            .and_then(|()| spool::replace(&path, bytes));
        if let Err(error) = wrote {
            tracing::debug!(path = %path.display(), %error, "not remembered");
        }
    }

    /// The start lists remembered by `key`.
    pub fn start_lists(&self, key: &Digest) -> Option<Vec<Option<String>>> {
        let bytes = bounded::read(&self.path(key)?, ENTRY_BYTES_MAX).ok()?;
        let found: Vec<Option<String>> = serde_json::from_slice(&bytes).ok()?;
        let is_list = |text: &String| text.parse::<StartList>().is_ok();
        found.iter().flatten().all(is_list).then_some(found)
    }

    /// Remembers start lists by `key`, which names all that decides them.
    pub fn put_start_lists(&self, key: &Digest, lists: &[Option<String>]) {
        let bytes = serde_json::to_vec(lists).expect("texts are JSON");
        self.write(key, &bytes);
    }

    fn path(&self, layer: &Digest) -> Option<PathBuf> {
        let key = Digest::of(format!("{layer} {}", self.options).as_bytes()).hex();
        Some(self.dir.as_ref()?.join(&key[..2]).join(&key[2..]))
    }
}

impl Entry {
    /// An entry for a converted layer that was put into `place`.
    pub fn converted(new: &Replacement, tar_len: u64, before: Option<Self>, place: &str) -> Self {
        let mut places = match before {
            Some(Self::Converted { places, .. }) => places,
            _ => Vec::new(),
        };
        places.retain(|old| old != place);
        places.push(place.to_owned());
        let skip = places.len().saturating_sub(PLACES_MAX);
        Self::Converted {
            digest: new.digest.to_string(),
            size: new.size,
            index: new.location.to_string(),
            tar_len,
            places: places.split_off(skip),
        }
    }

    /// The converted layer, its tar's length and where it is; `None` for other entries.
    pub fn replacement(&self) -> Option<(Replacement, u64, &[String])> {
        let Self::Converted {
            digest,
            size,
            index,
            tar_len,
            places,
        } = self
        else {
            return None;
        };
        let location: IndexLocation = index.parse().ok()?;
        let new = Replacement {
            digest: digest.parse().ok()?,
            size: *size,
            location,
        };
        Some((new, *tar_len, places))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larder_proto::digest::Algorithm;

    fn replacement() -> Replacement {
        let digest = Digest::of(b"index");
        let location = IndexLocation {
            offset: 8,
            stored_len: 2,
            len: 3,
            digest,
        };
        Replacement {
            digest: Digest::of(b"new"),
            size: 90,
            location,
        }
    }

    #[test]
    fn a_layer_is_remembered_for_its_options_only() {
        let dir = tempfile::tempdir().unwrap();
        let cache = |options: &LayerOptions| Cache::new(Some(dir.path().join("a/b")), options);
        let (layer, tar) = (Digest::of(b"layer"), Digest::of(b"tar"));
        let entry = Entry::converted(&replacement(), 1000, None, "host/repo");
        cache(&LayerOptions::default()).put(&layer, &tar, entry);
        let found = cache(&LayerOptions::default()).get(&layer, &tar).unwrap();
        assert_eq!(
            found.replacement(),
            Some((replacement(), 1000, &["host/repo".into()][..]))
        );
        let other = LayerOptions::new(9, 1 << 18, Algorithm::Blake3).unwrap();
        assert_eq!(cache(&other).get(&layer, &tar), None);
        let none = Cache::new(None, &LayerOptions::default());
        assert_eq!(none.get(&layer, &tar), None);
        let another_tar = Digest::of(b"another");
        let found = cache(&LayerOptions::default()).get(&layer, &another_tar);
        assert_eq!(found, None);
    }

    #[test]
    fn only_the_latest_places_are_kept() {
        let mut entry = None;
        for place in 0..20 {
            entry = Some(Entry::converted(
                &replacement(),
                1,
                entry,
                &format!("host/{place}"),
            ));
        }
        let entry = entry.unwrap();
        let (_, _, places) = entry.replacement().unwrap();
        assert_eq!(places.len(), PLACES_MAX);
        assert_eq!(places.last().unwrap(), "host/19");
    }

    #[test]
    fn a_damaged_entry_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(dir.path().into()), &LayerOptions::default());
        let (layer, tar) = (Digest::of(b"layer"), Digest::of(b"tar"));
        let entry = Entry::Unrepresentable { reason: "x".into() };
        cache.put(&layer, &tar, entry.clone());
        assert_eq!(cache.get(&layer, &tar), Some(entry));
        let path = cache.path(&layer).unwrap();
        // The second is what earlier builds wrote.
        for damaged in ["{", r#"{"outcome":"unrepresentable","reason":"x"}"#] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(cache.get(&layer, &tar), None);
        }
    }
}
