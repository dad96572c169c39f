//! Layers that an operator wants kept: `<root>/pins.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larder_proto::digest::Digest;
use larder_registry::bounded;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::disk::Disk;

/// Version of the file.
const VERSION: u32 = 1;

/// Pins kept: an operator names images by hand or by a script, and each has some tens of layers.
const PINS_MAX: usize = 10_000;

/// Longest name of a pin, bytes: references of images are shorter.
const NAME_BYTES_MAX: usize = 1024;

/// Longest file, bytes: as many pins as there may be, each with a layer of its own and the longest name. Of names that
/// JSON writes longer than they are there may be fewer.
const FILE_BYTES_MAX: u64 = PINS_MAX as u64 * (NAME_BYTES_MAX as u64 + 128);

/// A pin that was not set or taken away.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The file could not be written: the pins are as they were.
    #[error("write {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// There are too many.
    #[error("there are {PINS_MAX} pins already, or as many as their file can hold: unpin some")]
    TooMany,
    /// The name is empty or too long.
    #[error("the name of a pin has 1 to {NAME_BYTES_MAX} bytes")]
    Name,
}

/// Layer → the names it is pinned by.
type Kept = BTreeMap<Digest, BTreeSet<String>>;

/// The pins of a store.
#[derive(Debug)]
pub(crate) struct Pins {
    path: PathBuf,
    disk: Arc<dyn Disk>,
    kept: Mutex<Kept>,
}

/// Fields are only ever added; `readable_since` says from which version on a build can read it.
#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    readable_since: Option<u32>,
    pins: BTreeMap<String, BTreeSet<String>>,
}

impl Pins {
    /// Reads the pins of former runs. A file that cannot be used is put aside, and said so.
    pub(super) fn load(path: PathBuf, disk: Arc<dyn Disk>) -> Self {
        let aside = |why| {
            let aside = path.with_extension("damaged");
            let _ = std::fs::rename(&path, &aside);
            warn!(path = %path.display(), aside = %aside.display(), why,
                "the list of pinned layers cannot be used; nothing is pinned, pin again");
            Kept::new()
        };
        let kept = match bounded::read(&path, FILE_BYTES_MAX) {
            Ok(bytes) => decode(&bytes).unwrap_or_else(aside),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::new(),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => aside(error.to_string()),
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot read the list of pinned layers");
                Kept::new()
            }
        };
        let kept = Mutex::new(kept);
        Self { path, disk, kept }
    }

    /// Pins `layers` by `name`.
    pub(crate) fn pin(&self, layers: &[Digest], name: &str) -> Result<(), PinError> {
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(PinError::Name);
        }
        self.change(|kept| {
            for layer in layers {
                kept.entry(*layer).or_default().insert(name.to_owned());
            }
            let count: usize = kept.values().map(BTreeSet::len).sum();
            if count > PINS_MAX {
                return Err(PinError::TooMany);
            }
            Ok(())
        })
    }

    /// Takes away the pins called `name`; the layers that had it.
    pub(crate) fn unpin(&self, name: &str) -> Result<Vec<Digest>, PinError> {
        self.change(|kept| {
            let had = kept.iter_mut().filter_map(|(layer, names)| {
                let had = names.remove(name);
                had.then_some(*layer)
            });
            let had = had.collect();
            kept.retain(|_, names| !names.is_empty());
            Ok(had)
        })
    }

    /// The names `layer` is pinned by.
    pub(crate) fn names(&self, layer: &Digest) -> Vec<String> {
        let kept = self.lock();
        kept.get(layer).into_iter().flatten().cloned().collect()
    }

    /// Whether it is pinned.
    pub(crate) fn has(&self, layer: &Digest) -> bool {
        self.lock().contains_key(layer)
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Kept) -> Result<T, PinError>,
    ) -> Result<T, PinError> {
        let mut kept = self.lock();
        let mut changed = kept.clone();
        let told = change(&mut changed)?;
        if changed != *kept {
            let bytes = encode(&changed);
            if bytes.len() as u64 > FILE_BYTES_MAX {
                return Err(PinError::TooMany);
            }
            let written = self.disk.replace_durably(&self.path, &bytes);
            written.map_err(|error| PinError::Io {
                path: self.path.clone(),
                error,
            })?;
            *kept = changed;
        }
        Ok(told)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode(kept: &Kept) -> Vec<u8> {
    let pins = kept.iter();
    let pins = pins.map(|(layer, names)| (layer.to_string(), names.clone()));
    let file = File {
        version: VERSION,
        readable_since: None,
        pins: pins.collect(),
    };
    serde_json::to_vec_pretty(&file).expect("strings and numbers always serialise")
}

fn decode(bytes: &[u8]) -> Result<Kept, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if file.readable_since.unwrap_or(file.version) > VERSION {
        return Err(format!(
            "a later build wrote it, in version {}; this build reads {VERSION}",
            file.version
        ));
    }
    let pins = file.pins.into_iter().map(|(layer, names)| {
        let layer = layer.parse().map_err(|error| format!("{layer:?}: {error}"));
        Ok((layer?, names))
    });
    pins.collect()
}

#[cfg(test)]
mod tests {
    use super::super::disk::StdDisk;
    use super::*;

    fn load(path: &std::path::Path) -> Pins {
        Pins::load(path.to_owned(), Arc::new(StdDisk))
    }

    /// Promise: pins survive a restart, each under its name, until the last one goes.
    #[test]
    fn pins_are_kept_until_the_last_name_goes() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("pins.json");
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let pins = load(&path);
        pins.pin(&[one, two], "app:1").unwrap();
        pins.pin(&[one], "app:2").unwrap();
        let pins = load(&path);
        assert_eq!(pins.names(&one), ["app:1", "app:2"]);
        let mut both = [one, two];
        both.sort();
        assert_eq!(pins.unpin("app:1").unwrap(), both);
        assert_eq!(pins.unpin("app:1").unwrap(), []);
        let pins = load(&path);
        assert!(pins.has(&one) && !pins.has(&two));
        assert!(matches!(pins.pin(&[one], ""), Err(PinError::Name)));
    }

    /// Promise: a damaged list is no reason not to start, and is not overwritten unseen.
    #[test]
    fn a_damaged_list_is_put_aside() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("pins.json");
        let layer = Digest::of(b"1");
        load(&path).pin(&[layer], "x").unwrap();
        let good = std::fs::read(&path).unwrap();
        let newer = String::from_utf8(good.clone()).unwrap();
        let newer = newer.replace("\"version\": 1", "\"version\": 2");
        for bad in [newer.as_bytes(), &good[..good.len() / 2], b""] {
            std::fs::write(&path, bad).unwrap();
            assert!(!load(&path).has(&layer));
            assert_eq!(std::fs::read(path.with_extension("damaged")).unwrap(), bad);
        }
        let later = newer.replace(
            "\"version\": 2",
            "\"version\": 2, \"readable_since\": 1, \"new\": 0",
        );
        std::fs::write(&path, later).unwrap();
        assert!(
            load(&path).has(&layer),
            "a later build says that this one can read it"
        );
    }
}
