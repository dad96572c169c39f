//! The values of `[registry]` and `[hosts]`: a mistake in them would show as layers that are not
//! lazy, much later.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use larder_registry::{CREDENTIALS_BYTES_MAX, PEM_BYTES_MAX, Reference, bounded, holds_authority};

use super::{ConfigError, RegistryConfig};

/// Files of authorities at most, each of which stays in memory: more than anybody has authorities.
const EXTRA_CA_MAX: usize = 64;

pub(super) fn check(config: &RegistryConfig) -> Result<(), ConfigError> {
    if config.extra_ca.len() > EXTRA_CA_MAX {
        return Err(ConfigError::Value {
            key: "registry.extra_ca",
            reason: format!("names more than {EXTRA_CA_MAX} files: join them, one may hold many"),
        });
    }
    for name in &config.plain_http {
        check_name("registry.plain_http", name)?;
    }
    for (without, with) in &config.ports {
        let port = with.strip_prefix(without.as_str());
        if !port.is_some_and(|port| port.starts_with(':')) {
            let reason = format!("{with:?} is not {without:?} with a port");
            return Err(ConfigError::Value {
                key: "hosts",
                reason,
            });
        }
        check_name("hosts", with)?;
    }
    Ok(())
}

/// Looks at the files that are named.
pub(super) fn check_files(config: &RegistryConfig) -> Result<(), ConfigError> {
    if let Some(file) = &config.authfile {
        check_credentials(file)?;
    }
    if let Some(directory) = &config.hosts_dir
        && !directory.is_dir()
    {
        let reason = "is not an existing directory";
        return Err(refused("registry.hosts_dir", directory, &reason));
    }
    for file in &config.extra_ca {
        check_authority(file)?;
    }
    Ok(())
}

/// What the files of authorities hold, which were looked at just now, as far as all of it has at most `bytes_max`.
pub(super) fn authorities(config: &RegistryConfig, bytes_max: u64) -> BTreeMap<PathBuf, String> {
    let mut left = bytes_max;
    let mut held = BTreeMap::new();
    for path in &config.extra_ca {
        // What is no text is between the certificates.
        let pem = bounded::read(path, PEM_BYTES_MAX.min(left)).ok();
        let pem = pem.filter(|pem| holds_authority(pem));
        if let Some(pem) = pem.map(|pem| String::from_utf8_lossy(&pem).into_owned()) {
            left = left.saturating_sub(pem.len() as u64);
            held.insert(path.clone(), pem);
        }
    }
    held
}

/// What images can name: an entry that no reference has would never be used.
fn check_name(key: &'static str, name: &str) -> Result<(), ConfigError> {
    let image = format!("{name}/team/app").parse::<Reference>();
    if image.is_ok_and(|image| image.registry() == name) {
        return Ok(());
    }
    let reason = format!(
        "{name:?} names no registry: write \"host\" or \"host:port\" as in an image's reference, \
         without scheme and path"
    );
    Err(ConfigError::Value { key, reason })
}

/// Credentials, never repeated: only whether they can be read.
fn check_credentials(path: &Path) -> Result<(), ConfigError> {
    const KEY: &str = "registry.authfile";
    let text = read(KEY, path, CREDENTIALS_BYTES_MAX)?;
    // Docker, too, takes an empty file for one without entries.
    if text.trim_ascii().is_empty() {
        return Ok(());
    }
    let parsed = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&text);
    parsed.map(drop).map_err(|error| {
        let reason = format!("is not a JSON object, line {}", error.line());
        refused(KEY, path, &reason)
    })
}

fn check_authority(path: &Path) -> Result<(), ConfigError> {
    const KEY: &str = "registry.extra_ca";
    if holds_authority(&read(KEY, path, PEM_BYTES_MAX)?) {
        Ok(())
    } else {
        Err(refused(KEY, path, &"holds no certificate in PEM"))
    }
}

fn read(key: &'static str, path: &Path, max: u64) -> Result<Vec<u8>, ConfigError> {
    let wrong = |error| refused(key, path, &format!("cannot be read: {error}"));
    bounded::read(path, max).map_err(wrong)
}

