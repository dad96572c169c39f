//! `larder ls` and `larder cat`.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::os::unix::ffi::OsStrExt as _;

use clap::Args;
use larder_proto::tree::{Kind, Node};
use serde::Serialize;

use super::{AccessArguments, Failure, print, print_json};
use crate::convert::{LoadError, load};
use crate::location::Location;
use crate::plan::PlatformFilter;
use crate::source::Source;
use crate::view::{Found, View, choose_platform, copy_content, open_view, own_platform};

#[derive(Debug, Args)]
pub(super) struct ListArguments {
    /// The image.
    image: Location,
    /// The file or directory.
    #[arg(default_value = "/")]
    path: OsString,
    /// Mode, links, owner, size and time of each file.
    #[arg(short, long)]
    long: bool,
    /// The platform to look at [default: this machine's, or the only one].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<PlatformFilter>,
    #[command(flatten)]
    pub(super) access: AccessArguments,
}

#[derive(Debug, Args)]
pub(super) struct CatArguments {
    /// The image.
    image: Location,
    /// The file.
    path: OsString,
    /// The platform to look at [default: this machine's, or the only one].
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<PlatformFilter>,
    #[command(flatten)]
    pub(super) access: AccessArguments,
}

/// A file, for programs.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    /// The name's bytes in hexadecimal, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_hex: Option<String>,
    #[serde(skip)]
    raw_name: Vec<u8>,
    #[serde(rename = "type")]
    kind: &'static str,
    mode: String,
    links: usize,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    mtime_nanoseconds: u32,
    /// Values in hexadecimal.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip)]
    raw_target: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
}

pub(super) async fn list(arguments: ListArguments) -> Result<(), Failure> {
    let (_, view) = open(
        &arguments.image,
        &arguments.access,
        arguments.platform.as_ref(),
    )
    .await?;
    let path = arguments.path.as_bytes();
    let mut found = view.find(path, false)?;
    // As `ls` does: a link to a directory is the directory, unless the link itself is asked about.
    if !arguments.long
        && let Ok(target) = view.find(path, true)
        && matches!(view.node(&target).kind, Kind::Directory(_))
    {
        found = target;
    }
    let entries: Vec<_> = match view.node(&found).kind {
        Kind::Directory(_) => view
            .list(&found)
            .iter()
            .map(|(name, found)| entry(&view, found, name))
            .collect(),
        _ => vec![entry(&view, &found, path)],
    };
    if arguments.access.json {
        return print_json(&entries);
    }
    let terminal = std::io::stdout().is_terminal();
    let mut lines = Vec::new();
    for entry in &entries {
        if arguments.long {
            lines.extend(long(entry).as_bytes());
        }
        lines.extend(shown(&entry.raw_name, terminal));
        if arguments.long && entry.target.is_some() {
            lines.extend(b" -> ");
            lines.extend(shown(&entry.raw_target, terminal));
        }
        lines.push(b'\n');
    }
    print(&lines)
}

/// A name as it is; on a terminal, which some of its bytes could command, without those.
fn shown(name: &[u8], terminal: bool) -> Vec<u8> {
    if !terminal {
        return name.to_vec();
    }
    let harmless = |letter: char| if letter.is_control() { '?' } else { letter };
    let text: String = String::from_utf8_lossy(name)
        .chars()
        .map(harmless)
        .collect();
    text.into_bytes()
}

