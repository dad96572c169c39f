//! The text of a configuration that a daemon served with, and the authorities that it names, for the daemon after it.
//!
//! It lies in memory that the supervisor holds, and so lives exactly as long as the mounts do that need it: no
//! file, whose place would be a key of the configuration that cannot be read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::text::{TEXT_BYTES_MAX, Text};
use super::{Config, ConfigError, Overrides, Written, registry};

/// The memory's name: who looks at the supervisor finds it by that.
const NAME: &str = "larder-configuration";

/// Most bytes of it that are read: JSON writes a byte of text as six at the worst, and there are authorities.
const KEPT_BYTES_MAX: u64 = 8 * TEXT_BYTES_MAX;

/// Most bytes of authorities that are kept, of all files: five times the bundle of all public ones, and few enough that
/// every build reads what is kept. Of what is above it the next daemon reads the file.
const AUTHORITIES_BYTES_MAX: u64 = 1 << 20;

/// What one daemon leaves to the next. Fields are only ever added, each with a default: either may be the older
/// program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What the file said.
    text: String,
    /// When it was read, seconds since 1970.
    pub(super) since: u64,
    /// What the files of authorities held then that it names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    authorities: BTreeMap<PathBuf, String>,
}

impl Kept {
    /// Of a text that was read just now, and what it means.
    pub(super) fn now(text: Text, config: &Config) -> Self {
        Self {
            text: text.into_text(),
            since: UNIX_EPOCH.elapsed().unwrap_or_default().as_secs(),
            authorities: registry::authorities(&config.registry, AUTHORITIES_BYTES_MAX),
        }
    }

