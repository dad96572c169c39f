//! Which processes hold a socket that listens, and whether a signal has stopped them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Flag of a socket that listens, in `/proc/net/unix` (`__SO_ACCEPTCON`).
const LISTENS: u32 = 1 << 16;

/// Processes that hold the socket bound to `path` and are stopped, as by SIGSTOP: whoever connects is
/// accepted by the kernel and never answered.
pub(super) fn stopped(path: &Path) -> Vec<u32> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let Some(inode) = inode(&table, path) else {
        return Vec::new();
    };
    let socket = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|&process| is_stopped(process) && holds(process, &socket))
        .collect()
}

/// The inode of the socket that listens at `path`, however that is written.
fn inode(table: &str, path: &Path) -> Option<u64> {
    let place = fs::metadata(path).ok()?;
    let is_it = |bound: &str| {
        fs::metadata(bound)
            .is_ok_and(|found| (found.dev(), found.ino()) == (place.dev(), place.ino()))
    };
    let mut bound = table.lines().filter_map(listener);
    bound
        .find(|(_, bound)| is_it(bound))
        .map(|(inode, _)| inode)
}

/// Inode and path of a socket that listens, by its line: Num, RefCount, Protocol, Flags, Type, St, Inode, Path.
fn listener(line: &str) -> Option<(u64, &str)> {
    let mut rest = line;
    let mut field = || {
        let (field, behind) = rest.trim_start().split_once(' ')?;
        rest = behind;
        Some(field)
    };
    let flags = [field()?, field()?, field()?, field()?][3];
    let flags = u32::from_str_radix(flags, 16).ok()?;
    let inode = [field()?, field()?, field()?][2];
    (flags & LISTENS != 0).then_some((inode.parse().ok()?, rest))
}

fn holds(process: u32, socket: &str) -> bool {
    let held = fs::read_dir(format!("/proc/{process}/fd"));
    let mut held = held.into_iter().flatten().flatten();
    held.any(|one| fs::read_link(one.path()).is_ok_and(|to| to.as_os_str() == socket))
}

fn is_stopped(process: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before it may have any characters.
    let state = status
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    matches!(state, Some('T' | 't'))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Promise: the socket is found by any way to its file, also one with spaces in it, and who holds it by its inode.
    #[test]
    fn a_socket_is_found_with_its_holder() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a place");
        fs::create_dir(&place).unwrap();
        let _listener = UnixListener::bind(place.join("its socket")).unwrap();
        std::os::unix::fs::symlink(&place, dir.path().join("way")).unwrap();
        let table = fs::read_to_string("/proc/net/unix").unwrap();
        let found = inode(&table, &dir.path().join("way/its socket")).unwrap();
        assert!(holds(std::process::id(), &format!("socket:[{found}]")));
        assert_eq!(inode(&table, &dir.path().join("none")), None);
        assert_eq!(stopped(&place.join("its socket")), [0_u32; 0]);
    }
}
