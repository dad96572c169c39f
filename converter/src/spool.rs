//! Files for what is on its way to a destination: nameless, so that nothing is left behind
//! whatever ends the process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};

/// The directory for files that get no name: `$TMPDIR`, or `/var/tmp`, because `/tmp` is memory
/// on many machines and a layer may be larger than that.
pub fn default_dir() -> PathBuf {
    std::env::var_os("TMPDIR")
        .filter(|dir| !dir.is_empty())
        .map_or("/var/tmp".into(), Into::into)
}

/// A nameless file on the file system of `dir`.
pub fn create(dir: &Path) -> io::Result<File> {
    tempfile::tempfile_in(dir)
}

/// Gives a nameless file that lies on the same file system the name `path`; its bytes are on
/// disk before the name is. A file that has that name already stays: names are digests.
pub fn keep(file: &File, path: &Path) -> io::Result<()> {
    file.sync_data()?;
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, &own, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        // Where nameless files cannot get a name, or there is no /proc, the bytes are copied.
        Err(_) => copy(file, path),
    }
}

fn copy(file: &File, path: &Path) -> io::Result<()> {
    use std::io::Seek as _;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut named = tempfile::NamedTempFile::new_in(dir)?;
    let mut from = file.try_clone()?;
    from.rewind()?;
    io::copy(&mut from, &mut named)?;
    persist(named, path)
}

/// Writes a small file so that it is either the old one or the new one, whatever happens.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut named = tempfile::NamedTempFile::new_in(dir)?;
    named.write_all(bytes)?;
    persist(named, path)
}

/// Gives a temporary file its final name and the permissions of an ordinary file.
pub fn persist(named: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    // Everybody may read a container image, as with every tool that writes one.
    named
        .as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o644))?;
    named.as_file().sync_data()?;
    named.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_kept_file_has_its_bytes_and_the_first_one_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        for text in ["one", "two"] {
            let mut file = create(dir.path()).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            keep(&file, &path).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        let mut file = create(dir.path()).unwrap();
        file.write_all(b"three").unwrap();
        copy(&file, &path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