    /// In memory that nobody changes any more.
    pub fn seal(&self) -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create(NAME, flags)?);
        let mut json = serde_json::to_vec(self)?;
        if json.len() as u64 > KEPT_BYTES_MAX {
            // Both are mostly what JSON writes as six bytes: the text goes first.
            let authorities = BTreeMap::new();
            json = serde_json::to_vec(&Self {
                authorities,
                ..self.clone()
            })?;
        }
        file.write_all(&json)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals)?;
        Ok(file.into())
    }

    /// What [`Kept::seal`] of this build or another made.
    pub fn open(sealed: impl AsFd) -> Option<Self> {
        // Of its own, with a place of its own to read from.
        let path = format!("/proc/self/fd/{}", sealed.as_fd().as_raw_fd());
        Self::read(Path::new(&path))
    }

    /// What a supervisor holds, by the id of its process; nothing if it is none, or holds nothing.
    pub fn of_process(id: &str) -> Option<Self> {
        let id: u32 = id.parse().ok()?;
        let held = fs::read_dir(format!("/proc/{id}/fd")).ok()?;
        let ours = format!("/memfd:{NAME} (deleted)");
        let ours = held.flatten().map(|entry| entry.path()).filter(|path| {
            let link = fs::read_link(path);
            link.is_ok_and(|link| link.as_os_str() == &*ours)
        });
        ours.filter_map(|path| Self::read(&path))
            .max_by_key(|kept| kept.since)
    }

    fn read(path: &Path) -> Option<Self> {
        let file = File::open(path).ok()?;
        if !fcntl_get_seals(&file).ok()?.contains(SealFlags::WRITE) {
            return None;
        }
        let mut json = Vec::new();
        file.take(KEPT_BYTES_MAX).read_to_end(&mut json).ok()?;
        serde_json::from_slice(&json).ok()
    }

    /// What the text means to this program, and the keys that mean nothing to it. The files it names are not
    /// looked at: they may be as broken as what is there now, and each is read when somebody needs it; authorities
    /// are then as they were where they cannot be.
    pub(super) fn config(
        &self,
        overrides: &Overrides,
    ) -> Result<(Config, Vec<String>), ConfigError> {
        let unreadable = |error: toml::de::Error| ConfigError::Parse {
            path: NAME.into(),
            what: format!(": {}", error.message()),
        };
        let (mut table, mut unknown) = known(self.text.parse().map_err(unreadable)?);
        loop {
            let written = table.clone().try_into().map_err(unreadable)?;
            match Config::resolve(written, overrides) {
                Ok(mut config) => {
                    config.registry.unchecked = true;
                    let known = self.authorities.iter();
                    let known = known.map(|(path, pem)| (path.clone(), pem.clone().into_bytes()));
                    config.registry.known_ca = known.collect();
                    return Ok((config, unknown));
                }
                // Another build took the value. Never the places: mounts and clients are there.
                Err(ConfigError::Value { key, .. })
                    if !matches!(key, "root" | "address") && remove(&mut table, key) =>
                {
                    unknown.push(key.to_owned());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What of `table` this program can read, key by key, and the names of the rest.
fn known(table: Table) -> (Table, Vec<String>) {
    let fits = |one: &Table| one.clone().try_into::<Written>().is_ok();
    let only = |key: &str, value: Value| Table::from_iter([(key.to_owned(), value)]);
    let (mut all, mut unknown) = (Table::new(), Vec::new());
    for (key, value) in table {
        let Value::Table(section) = value else {
            if fits(&only(&key, value.clone())) {
                all.insert(key, value);
            } else {
                unknown.push(key);
            }
            continue;
        };
        let mut rest = Table::new();
        for (name, value) in section {
            let alone = Value::Table(only(&name, value.clone()));
            if fits(&only(&key, alone)) {
                rest.insert(name, value);
            } else {
                unknown.push(format!("{key}.{name}"));
            }
        }
        if fits(&only(&key, Value::Table(rest.clone()))) {
            all.insert(key, Value::Table(rest));
        }
    }
    (all, unknown)
}

/// Removes a key, given with its section; whether it was there.
fn remove(table: &mut Table, key: &str) -> bool {
    match key.split_once('.') {
        Some((section, key)) => {
            let section = table.get_mut(section).and_then(Value::as_table_mut);
            section.is_some_and(|section| section.remove(key).is_some())
        }
        None => table.remove(key).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Kept {
        Kept {
            text: text.to_owned(),
            since: 1_800_000_000,
            authorities: BTreeMap::from([("/ca.pem".into(), "an authority".to_owned())]),
        }
    }

    /// Promise: what a daemon leaves is there for the next one, and for who looks at the process that holds it;
    /// nobody changes it, and what a later build adds is passed over.
    #[test]
    fn what_is_kept_is_found_and_cannot_be_changed() {
        let before = kept("root = \"/x\"\n");
        let sealed = before.seal().unwrap();
        for _ in 0..2 {
            assert_eq!(Kept::open(&sealed), Some(before.clone()));
        }
        let own = std::process::id().to_string();
        assert_eq!(Kept::of_process(&own), Some(before));
        assert!(rustix::io::write(&sealed, b"x").is_err());
        // More than every build reads: the text alone.
        let mut long = kept("root = \"/x\"\n");
        long.authorities = BTreeMap::from([("/ca.pem".into(), "\0".repeat(2 << 20))]);
        let found = Kept::open(long.seal().unwrap()).unwrap();
        assert_eq!(
            (found.text, found.authorities),
            (long.text, BTreeMap::new())
        );
        assert_eq!(Kept::of_process("1/../self"), None);
        let later = r#"{"text": "a = 1", "since": 3, "weather": "fine"}"#;
        let later: Kept = serde_json::from_str(later).unwrap();
        assert_eq!((&*later.text, later.since), ("a = 1", 3));
        assert_eq!(Kept::open(tempfile::tempfile().unwrap()), None);
    }

    /// Promise: an earlier program goes on with what a later one left: keys and values that it does not know are
    /// left out and named, everything else is as it was. Without root and address it does not.
    #[test]
    fn what_an_earlier_program_does_not_know_is_left_out() {
        let text = "root = \"/x\"\nweather = \"fine\"\nmin_free_percent = 99\nkeep_removed = true\n\
                    [registry]\nauthfile = \"/none\"\nplain_http = [\"r.test:5000\"]\nmirror = 3\n\
                    [forecast]\nrain = true\n";
        let (config, unknown) = kept(text).config(&Overrides::default()).unwrap();
        assert_eq!(
            unknown,
            [
                "forecast.rain",
                "registry.mirror",
                "weather",
                "min_free_percent"
            ]
        );
        assert_eq!(config.root, Path::new("/x"));
        assert!(config.keep_removed);
        assert_eq!(config.min_free_percent, 5);
        assert_eq!(config.registry.plain_http, ["r.test:5000"]);
        assert_eq!(
            config.registry.authfile.as_deref(),
            Some(Path::new("/none"))
        );
        assert!(config.registry.unchecked);
        let known = &config.registry.known_ca[Path::new("/ca.pem")];
        assert_eq!(known, b"an authority");
        for text in ["root = \"relative\"", "root = [", "address = \"x\""] {
            assert!(kept(text).config(&Overrides::default()).is_err(), "{text}");
        }
    }
}
