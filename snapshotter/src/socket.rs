//! Unix sockets: bound for one user, taken over only from the dead.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

pub use larder_containerd::Connector;
use larder_fuse::check_place;
use nix::sys::stat::{Mode, umask};
use tokio::net::UnixListener;

/// Longest path of a Unix socket, bytes: `sun_path` has 108, one of them for the final NUL.
pub const PATH_BYTES_MAX: usize = 107;

/// Mode of a new directory for sockets: others may pass, for the sockets themselves are closed.
const DIRECTORY_MODE: u32 = 0o711;

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error(
        "{0} is in use: another process listens there; stop it, or choose another path for this one"
    )]
    InUse(PathBuf),
    /// Something that is not a socket is in the way.
    #[error("{0} exists and is not a socket: remove it, or choose another path for this one")]
    NotASocket(PathBuf),
    /// Anything else.
    #[error("bind {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A bound socket, whose file goes away with it.
#[derive(Debug)]
pub struct Bound {
    path: PathBuf,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // A file that is left is found stale by the next start.
        drop(fs::remove_file(&self.path));
    }
}

/// Binds `path` with mode 0600, making its directory if there is none.
///
/// A socket file that is already there is removed only if nobody listens on it. The caller holds
/// the lock on the root directory, so two starting processes do not race here.
pub fn bind(path: &Path) -> Result<(UnixListener, Bound), BindError> {
    let failed = |source| BindError::Io {
        path: path.to_owned(),
        source,
    };
    if let Some(parent) = path.parent() {
        make_directory(parent).map_err(failed)?;
    }
    // Whoever can write to the directory can put a socket of theirs in the place of ours.
    check_place(path).map_err(failed)?;
    match UnixStream::connect(path) {
        Ok(_) => return Err(BindError::InUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            refuse_other_files(path)?;
            fs::remove_file(path).map_err(failed)?;
        }
        Err(error) => return Err(failed(error)),
    }
    // The umask, not a later chmod: there is no moment at which others could connect.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let bound = Bound {
        path: path.to_owned(),
    };
    Ok((listener.map_err(failed)?, bound))
}

/// A listening socket of another process, if it is the one at `path`: the configuration may name
/// another by now.
pub fn held(socket: OwnedFd, path: &Path) -> Option<(UnixListener, Bound)> {
    let socket = std::os::unix::net::UnixListener::from(socket);
    let is_there = fs::symlink_metadata(path).is_ok();
    if !is_there || socket.local_addr().ok()?.as_pathname() != Some(path) {
        return None;
    }
    let bound = Bound {
        path: path.to_owned(),
    };
    Some((listen(socket.into()).ok()?, bound))
}

/// The listening socket `socket`, which another process made.
pub fn listen(socket: OwnedFd) -> io::Result<UnixListener> {
    let socket = std::os::unix::net::UnixListener::from(socket);
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket)
}

fn make_directory(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.exists() {
        return Ok(());
    }
    // Closed from the first moment on, whatever the umask.
    let mut directory = DirBuilder::new();
    directory
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)?;
    fs::set_permissions(path, Permissions::from_mode(DIRECTORY_MODE))
}

/// connect(2) refuses regular files with the same code as stale sockets.
fn refuse_other_files(path: &Path) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt;
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(BindError::NotASocket(path.to_owned())),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[tokio::test]
    async fn a_stale_socket_is_taken_over_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/s.sock");
        fs::create_dir(dir.path().join("run")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let (_listener, bound) = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(bound);
        assert!(!path.exists());
    }

    /// Promise: the next daemon listens where the one before did, and where the configuration says.
    #[tokio::test]
    async fn a_socket_that_is_handed_over_is_the_same_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("s.sock"), dir.path().join("other"));
        let (listener, bound) = bind(&path).unwrap();
        let copy = || listener.as_fd().try_clone_to_owned().unwrap();
        assert!(held(copy(), &other).is_none());
        let waiting = UnixStream::connect(&path).unwrap();
        let (handed, _bound) = held(copy(), &path).unwrap();
        handed.accept().await.unwrap();
        drop((waiting, bound));
        assert!(held(copy(), &path).is_none(), "nobody would find it");
    }

    #[tokio::test]
    async fn a_live_socket_stays_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let _owner = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::InUse(_))));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_file_in_the_way_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
        assert!(path.exists());
    }

    /// Promise: no moment and no umask leaves a socket or its directory open to others, and a directory
    /// where others could replace the socket is refused.
    #[tokio::test]
    async fn sockets_and_their_directories_are_closed_whatever_the_umask() {
        let dir = tempfile::tempdir().unwrap();
        let before = umask(Mode::empty());
        let path = dir.path().join("a/b/s.sock");
        let bound = bind(&path);
        umask(before);
        let (listener, _bound) = bound.unwrap();
        // No abstract name, which no mode protects (CVE-2020-15257).
        assert_eq!(listener.local_addr().unwrap().as_pathname(), Some(&*path));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let outer = path.parent().unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!((mode(outer), mode(outer.parent().unwrap())), (0o711, 0o711));
        fs::set_permissions(outer, Permissions::from_mode(0o777)).unwrap();
        let refused = bind(&outer.join("t.sock")).unwrap_err().to_string();
        assert!(refused.contains("written to by others"), "{refused}");
    }
}
