//! The directories of the snapshots, with the modes and owners containerd's own snapshotter gives.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use larder_fuse::private_directory;

use super::{Kind, Owner};

/// What a snapshot's directory has: its root, and overlayfs's work directory.
pub(super) const FS: &str = "fs";
pub(super) const WORK: &str = "work";

/// Mode of a snapshot's root: the root directory of a container, which anybody may enter.
const FS_MODE: u32 = 0o755;
/// Mode of overlayfs's work directory, as containerd sets it.
const WORK_MODE: u32 = 0o711;
/// Mode of what holds them: only root may look, for the files of all images lie below.
const OUTER_MODE: u32 = 0o700;
/// Mode of the database: labels name images and registries.
const FILE_MODE: u32 = 0o600;

/// A directory that could not be made, read or deleted.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}: {source}")]
pub struct DirectoryError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DirectoryError + 'a {
    move |source| DirectoryError {
        action,
        path: path.to_owned(),
        source,
    }
}

/// The directories of all snapshots: `<root>/snapshots`.
///
/// They are siblings with short names, because containerd shortens long `lowerdir` options, which
/// must fit one page, only when all layers share a directory.
#[derive(Debug, Clone)]
pub struct Directories {
    path: PathBuf,
}

impl Directories {
    /// What holds them all.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn create(path: &Path) -> Result<Self, DirectoryError> {
        // Both are closed before anything is in them.
        for directory in path.parent().into_iter().chain([path]) {
            private_directory(directory).map_err(failed("prepare", directory))?;
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Root of snapshot `id`.
    pub fn fs(&self, id: u64) -> PathBuf {
        self.path.join(id.to_string()).join(FS)
    }

    /// overlayfs's work directory of snapshot `id`.
    pub fn work(&self, id: u64) -> PathBuf {
        self.path.join(id.to_string()).join(WORK)
    }

    /// Makes the directories of a new snapshot.
    pub(super) fn make(&self, id: u64, kind: Kind, owner: Owner) -> Result<(), DirectoryError> {
        let outer = self.path.join(id.to_string());
        fs::create_dir(&outer).map_err(failed("create", &outer))?;
        set_mode(&outer, OUTER_MODE)?;
        self.complete(id, kind, owner)
    }

    /// Makes those that are missing.
    pub(super) fn complete(&self, id: u64, kind: Kind, owner: Owner) -> Result<(), DirectoryError> {
        let outer = self.path.join(id.to_string());
        make(&outer, OUTER_MODE)?;
        let root = self.fs(id);
        if make(&root, FS_MODE)? && owner != Owner::ROOT {
            let set = chown(&root, Some(owner.uid), Some(owner.gid));
            set.map_err(failed("change owner of", &root))?;
        }
        if kind == Kind::Active {
            make(&self.work(id), WORK_MODE)?;
        }
        Ok(())
    }

    /// What snapshot `id` has; what is mounted there is not asked.
    pub(super) fn names(&self, id: u64) -> Vec<OsString> {
        let entries = fs::read_dir(self.path.join(id.to_string()));
        let entries = entries.into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    }

    pub(super) fn owner(&self, id: u64) -> Result<Owner, DirectoryError> {
        let path = self.fs(id);
        let found = fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        Ok(Owner {
            uid: found.uid(),
            gid: found.gid(),
        })
    }

    /// Deletes everything of snapshot `id`; nothing may be mounted there any more.
    pub fn delete(&self, id: u64) -> Result<(), DirectoryError> {
        let path = self.path.join(id.to_string());
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(failed("delete", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Ids of all directories there are.
    pub(super) fn ids(&self) -> Result<BTreeSet<u64>, DirectoryError> {
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(&self.path).map_err(failed("list", &self.path))? {
            let entry = entry.map_err(failed("list", &self.path))?;
            // What does not look like ours is left alone.
            ids.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<u64>().ok()),
            );
        }
        Ok(ids)
    }

    pub(super) fn highest(&self) -> Result<u64, DirectoryError> {
        Ok(self.ids()?.last().copied().unwrap_or(0))
    }
}

/// Makes `path` a file, empty if there was none, that nobody but root may open.
pub(super) fn private_file(path: &Path) -> Result<(), DirectoryError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    // A link would have us change what it leads to.
    let made = options
        .mode(FILE_MODE)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path);
    made.map_err(failed("create", path))?;
    set_mode(path, FILE_MODE)
}

/// Makes a directory; false if it was there. Modes are set explicitly: the process's umask must not reach into
/// containers.
fn make(path: &Path, mode: u32) -> Result<bool, DirectoryError> {
    match fs::create_dir(path) {
        Ok(()) => set_mode(path, mode).map(|()| true),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(failed("create", path)(error)),
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<(), DirectoryError> {
    let set = fs::set_permissions(path, Permissions::from_mode(mode));
    set.map_err(failed("set the mode of", path))
}
