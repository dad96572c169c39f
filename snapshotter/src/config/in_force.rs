//! What a daemon runs with: what its file says, or, where that cannot be used, what the last one ran with.
//!
//! Containers wait for a daemon that takes over, so a mistake in the file is no reason for it not to start.

use std::fmt;
use std::path::Path;

use larder_proto::moment::moment;

use super::{Config, ConfigError, Kept, Overrides, Text};

/// A configuration, where it is from, and what the next daemon gets.
#[derive(Debug)]
pub struct InForce {
    /// What is meant.
    pub config: Config,
    /// What it was read from.
    pub kept: Kept,
    /// Why it is not what the file says now.
    pub old: Option<OldConfiguration>,
}

/// Why a daemon runs with what the one before ran with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OldConfiguration {
    /// When it was read, seconds since 1970.
    pub since: u64,
    /// What is wrong with what the file says now, and what of the old text this program does not know.
    pub why: String,
}

impl fmt::Display for OldConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = moment(self.since);
        write!(f, "with the configuration of {since}: {}", self.why)
    }
}

impl InForce {
    /// Reads `path`, or the default file if there is one, for a daemon that goes on from one that ran with
    /// `before`. An error only where there is nothing to go on with.
    pub fn load(
        path: Option<&Path>,
        overrides: &Overrides,
        before: Option<Kept>,
    ) -> Result<Self, ConfigError> {
        let refused = match usable(path, overrides, before.as_ref()) {
            Ok((config, text)) => {
                return Ok(Self {
                    kept: Kept::now(text, &config),
                    config,
                    old: None,
                });
            }
            Err(refused) => refused,
        };
        let Some(kept) = before else {
            return Err(refused);
        };
        let Ok((config, unknown)) = kept.config(overrides) else {
            return Err(refused);
        };
        let why = match &unknown[..] {
            [] => refused.to_string(),
            some => format!(
                "{refused}; this program leaves out of the old one: {}",
                some.join(", ")
            ),
        };
        let since = kept.since;
        Ok(Self {
            config,
            kept,
            old: Some(OldConfiguration { since, why }),
        })
    }
}

impl Config {
    /// Reads `path`, or the default file if there is one, for a daemon that is to take the place of one that runs
    /// with `running`.
    pub fn load_beside(
        path: Option<&Path>,
        overrides: &Overrides,
        running: Option<&Kept>,
    ) -> Result<Self, ConfigError> {
        usable(path, overrides, running).map(|(config, _)| config)
    }
}

/// What the file says, if it is right by itself and beside what runs.
fn usable(
    path: Option<&Path>,
    overrides: &Overrides,
    running: Option<&Kept>,
) -> Result<(Config, Text), ConfigError> {
    let text = Text::read(path)?;
    let config = text.config(overrides)?;
    if let Some((running, _)) = running.and_then(|running| running.config(overrides).ok()) {
        stays(&running, &config).map_err(|error| text.place(error, overrides))?;
    }
    Ok((config, text))
}

