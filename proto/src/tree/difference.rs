//! Comparing two trees as a container would: what it can see, not how it is numbered.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Extent, Kind, Node, NodeId, ROOT, Tree};

/// A place where two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Path from the root, without leading slash; empty for the root itself.
    pub path: Vec<u8>,
    /// What differs there.
    pub aspect: Aspect,
    /// How it is in the first tree.
    pub left: String,
    /// How it is in the second tree.
    pub right: String,
}

/// What two trees can differ in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aspect {
    /// Whether the path is there.
    Presence,
    /// Type of the file.
    FileType,
    /// Permission bits.
    Mode,
    /// Owner and group.
    Owner,
    /// Time of last modification.
    Mtime,
    /// An extended attribute, by its full name.
    Xattr(Vec<u8>),
    /// Length of a regular file.
    Size,
    /// Where a file's data lies in the tar.
    Extents,
    /// Target of a symlink.
    Target,
    /// Number of a device.
    Device,
    /// Which paths are links to one file.
    HardLink,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Presence => f.write_str("presence"),
            Self::FileType => f.write_str("file type"),
            Self::Mode => f.write_str("mode"),
            Self::Owner => f.write_str("owner"),
            Self::Mtime => f.write_str("mtime"),
            Self::Xattr(name) => {
                write!(f, "extended attribute {}", String::from_utf8_lossy(name))
            }
            Self::Size => f.write_str("size"),
            Self::Extents => f.write_str("place of the data in the tar"),
            Self::Target => f.write_str("symlink target"),
            Self::Device => f.write_str("device number"),
            Self::HardLink => f.write_str("hard links"),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            aspect,
            left,
            right,
        } = self;
        let path = String::from_utf8_lossy(path);
        write!(f, "/{path}: {aspect}: {left} against {right}")
    }
}

/// A difference between what two trees show, if there is any: names, attributes, extended attributes,
/// extents, and which names are links to one file. Node numbers and unreachable nodes do not
/// count, nor does into how many extents one run of bytes is cut.
pub fn difference(left: &Tree, right: &Tree) -> Option<Difference> {
    let mut pairs = Pairs {
        left: vec![None; left.nodes.len()],
        right: vec![None; right.nodes.len()],
    };
    let mut pending = vec![(Vec::new(), ROOT, ROOT)];
    while let Some((path, l, r)) = pending.pop() {
        let here = |(aspect, left, right)| Difference {
            path: path.clone(),
            aspect,
            left,
            right,
        };
        match pairs.meet(l, r) {
            Meeting::First => {}
            Meeting::Again => continue,
            Meeting::Conflict(differing) => return Some(here(differing)),
        }
        let (l, r) = (left.node(l), right.node(r));
        if let Some(differing) = attributes(l, r) {
            return Some(here(differing));
        }
        let (Kind::Directory(l), Kind::Directory(r)) = (&l.kind, &r.kind) else {
            continue;
        };
        let names: BTreeSet<_> = l.keys().chain(r.keys()).collect();
        for name in names.into_iter().rev() {
            let mut path = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend(name);
            let absent = |there: bool| if there { "there" } else { "absent" }.to_owned();
            match (l.get(name), r.get(name)) {
                (Some(&l), Some(&r)) => pending.push((path, l, r)),
                (l, r) => {
                    return Some(Difference {
                        path,
                        aspect: Aspect::Presence,
                        left: absent(l.is_some()),
                        right: absent(r.is_some()),
                    });
                }
            }
        }
    }
    None
}

type Differing = (Aspect, String, String);

/// Which node of one tree stands for which of the other, as far as they were met.
struct Pairs {
    left: Vec<Option<NodeId>>,
    right: Vec<Option<NodeId>>,
}

enum Meeting {
    First,
    Again,
    Conflict(Differing),
}

