//! Where credentials come from: the files of Docker and Podman, and their credential programs.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::secret::Secret;

mod file;
mod program;

use file::AuthFile;
pub use file::CREDENTIALS_BYTES_MAX;

/// The key under which Docker stores the credentials of Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What to show a registry or its token server.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Credential {
    /// A user name and a password or access token.
    Password {
        /// The user name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token, for which the token server gives access tokens.
    Identity(Secret),
    /// An access token to be sent as it is.
    Token(Secret),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The user name is half of a password, and of a robot's account often the telling one.
        f.write_str(match self {
            Self::Password { .. } => "Password(<redacted>)",
            Self::Identity(_) => "Identity(<redacted>)",
            Self::Token(_) => "Token(<redacted>)",
        })
    }
}

/// Credentials that are there but cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CredentialError {
    /// A file that does not exist though it was asked for, or that cannot be read.
    #[error("cannot read credentials from {path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A credential program that failed; its output is not repeated, it may hold secrets.
    #[error("credential program docker-credential-{name} for {host} {reason}")]
    Program {
        /// The program's name without its prefix.
        name: String,
        /// The host it was asked about.
        host: String,
        /// How it failed.
        reason: String,
    },
}

/// The files to search, in order.
#[derive(Debug, Clone)]
pub(crate) struct CredentialStore {
    files: Vec<PathBuf>,
    /// Whether the one file must exist because somebody named it.
    required: bool,
}

impl CredentialStore {
    /// The files for `authfile`, or those that Docker's and Podman's variables lead to.
    pub(crate) fn new(
        authfile: Option<&Path>,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Self {
        let path = |name: &str| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        if let Some(file) = authfile
            .map(Path::to_path_buf)
            .or_else(|| path("REGISTRY_AUTH_FILE"))
        {
            return Self {
                files: vec![file],
                required: true,
            };
        }
        let home = path("HOME");
        let docker = path("DOCKER_CONFIG").or_else(|| home.as_ref().map(|h| h.join(".docker")));
        let config = path("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|h| h.join(".config")));
        let files = [
            docker.map(|dir| dir.join("config.json")),
            path("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
            config.map(|dir| dir.join("containers/auth.json")),
        ];
        Self {
            files: files.into_iter().flatten().collect(),
            required: false,
        }
    }

    /// The credential for `repository` at `host`, read anew each time: they rotate.
    pub(crate) async fn find(
        &self,
        host: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        for path in &self.files {
            let Some(file) = AuthFile::read(path, self.required).await? else {
                continue;
            };
            let keys = keys(host, repository);
            if let Some(name) = keys.iter().find_map(|key| file.program_for(key)) {
                if let Some(found) = program::ask(name, server(host)).await? {
                    return Ok(Some(found));
                }
                continue;
            }
            let wrong = |reason| CredentialError::File {
                path: path.clone(),
                reason,
            };
            if let Some(found) = file.entry(&keys).map_err(wrong)? {
                return Ok(Some(found));
            }
            if let Some(name) = file.store()
                && let Some(found) = program::ask(name, server(host)).await?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// What credential programs call `host`.
fn server(host: &str) -> &str {
    if is_hub(host) { HUB_KEY } else { host }
}

fn is_hub(host: &str) -> bool {
    matches!(
        host,
        "docker.io" | "index.docker.io" | "registry-1.docker.io"
    )
}

/// The keys that may hold the credential, the most specific first: Podman scopes them by path.
fn keys(host: &str, repository: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = repository;
    loop {
        keys.push(format!("{host}/{path}"));
        match path.rsplit_once('/') {
            Some((parent, _)) => path = parent,
            None => break,
        }
    }
    keys.push(host.to_owned());
    if is_hub(host) {
        keys.extend(["index.docker.io", "docker.io", "registry-1.docker.io"].map(String::from));
    }
    keys
}

/// The parsers of this module, for [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    use super::{AuthFile, keys, program};

    pub(crate) fn file(bytes: &[u8]) -> Result<(), String> {
        AuthFile::parse(bytes)?
            .entry(&keys("r.io", "team/app"))
            .map(drop)
    }

    pub(crate) fn program(bytes: &[u8]) -> Result<(), String> {
        program::parse(bytes).map(drop)
    }
}

#[cfg(test)]
mod tests;