/// Whether `next` could go on where `running` is: mounts lie below the one, containerd talks to the other.
fn stays(running: &Config, next: &Config) -> Result<(), ConfigError> {
    for (key, from, to) in [
        ("root", &running.root, &next.root),
        ("address", &running.address, &next.address),
    ] {
        if from != to {
            let reason = format!(
                "changed from {} to {}, which a reload cannot do: put it back, or drain the node, stop the \
                 service and start it again",
                from.display(),
                to.display()
            );
            return Err(ConfigError::Value { key, reason });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use larder_test_support::certificates::Certificates;

    use super::*;
    use crate::registries::Registries;

    struct File(tempfile::NamedTempFile);

    impl File {
        fn new(text: &str) -> Self {
            let file = Self(tempfile::NamedTempFile::new().unwrap());
            file.write(text);
            file
        }

        fn write(&self, text: &str) {
            std::fs::write(self.0.path(), text).unwrap();
        }

        fn load(&self, before: Option<Kept>) -> Result<InForce, ConfigError> {
            InForce::load(Some(self.0.path()), &Overrides::default(), before)
        }
    }

    /// Promise: who takes over goes on with the last text that could be used, and says where the mistake is; who
    /// starts first does not start; mended, the file is in force again.
    #[test]
    fn a_mistake_is_no_reason_not_to_take_over() {
        let file = File::new("root = \"/x\"\nkeep_removed = true\n");
        let first = file.load(None).unwrap();
        assert_eq!(first.old, None);
        file.write("root = \"/x\"\nkeep_removed = 1\n");
        let place = format!("configuration {}, line 2", file.0.path().display());
        let refused = file.load(None).unwrap_err().to_string();
        assert!(refused.starts_with(&place), "{refused}");
        let mut before = first.kept;
        for _ in 0..2 {
            let next = file.load(Some(before.clone())).unwrap();
            assert_eq!((&next.kept, next.config.keep_removed), (&before, true));
            let old = next.old.unwrap();
            assert!(old.why.starts_with(&place), "{old}");
            assert_eq!(old.since, before.since);
            before = next.kept;
        }
        std::fs::remove_file(file.0.path()).unwrap();
        let gone = file.load(Some(before.clone())).unwrap().old.unwrap();
        assert!(gone.why.starts_with("read configuration "), "{gone}");
        file.write("root = \"/x\"\n");
        let mended = file.load(Some(before)).unwrap();
        assert_eq!((mended.old, mended.config.keep_removed), (None, false));
    }

    /// Promise: files that the configuration names are no reason either.
    #[test]
    fn a_named_file_that_broke_is_no_reason_not_to_take_over() {
        let named = tempfile::NamedTempFile::new().unwrap();
        let file = File::new(&format!("[registry]\nauthfile = {:?}\n", named.path()));
        let before = file.load(None).unwrap().kept;
        std::fs::write(named.path(), "{").unwrap();
        assert!(file.load(None).is_err());
        let next = file.load(Some(before)).unwrap();
        assert_eq!(next.config.registry.authfile.as_deref(), Some(named.path()));
        let old = next.old.unwrap().to_string();
        assert!(old.contains("line 2, key registry.authfile: "), "{old}");
    }

    /// Regression: a daemon that took over while a file of authorities was broken trusted none of them, and no registry could
    /// be asked for anything.
    ///
    /// Promise: authorities are those that the file held when it could last be used, also for the daemon after that; once
    /// it is mended, those that it holds.
    #[test]
    fn authorities_whose_file_broke_are_those_of_before() {
        let certificates = Certificates::new();
        let good = std::fs::read(certificates.authority()).unwrap();
        let named = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(named.path(), &good).unwrap();
        let file = File::new(&format!("[registry]\nextra_ca = [{:?}]\n", named.path()));
        let first = file.load(None).unwrap();
        assert!(first.config.registry.known_ca.is_empty());
        let mut before = first.kept;
        for broken in [Some(&good[..good.len() / 2]), Some(&b""[..]), None] {
            match broken {
                Some(bytes) => std::fs::write(named.path(), bytes).unwrap(),
                None => std::fs::remove_file(named.path()).unwrap(),
            }
            assert!(file.load(None).is_err());
            // As the supervisor hands it on.
            let given = Kept::open(before.seal().unwrap());
            let next = file.load(given).unwrap();
            let known = &next.config.registry.known_ca;
            assert_eq!(known[named.path()], good, "{broken:?}");
            assert!(Registries::for_layers(&next.config.registry).is_ok());
            let old = next.old.unwrap().to_string();
            assert!(old.contains("line 2, key registry.extra_ca: "), "{old}");
            before = next.kept;
        }
        let other = std::fs::read(Certificates::new().authority()).unwrap();
        std::fs::write(named.path(), &other).unwrap();
        let mended = file.load(Some(before)).unwrap();
        assert_eq!(
            (mended.old, mended.config.registry.known_ca.len()),
            (None, 0)
        );
        std::fs::write(named.path(), "").unwrap();
        let next = file.load(Some(mended.kept)).unwrap();
        assert_eq!(next.config.registry.known_ca[named.path()], other);
    }

    /// Regression: a root directory that was changed in the file was taken at the next reload.
    ///
    /// Promise: root and address stay as long as anybody runs with them, by a sentence that says what to do.
    #[test]
    fn root_and_address_stay_until_a_full_stop() {
        let file = File::new("root = \"/x\"\n");
        let before = file.load(None).unwrap().kept;
        let (path, none) = (Some(file.0.path()), Overrides::default());
        for (text, told) in [
            ("root = \"/y\"\n", "line 1, key root: changed from /x to /y"),
            (
                "",
                "configuration key root: changed from /x to /var/lib/larder",
            ),
            (
                "root = \"/x\"\naddress = \"/a.sock\"\n",
                "line 2, key address: changed from /run/larder/larder.sock to /a.sock",
            ),
        ] {
            file.write(text);
            let refused = Config::load_beside(path, &none, Some(&before)).unwrap_err();
            assert!(refused.to_string().contains(told), "{refused}");
            assert!(Config::load_beside(path, &none, None).is_ok());
            let next = file.load(Some(before.clone())).unwrap();
            assert_eq!(next.config.root, Path::new("/x"));
            assert!(next.old.unwrap().why.contains(told));
        }
        // The command line decides, for both.
        let root = Some("/z".into());
        let fixed = Overrides { root, ..none };
        file.write("root = \"/y\"\n");
        Config::load_beside(path, &fixed, Some(&before)).unwrap();
    }
}
