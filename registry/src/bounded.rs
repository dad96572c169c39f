//! Files that somebody else wrote or named: regular ones, of at most so many bytes, read without
//! waiting for anybody.
//!
//! A pipe would be empty for whoever reads it again: the next daemon, the next request that looks
//! for credentials. It would then seem as if the file said nothing, so it is refused.

use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Opens a regular file, or `/dev/null`, with which files are masked. Anything else is not so much
/// as opened: that may wait for good, and does something to some devices.
pub fn open(path: &Path) -> Result<File> {
    check(&fs::metadata(path)?)?;
    // Somebody may have put a pipe in its place meanwhile; and there are regular files in /proc that
    // wait for what comes.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = flags.bits().cast_signed();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)?;
    check(&file.metadata()?)?;
    Ok(file)
}

/// The bytes of `path`; an error if there are more than `max`, or it is no regular file. Files of
/// the kernel say that they have none, so what counts is what comes.
pub fn read(path: &Path, max: u64) -> Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        let text = format!("it has more than {max} bytes");
        return Err(Error::new(ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// The same as text.
pub fn read_text(path: &Path, max: u64) -> Result<String> {
    let text = String::from_utf8(read(path, max)?);
    text.map_err(|_| Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

fn check(found: &Metadata) -> Result<()> {
    // The number of /dev/null, in all Linux systems.
    const NULL: (u32, u32) = (1, 3);
    let number = found.rdev();
    let number = (rustix::fs::major(number), rustix::fs::minor(number));
    let kind = found.file_type();
    if kind.is_file() || (kind.is_char_device() && number == NULL) {
        return Ok(());
    }
    let text = format!("it is a {}, where a file is expected", word(kind));
    Err(Error::new(ErrorKind::InvalidInput, text))
}

fn word(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "directory"
    } else if kind.is_fifo() {
        "pipe"
    } else if kind.is_socket() {
        "socket"
    } else {
        "device"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: a file of the longest length is read, and one byte more is refused by the limit.
    #[test]
    fn what_is_too_long_is_given_up_at_the_limit() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [b'x'; 1000]).unwrap();
        assert_eq!(read(file.path(), 1000).unwrap().len(), 1000);
        let error = read(file.path(), 999).unwrap_err();
        assert_eq!(error.to_string(), "it has more than 999 bytes");
        // It says that it has no bytes.
        let error = read(Path::new("/proc/self/status"), 10).unwrap_err();
        assert_eq!(error.to_string(), "it has more than 10 bytes");
    }

    /// Promise: what is no file costs neither memory nor time, and is called what it is.
    #[test]
    fn what_is_no_file_is_refused_by_its_kind() {
        let scratch = tempfile::tempdir().unwrap();
        let (pipe, socket) = (scratch.path().join("pipe"), scratch.path().join("socket"));
        larder_test_support::pipe::pipe(&pipe);
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, kind) in [
            (Path::new("/dev/zero"), "device"),
            (scratch.path(), "directory"),
            (&pipe, "pipe"),
            (&socket, "socket"),
        ] {
            let expected = format!("it is a {kind}, where a file is expected");
            assert_eq!(read(path, 1000).unwrap_err().to_string(), expected);
        }
        let missing = read(&scratch.path().join("none"), 1).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn the_null_device_is_an_empty_file() {
        assert!(read(Path::new("/dev/null"), 1000).unwrap().is_empty());
    }
}
