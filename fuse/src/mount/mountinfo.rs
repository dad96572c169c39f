//! `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::SOURCE;

/// One mount of this process's name space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub target: PathBuf,
    /// The type of its file system, such as `erofs`.
    pub kind: String,
    /// What it was mounted from.
    pub source: OsString,
}

impl Mount {
    /// Whether Larder made it below `root`. Mounts an operator put there are not ours.
    pub(super) fn is_ours(&self, root: &Path) -> bool {
        if !self.target.starts_with(root) {
            return false;
        }
        match self.kind.as_str() {
            "fuse" | "overlay" => self.source == SOURCE,
            "erofs" => Path::new(&self.source).starts_with(root),
            _ => false,
        }
    }
}

/// All mounts, in the order they were made.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table.split(|&b| b == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`, with any number of optional
/// fields before the dash.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&b| b == b' ');
    let target = unescape(fields.nth(4)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = OsString::from_vec(unescape(rest.next()?));
    Some(Mount {
        target: PathBuf::from(std::ffi::OsStr::from_bytes(&target)),
        kind,
        source,
    })
}

/// Space, tab, newline and backslash stand as `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = |b: u8| (b'0'..=b'7').contains(&b).then_some(b - b'0');
        let escaped = match tail {
            [a, b, c, ..] if *first == b'\\' => {
                let digits = (|| Some((octal(*a)?, octal(*b)?, octal(*c)?)))();
                digits.map(|(a, b, c)| a << 6 | b << 3 | c)
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_odd_names_and_optional_fields_are_understood() {
        let line = br"36 35 98:0 / /a\040b\134c rw shared:1 master:2 - erofs /r/store/m\012 ro";
        let mount = parse(line).unwrap();
        assert_eq!(mount.target, Path::new("/a b\\c"));
        assert_eq!(mount.kind, "erofs");
        assert_eq!(mount.source, "/r/store/m\n");
        for odd in [&b""[..], b"1 2 3", b"1 2 3 4 /x rw - erofs"] {
            assert_eq!(parse(odd), None);
        }
    }

    #[test]
    fn only_our_own_mounts_below_the_root_are_ours() {
        let mount = |target: &str, kind: &str, source: &str| Mount {
            target: target.into(),
            kind: kind.into(),
            source: source.into(),
        };
        let root = Path::new("/r");
        assert!(mount("/r/session", "fuse", "larder").is_ours(root));
        assert!(mount("/r/x", "erofs", "/r/store/a/meta").is_ours(root));
        assert!(!mount("/r/store", "ext4", "/dev/sdb").is_ours(root));
        assert!(!mount("/r/x", "fuse", "sshfs").is_ours(root));
        assert!(!mount("/r2/x", "fuse", "larder").is_ours(root));
        assert!(mounts().unwrap().iter().any(|m| m.target == Path::new("/")));
    }
}
