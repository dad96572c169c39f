//! Docker's `config.json` and Podman's `auth.json`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::{Credential, CredentialError};
use crate::bounded;
use crate::secret::Secret;

/// Largest credential file, bytes: a thousand entries with tokens of 4 KiB.
pub const CREDENTIALS_BYTES_MAX: u64 = 4 << 20;

/// Standard base64, with or without padding: both are found in the wild.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The parts of the file that say how to log in; everything else is ignored.
#[derive(Deserialize, Default)]
pub(super) struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    programs: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, rename = "identitytoken")]
    identity: Option<String>,
    #[serde(default, rename = "registrytoken")]
    token: Option<String>,
}

impl AuthFile {
    /// Reads `path`; `None` if it does not exist and need not.
    pub(super) async fn read(path: &Path, required: bool) -> Result<Option<Self>, CredentialError> {
        let wrong = |reason: String| CredentialError::File {
            path: path.into(),
            reason,
        };
        let file = path.to_path_buf();
        let read =
            tokio::task::spawn_blocking(move || bounded::read(&file, CREDENTIALS_BYTES_MAX)).await;
        let text = match read.map_err(|e| wrong(e.to_string()))? {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound && !required => return Ok(None),
            // A daemon that may not read another user's home has no credentials there.
            Err(e) if e.kind() == ErrorKind::PermissionDenied && !required => return Ok(None),
            Err(e) => return Err(wrong(e.to_string())),
        };
        Self::parse(&text).map(Some).map_err(wrong)
    }

    pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        // The message says the line, never the text.
        serde_json::from_slice(text).map_err(|e| format!("no JSON of that form, line {}", e.line()))
    }

    /// The program that `credHelpers` names for `key`.
    pub(super) fn program_for(&self, key: &str) -> Option<&str> {
        let found = self.programs.iter().find(|(name, _)| normal(name) == key);
        found
            .map(|(_, program)| program.as_str())
            .filter(|name| !name.is_empty())
    }

    /// The program that holds everything else.
    pub(super) fn store(&self) -> Option<&str> {
        self.store.as_deref().filter(|name| !name.is_empty())
    }

    /// The entry of the first of `keys` that has one.
    pub(super) fn entry(&self, keys: &[String]) -> Result<Option<Credential>, String> {
        for key in keys {
            for (name, entry) in &self.auths {
                if normal(name) == key
                    && let Some(found) = entry.credential(name)?
                {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }
}

impl Entry {
    /// What the entry holds; an empty one says that `credsStore` has it.
    fn credential(&self, name: &str) -> Result<Option<Credential>, String> {
        let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        if let Some(token) = text(&self.identity) {
            return Ok(Some(Credential::Identity(Secret::new(token))));
        }
        if let Some(token) = text(&self.token) {
            return Ok(Some(Credential::Token(Secret::new(token))));
        }
        if let Some(auth) = text(&self.auth) {
            let wrong =
                || format!("the entry {name:?} has an `auth` that is not base64 of user:password");
            let bytes = BASE64.decode(auth.trim()).map_err(|_| wrong())?;
            let pair = String::from_utf8(bytes).map_err(|_| wrong())?;
            let (username, password) = pair.split_once(':').ok_or_else(wrong)?;
            // Some old tools wrote a NUL after the password.
            let password = password.trim_end_matches('\0');
            return Ok(Some(password_or_token(username, password)));
        }
        match (text(&self.username), text(&self.password)) {
            (Some(username), Some(password)) => Ok(Some(password_or_token(&username, &password))),
            _ => Ok(None),
        }
    }
}

/// A user named `<token>` marks an identity token.
pub(super) fn password_or_token(username: &str, password: &str) -> Credential {
    if username == "<token>" {
        return Credential::Identity(Secret::new(password));
    }
    Credential::Password {
        username: username.into(),
        password: Secret::new(password),
    }
}

/// A key without scheme and API version: `https://index.docker.io/v1/` is `index.docker.io`.
fn normal(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key)
}