impl Pairs {
    fn meet(&mut self, left: NodeId, right: NodeId) -> Meeting {
        let (l, r) = (left.0 as usize, right.0 as usize);
        match (self.left[l], self.right[r]) {
            (None, None) => {
                (self.left[l], self.right[r]) = (Some(right), Some(left));
                Meeting::First
            }
            (Some(known), _) if known == right => Meeting::Again,
            (l, r) => {
                let text = |met: Option<NodeId>| match met {
                    Some(_) => "a link to an earlier file",
                    None => "not a link to that file",
                };
                Meeting::Conflict((Aspect::HardLink, text(l).to_owned(), text(r).to_owned()))
            }
        }
    }
}

fn attributes(l: &Node, r: &Node) -> Option<Differing> {
    let differing =
        |aspect, left: String, right: String| (left != right).then_some((aspect, left, right));
    if l.kind == r.kind
        && (l.mode, l.uid, l.gid, l.mtime) == (r.mode, r.uid, r.gid, r.mtime)
        && l.xattrs == r.xattrs
    {
        return None;
    }
    let owner = |n: &Node| format!("{}:{}", n.uid, n.gid);
    let mtime = |n: &Node| format!("{}.{:09}", n.mtime.seconds, n.mtime.nanoseconds);
    let mode = |n: &Node| format!("{:04o}", n.mode);
    let file_type = |n: &Node| file_type(&n.kind).to_owned();
    differing(Aspect::FileType, file_type(l), file_type(r))
        .or_else(|| kinds(&l.kind, &r.kind))
        .or_else(|| differing(Aspect::Mode, mode(l), mode(r)))
        .or_else(|| differing(Aspect::Owner, owner(l), owner(r)))
        .or_else(|| differing(Aspect::Mtime, mtime(l), mtime(r)))
        .or_else(|| xattrs(&l.xattrs, &r.xattrs))
}

fn kinds(l: &Kind, r: &Kind) -> Option<Differing> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match (l, r) {
        (Kind::Symlink(l), Kind::Symlink(r)) if l != r => Some((Aspect::Target, text(l), text(r))),
        (Kind::CharDevice(l), Kind::CharDevice(r))
        | (Kind::BlockDevice(l), Kind::BlockDevice(r))
            if l != r =>
        {
            let text = |d: &super::DeviceNumber| format!("{}:{}", d.major, d.minor);
            Some((Aspect::Device, text(l), text(r)))
        }
        (
            Kind::Regular {
                size: l,
                extents: le,
            },
            Kind::Regular {
                size: r,
                extents: re,
            },
        ) => {
            if l != r {
                return Some((Aspect::Size, l.to_string(), r.to_string()));
            }
            let merged = |e: &[Extent]| Extent::merged(e.iter().copied()).collect::<Vec<_>>();
            let (le, re) = (merged(le), merged(re));
            let place = (0..le.len().max(re.len())).find(|&i| le.get(i) != re.get(i))?;
            let text = |extent: Option<&Extent>| match extent {
                Some(e) => format!("{}+{} at {}", e.file_offset, e.len, e.tar_offset),
                None => "nothing more".to_owned(),
            };
            let (l, r) = (text(le.get(place)), text(re.get(place)));
            Some((Aspect::Extents, l, r))
        }
        _ => None,
    }
}

type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

fn xattrs(l: &Attributes, r: &Attributes) -> Option<Differing> {
    let names: BTreeSet<_> = l.keys().chain(r.keys()).collect();
    let name = names.into_iter().find(|&name| l.get(name) != r.get(name))?;
    let text = |value: Option<&Vec<u8>>| match value {
        Some(value) => format!("\"{}\"", value.escape_ascii()),
        None => "absent".to_owned(),
    };
    let (left, right) = (text(l.get(name)), text(r.get(name)));
    Some((Aspect::Xattr(name.clone()), left, right))
}

fn file_type(kind: &Kind) -> &'static str {
    match kind {
        Kind::Directory(_) => "directory",
        Kind::Regular { .. } => "regular file",
        Kind::Symlink(_) => "symlink",
        Kind::CharDevice(_) => "character device",
        Kind::BlockDevice(_) => "block device",
        Kind::Fifo => "named pipe",
        Kind::Socket => "socket",
    }
}