pub(super) async fn cat(arguments: CatArguments) -> Result<(), Failure> {
    let (source, view) = open(
        &arguments.image,
        &arguments.access,
        arguments.platform.as_ref(),
    )
    .await?;
    let found = view.find(arguments.path.as_bytes(), true)?;
    let mut out = Output(std::io::stdout());
    match copy_content(&source, &view, &found, &mut out).await {
        Err(crate::view::ContentError::Write(error))
            if error.kind() == std::io::ErrorKind::BrokenPipe =>
        {
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Standard output without the line buffering that files with many newlines suffer from.
struct Output(std::io::Stdout);

impl std::io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.lock().flush()
    }
}

async fn open(
    image: &Location,
    access: &AccessArguments,
    platform: Option<&PlatformFilter>,
) -> Result<(Source, View), Failure> {
    let source = Source::open(image, &access.access(&[image]).await?).await?;
    // Only one platform is looked at, and containerd may have pulled no other.
    let own = own_platform();
    let wanted: Vec<_> = platform.or(own.as_ref()).cloned().into_iter().collect();
    let image = match load(&source, &wanted).await {
        // An image that is for other machines alone can be looked into as well.
        Err(LoadError::Platform { .. }) if platform.is_none() => load(&source, &[]).await?,
        image => image?,
    };
    let view = open_view(&source, choose_platform(&image, platform)?).await?;
    Ok((source, view))
}

fn entry(view: &View, found: &Found, name: &[u8]) -> Entry {
    let node = view.node(found);
    let (kind, size, target, device) = match &node.kind {
        Kind::Directory(_) => ("directory", 0, None, None),
        Kind::Regular { size, .. } => ("file", *size, None, None),
        Kind::Symlink(target) => ("symlink", target.len() as u64, Some(lossy(target)), None),
        Kind::CharDevice(number) => ("char device", 0, None, Some((number.major, number.minor))),
        Kind::BlockDevice(number) => ("block device", 0, None, Some((number.major, number.minor))),
        Kind::Fifo => ("fifo", 0, None, None),
        Kind::Socket => ("socket", 0, None, None),
    };
    let raw_target = match &node.kind {
        Kind::Symlink(target) => target.clone(),
        _ => Vec::new(),
    };
    let xattrs = node.xattrs.iter();
    Entry {
        name: lossy(name),
        name_hex: std::str::from_utf8(name).is_err().then(|| hex(name)),
        raw_name: name.to_vec(),
        kind,
        mode: mode(node),
        links: view.links(found),
        uid: node.uid,
        gid: node.gid,
        size,
        mtime: node.mtime.seconds,
        mtime_nanoseconds: node.mtime.nanoseconds,
        xattrs: xattrs
            .map(|(name, value)| (lossy(name), hex(value)))
            .collect(),
        target,
        raw_target,
        device,
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The ten letters of `ls -l`.
fn mode(node: &Node) -> String {
    let kind = match node.kind {
        Kind::Directory(_) => 'd',
        Kind::Regular { .. } => '-',
        Kind::Symlink(_) => 'l',
        Kind::CharDevice(_) => 'c',
        Kind::BlockDevice(_) => 'b',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
    };
    let mut out = String::from(kind);
    let specials = [(0o4000, 's', 'S'), (0o2000, 's', 'S'), (0o1000, 't', 'T')];
    for (shift, (special, with, without)) in [6, 3, 0].into_iter().zip(specials) {
        let bits = node.mode >> shift;
        out.push(if bits & 4 == 0 { '-' } else { 'r' });
        out.push(if bits & 2 == 0 { '-' } else { 'w' });
        out.push(match (node.mode & special != 0, bits & 1 != 0) {
            (true, true) => with,
            (true, false) => without,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    out
}

/// What `ls -l` writes before the name.
fn long(entry: &Entry) -> String {
    let size = match entry.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => entry.size.to_string(),
    };
    format!(
        "{} {:>3} {:>5} {:>5} {:>10} {} ",
        entry.mode,
        entry.links,
        entry.uid,
        entry.gid,
        size,
        super::text::time(entry.mtime),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_command_a_terminal() {
        let name = b"\x1b[31mred\x07\xc2\x9b\n";
        assert_eq!(shown(name, true), b"?[31mred???");
        assert_eq!(shown(name, false), name);
    }

    #[test]
    fn modes_read_as_ls_writes_them() {
        for (bits, text) in [
            (0o755, "drwxr-xr-x"),
            (0o4755, "drwsr-xr-x"),
            (0o2644, "drw-r-Sr--"),
            (0o1777, "drwxrwxrwt"),
            (0o1000, "d--------T"),
        ] {
            assert_eq!(
                mode(&Node {
                    mode: bits,
                    ..Node::directory()
                }),
                text
            );
        }
    }
}