fn refused(key: &'static str, path: &Path, why: &dyn std::fmt::Display) -> ConfigError {
    ConfigError::Value {
        key,
        reason: format!("{} {why}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Config, Overrides};

    fn load(text: &str) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        Config::load(Some(file.path()), &Overrides::default())
    }

    /// Promise: what would never be used is refused, by key and value.
    #[test]
    fn names_that_match_no_registry_are_refused() {
        for name in [
            "http://x:5000",
            "registry.test/path",
            "registry.test:port",
            "plainname",
            "",
        ] {
            let refused = load(&format!("[registry]\nplain_http = [{name:?}]"));
            let told = refused.unwrap_err().to_string();
            assert!(told.contains("registry.plain_http"), "{told}");
            assert!(told.contains(&format!("{name:?}")), "{told}");
        }
        load("[registry]\nplain_http = [\"10.9.9.9:5002\", \"registry.test\", \"localhost:1\"]")
            .unwrap();
        load("[hosts]\n\"r.test\" = \"r.test:5000\"").unwrap();
        for value in [
            "other.test:5000",
            "r.test",
            "r.test:5000/x",
            "https://r.test:5000",
        ] {
            let told = load(&format!("[hosts]\n\"r.test\" = {value:?}"))
                .unwrap_err()
                .to_string();
            assert!(told.contains("key hosts") && told.contains(value), "{told}");
        }
    }

    /// Promise: what has no end, or waits for somebody, is refused by its kind, and what is too long by the
    /// limit: at once, and whatever it was named for.
    #[test]
    fn what_is_no_file_or_too_long_is_refused_at_once() {
        let scratch = tempfile::tempdir().unwrap();
        let (pipe, long) = (scratch.path().join("pipe"), scratch.path().join("long"));
        larder_test_support::pipe::pipe(&pipe);
        let file = fs::File::create(&long).unwrap();
        file.set_len(CREDENTIALS_BYTES_MAX + 1).unwrap();
        for (path, words) in [
            (
                Path::new("/dev/zero"),
                "it is a device, where a file is expected",
            ),
            (&pipe, "it is a pipe, where a file is expected"),
            (
                scratch.path(),
                "it is a directory, where a file is expected",
            ),
            (&long, "it has more than "),
        ] {
            for text in [
                format!("[registry]\nauthfile = {path:?}"),
                format!("[registry]\nextra_ca = [{path:?}]"),
            ] {
                let told = load(&text).unwrap_err().to_string();
                assert!(told.contains(words), "{told}");
                assert!(told.contains(path.to_str().unwrap()), "{told}");
            }
        }
        load("[registry]\nauthfile = \"/dev/null\"").unwrap();
    }

    /// Promise: files that stay in memory are few, however often one is named.
    #[test]
    fn more_authorities_than_anybody_has_are_refused() {
        let names = vec!["/none"; EXTRA_CA_MAX + 1];
        let told = load(&format!("[registry]\nextra_ca = {names:?}"));
        let told = told.unwrap_err().to_string();
        assert!(told.contains("names more than 64 files"), "{told}");
    }

    /// Promise: files that were named are looked at before anything starts, and named if they will
    /// not do; their content is not repeated.
    #[test]
    fn files_that_cannot_be_used_are_refused() {
        const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
        let files = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = files.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let none = files.path().join("none").display().to_string();
        let half = write("half", &format!("{BEGIN}\nAAAA"));
        let (bad, good) = (
            write("bad", "{\"auths\": secret"),
            write("good", "{\"auths\": {}}"),
        );
        let (pem, empty) = (
            write(
                "pem",
                &format!("{BEGIN}\nAAAA\n-----END CERTIFICATE-----\n"),
            ),
            write("empty", "\n"),
        );
        for (key, file) in [
            ("authfile", &none),
            ("authfile", &bad),
            ("hosts_dir", &none),
            ("hosts_dir", &good),
            ("extra_ca", &none),
            ("extra_ca", &good),
            ("extra_ca", &half),
        ] {
            let value = if key == "extra_ca" {
                format!("[{file:?}]")
            } else {
                format!("{file:?}")
            };
            let refused = load(&format!("[registry]\n{key} = {value}")).unwrap_err();
            let told = refused.to_string();
            assert!(told.contains(&format!("registry.{key}: {file}")), "{told}");
            assert!(!told.contains("secret"), "{told}");
        }
        let directory = files.path().display();
        let usable =
            format!("authfile = {good:?}\nhosts_dir = \"{directory}\"\nextra_ca = [{pem:?}]");
        load(&format!("[registry]\n{usable}")).unwrap();
        load(&format!("[registry]\nauthfile = {empty:?}")).unwrap();
    }
}
