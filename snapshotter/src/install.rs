//! Making containerd know the snapshotter: its configuration with our tables, and without them.
//!
//! ```text
//! plan ─▶ which file: its own fragment where containerd imports a directory, else the file itself
//!   └─▶ edit ─▶ the new text; everything else in it stays as it is, comments too
//!         └─▶ files ─▶ a backup, the new text, and a record for the way back
//! ```

mod document;
mod edit;
mod files;
pub(crate) mod imported;
mod undo;

use std::path::{Path, PathBuf};

pub use edit::{Edited, edit};
pub use files::{Change, Files, install, uninstall};

/// What containerd should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// What the snapshotter is called there.
    pub name: String,
    /// Our socket.
    pub address: PathBuf,
    /// Where the bytes are, for whoever watches that disk.
    pub root: PathBuf,
    /// Whether CRI, and with it Kubernetes, uses it unless a pod says otherwise.
    pub cri: bool,
}

/// Why a configuration is left alone.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read or written.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{path} is not TOML, nothing was changed: {what}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        what: String,
    },
    /// It says something this program does not understand.
    #[error("{path} is left as it is: {why}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// What it says, and what to do.
        why: String,
    },
}

impl InstallError {
    fn io<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests;
