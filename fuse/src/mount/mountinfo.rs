//! `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::SOURCE;
use super::attach::DIRECT_READS;

/// One mount of this process's name space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub target: PathBuf,
    /// What of its file system is to be seen there: `/`, unless it is a bind mount of a part.
    pub root: PathBuf,
    /// Number of its file system, `major:minor`: the same for all places it is mounted at.
    pub device: String,
    /// The type of its file system, such as `erofs`.
    pub kind: String,
    /// What it was mounted from.
    pub source: OsString,
    /// The lower layers of an overlay, topmost first; of other file systems, nothing.
    pub layers: Vec<PathBuf>,
    /// Whether it is an EROFS file system that reads its devices past the page cache.
    pub reads_directly: bool,
}

impl Mount {
    /// Whether Larder made it below `root`. Mounts an operator put there are not ours.
    pub(super) fn is_ours(&self, root: &Path) -> bool {
        if !self.target.starts_with(root) {
            return false;
        }
        match self.kind.as_str() {
            "fuse" | "overlay" => self.source == SOURCE,
            "tmpfs" => self.source == SOURCE && self.target.parent() == Some(root),
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
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let root = unescape(fields.next()?);
    let target = unescape(fields.next()?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = OsString::from_vec(unescape(rest.next()?));
    let options = rest.next().unwrap_or_default();
    let layers = match &*kind {
        "overlay" => layers(options),
        _ => Vec::new(),
    };
    let mut options = options.split(|&b| b == b',');
    let reads_directly = kind == "erofs" && options.any(|option| option == DIRECT_READS.as_bytes());
    Some(Mount {
        target: path(&target),
        root: path(&root),
        device,
        kind,
        source,
        layers,
        reads_directly,
    })
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

/// Lower layers from the options of an overlay: each for itself, or all in one, separated by colons.
/// Commas and equals signs within them stand as `\ooo`; colons only in the latter way, after a
/// backslash, which stands as `\134`.
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let mut layers = Vec::new();
    for option in options.split(|&b| b == b',') {
        if let Some(layer) = option.strip_prefix(b"lowerdir+=") {
            layers.push(path(&unescape(layer)));
        } else if let Some(all) = option.strip_prefix(b"lowerdir=") {
            let mut layer = Vec::new();
            let mut all = unescape(all).into_iter();
            while let Some(byte) = all.next() {
                match byte {
                    b':' => layers.push(path(&std::mem::take(&mut layer))),
                    b'\\' => layer.extend(all.next()),
                    other => layer.push(other),
                }
            }
            layers.push(path(&layer));
        }
    }
    layers
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
        let line =
            br"36 35 98:0 /tree/7 /a\040b\134c rw shared:1 master:2 - erofs /r/store/m\012 ro";
        let mount = parse(line).unwrap();
        assert_eq!(mount.target, Path::new("/a b\\c"));
        assert_eq!(mount.root, Path::new("/tree/7"));
        assert_eq!(mount.device, "98:0");
        assert_eq!(mount.kind, "erofs");
        assert_eq!(mount.source, "/r/store/m\n");
        assert!(!mount.reads_directly);
        let direct = br"36 35 98:0 / /a ro - erofs /r/m ro,user_xattr,directio";
        assert!(parse(direct).unwrap().reads_directly);
        for odd in [&b""[..], b"1 2 3", b"1 2 3 4 /x rw - erofs"] {
            assert_eq!(parse(odd), None);
        }
    }

    /// Both ways in which kernels print what an overlay is made of.
    #[test]
    fn the_layers_of_an_overlay_are_told() {
        let layers = |options: &str| {
            let line = format!("36 35 0:9 / /x ro - overlay larder {options}");
            parse(line.as_bytes()).unwrap().layers
        };
        let expected: [PathBuf; 2] = ["/r/a:1,b".into(), "/r/c d".into()];
        assert_eq!(
            layers(r"ro,lowerdir+=/r/a:1\054b,lowerdir+=/r/c\040d,index=off"),
            expected
        );
        assert_eq!(
            layers(r"ro,lowerdir=/r/a\134:1\054b:/r/c\040d,index=off"),
            expected
        );
        assert!(layers("ro").is_empty());
    }

    #[test]
    fn only_our_own_mounts_below_the_root_are_ours() {
        let mount = |target: &str, kind: &str, source: &str| Mount {
            target: target.into(),
            root: "/".into(),
            device: "0:1".into(),
            kind: kind.into(),
            source: source.into(),
            layers: Vec::new(),
            reads_directly: false,
        };
        let root = Path::new("/r");
        assert!(mount("/r/session", "fuse", "larder").is_ours(root));
        assert!(mount("/r/x", "erofs", "/r/store/a/meta").is_ours(root));
        assert!(mount("/r/erofs", "tmpfs", "larder").is_ours(root));
        assert!(!mount("/r/snapshots/1/fs/tmp", "tmpfs", "larder").is_ours(root));
        assert!(!mount("/r/store", "ext4", "/dev/sdb").is_ours(root));
        assert!(!mount("/r/x", "fuse", "sshfs").is_ours(root));
        assert!(!mount("/r2/x", "fuse", "larder").is_ours(root));
        assert!(mounts().unwrap().iter().any(|m| m.target == Path::new("/")));
    }
}
