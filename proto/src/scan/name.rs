//! Names of entries: cleaning, splitting, showing.

use std::borrow::Cow;

/// The path `name` denotes from the root, without leading slash: empty components and `.` are
/// dropped, `..` takes the component before it away and stops at the root. Empty for the root.
pub(super) fn clean(name: &[u8]) -> Cow<'_, [u8]> {
    let trimmed = name.strip_prefix(b"./").unwrap_or(name);
    let trimmed = trimmed.strip_suffix(b"/").unwrap_or(trimmed);
    let mut components = trimmed.split(|&b| b == b'/');
    if components.all(|part| !matches!(part, b"" | b"." | b"..")) {
        return Cow::Borrowed(trimmed);
    }
    let mut path = Vec::with_capacity(name.len());
    append(&mut path, name);
    Cow::Owned(path)
}

/// Goes on from the clean path `path` along `more`, as [`clean`] does.
pub(super) fn append(path: &mut Vec<u8>, more: &[u8]) {
    for part in more.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => path.truncate(path.iter().rposition(|&b| b == b'/').unwrap_or(0)),
            _ => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
}

/// Everything before the last slash, and everything after it.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    }
}

/// `name` in quotes for a message, shortened if it is very long.
pub(super) fn shown(name: &[u8]) -> String {
    const BYTES_MAX: usize = 300;
    let text = String::from_utf8_lossy(&name[..name.len().min(BYTES_MAX)]);
    if name.len() > BYTES_MAX {
        format!("{:?}…", text.as_ref())
    } else {
        format!("{:?}", text.as_ref())
    }
}
