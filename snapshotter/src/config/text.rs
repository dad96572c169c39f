//! What a configuration file says, and the same checked, with the places of its mistakes.

use std::io;
use std::path::{Path, PathBuf};

use larder_registry::bounded;

use super::{Config, ConfigError, DEFAULT_PATH, Overrides, registry, syntax};

/// Longest file, bytes: a line for each of ten thousand registries.
pub(super) const TEXT_BYTES_MAX: u64 = 1 << 20;

/// The text of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    path: PathBuf,
    text: String,
}

impl Text {
    /// Reads `path`, or the default file if there is one.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, ConfigError> {
        let (path, required) = path.map_or((Path::new(DEFAULT_PATH), false), |path| (path, true));
        let text = match bounded::read_text(path, TEXT_BYTES_MAX) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => String::new(),
            Err(source) => {
                return Err(ConfigError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        Ok(Self {
            path: path.to_owned(),
            text,
        })
    }

    /// What it means, with the files it names looked at.
    pub(super) fn config(&self, overrides: &Overrides) -> Result<Config, ConfigError> {
        let written = toml::from_str(&self.text).map_err(|error| ConfigError::Parse {
            path: self.path.clone(),
            what: syntax::in_words(&self.text, &error),
        })?;
        let config = Config::resolve(written, overrides).and_then(|config| {
            config.check_places()?;
            registry::check_files(&config.registry)?;
            Ok(config)
        });
        config.map_err(|error| self.place(error, overrides))
    }

    /// An error with the line it is about, where that is a line of this text.
    pub(super) fn place(&self, error: ConfigError, overrides: &Overrides) -> ConfigError {
        match error {
            ConfigError::Value { key, reason } if !overrides.has(key) => {
                match syntax::line(&self.text, key) {
                    Some(line) => ConfigError::Place {
                        path: self.path.clone(),
                        line,
                        key,
                        reason,
                    },
                    None => ConfigError::Value { key, reason },
                }
            }
            other => other,
        }
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: what is no configuration at all costs neither memory nor time without bound.
    #[test]
    fn what_is_no_file_is_refused() {
        let told = |path| Text::read(Some(Path::new(path))).unwrap_err().to_string();
        assert_eq!(
            told("/dev/zero"),
            "read configuration /dev/zero: it is a device, where a file is expected"
        );
        assert!(told("/dev").contains("is a directory"));
    }

    /// Promise: a file longer than any configuration is refused by the limit.
    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(TEXT_BYTES_MAX + 1).unwrap();
        let told = Text::read(Some(file.path())).unwrap_err().to_string();
        assert!(told.contains("more than 1048576 bytes"), "{told}");
    }
}
