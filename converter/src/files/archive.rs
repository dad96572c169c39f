//! Finding the entries of an archive of an image, without reading their contents.
//!
//! Archives come from `docker save`, skopeo, buildah and ourselves. The entries that matter have
//! short ASCII names, so of the tar extensions only what changes a name or a size is read.

use std::collections::BTreeMap;
use std::io::{self, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder_registry::bounded;

use super::Window;
use crate::decode::{Encoding, decode};

const BLOCK_LEN: usize = 512;
const BLOCK: u64 = BLOCK_LEN as u64;

/// Entries an archive may have: a hundred images of a hundred layers, three entries each.
const ENTRIES_MAX: usize = 30_000;

/// Largest extension header, bytes: names and a few numbers.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;

/// How many links in a row are followed; `docker save` writes one.
const LINKS_MAX: usize = 8;

/// An archive that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be opened or read.
    #[error("cannot read {}: {error}", path.display())]
    Io {
        /// The archive.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It is no tar, or one that is cut off.
    #[error("{} is not a complete tar archive: {reason} at byte {offset}", path.display())]
    Malformed {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
        /// Where.
        offset: u64,
    },
}

enum Entry {
    File(Window),
    Link(String),
}

/// The regular files of the archive by name, links followed.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, Window>, ArchiveError> {
    let io = |error| ArchiveError::Io {
        path: path.to_owned(),
        error,
    };
    let archive = open(path).map_err(io)?;
    let entries = walk(&archive, path)?;
    let mut files = BTreeMap::new();
    for (name, entry) in &entries {
        let mut at = entry;
        for _ in 0..LINKS_MAX {
            match at {
                Entry::File(window) => {
                    files.insert(name.clone(), window.clone());
                    break;
                }
                Entry::Link(target) => match entries.get(target) {
                    Some(next) => at = next,
                    None => break,
                },
            }
        }
    }
    Ok(files)
}

/// The archive as a seekable file; a compressed one is unpacked into a nameless file first.
fn open(path: &Path) -> io::Result<Window> {
    let mut file = bounded::open(path)?;
    let plain = {
        let decoder = decode(&mut file)?;
        if decoder.encoding() == Encoding::Plain {
            None
        } else {
            let mut decoder = decoder;
            let mut spool = crate::spool::create(&crate::spool::default_dir())?;
            io::copy(&mut decoder, &mut spool)?;
            Some(spool)
        }
    };
    file.rewind()?;
    Window::whole(plain.unwrap_or(file))
}

/// What extension headers say about the next entry.
#[derive(Default)]
struct Overrides {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

fn walk(archive: &Window, path: &Path) -> Result<BTreeMap<String, Entry>, ArchiveError> {
    let file = Arc::clone(&archive.file);
    let mut entries = BTreeMap::new();
    let mut next = Overrides::default();
    let mut at = 0;
    loop {
        let refuse = |reason| ArchiveError::Malformed {
            path: path.to_owned(),
            reason,
            offset: at,
        };
        let io = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => refuse("it ends inside an entry"),
            _ => ArchiveError::Io {
                path: path.to_owned(),
                error,
            },
        };
        let mut header = [0; BLOCK_LEN];
        if at == archive.len() {
            // Some writers leave the final zero blocks out.
            return Ok(entries);
        }
        archive.read_exact_at(&mut header, at).map_err(io)?;
        if header.iter().all(|&byte| byte == 0) {
            return Ok(entries);
        }
        if !checksum_matches(&header) {
            return Err(refuse("a header has a wrong checksum"));
        }
        let kind = header[156];
        let size = number(&header[124..136]).ok_or_else(|| refuse("an entry has no size"))?;
        let is_extension = matches!(kind, b'x' | b'g' | b'L' | b'K');
        let size = if is_extension {
            size
        } else {
            next.size.take().unwrap_or(size)
        };
        let data = at + BLOCK;
        let end = data.checked_add(size).filter(|&end| end <= archive.len());
        let end = end.ok_or_else(|| refuse("it ends inside an entry"))?;
        if is_extension {
            if size > EXTENSION_BYTES_MAX {
                return Err(refuse("an extension header is too long"));
            }
            let mut text = vec![0; usize::try_from(size).unwrap_or(0)];
            archive.read_exact_at(&mut text, data).map_err(io)?;
            next.apply(kind, &text);
        } else {
            let overrides = std::mem::take(&mut next);
            let name = overrides.name.unwrap_or_else(|| name(&header));
            let link = overrides.link.unwrap_or_else(|| text(&header[157..257]));
            let entry = match kind {
                b'0' | 0 | b'7' => Some(Entry::File(Window::part(&file, data, size))),
                // A hard link names an entry of the archive, a symlink one beside its own.
                b'1' => Some(Entry::Link(plain(&link))),
                b'2' => Some(Entry::Link(beside(&plain(&name), &link))),
                _ => None,
            };
            entries.extend(entry.map(|entry| (plain(&name), entry)));
            if entries.len() > ENTRIES_MAX {
                return Err(refuse("it has more entries than an image archive can have"));
            }
        }
        at = end.next_multiple_of(BLOCK).min(archive.len());
    }
}

impl Overrides {
    fn apply(&mut self, kind: u8, text: &[u8]) {
        let until_nul = || self::text(text);
        match kind {
            b'L' => self.name = Some(until_nul()),
            b'K' => self.link = Some(until_nul()),
            b'x' => {
                for (key, value) in pax_records(text) {
                    match key {
                        b"path" => self.name = Some(lossy(value)),
                        b"linkpath" => self.link = Some(lossy(value)),
                        b"size" => self.size = lossy(value).parse().ok(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

/// Records `<length> <key>=<value>\n`; a malformed rest is passed over.
fn pax_records(mut text: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut records = Vec::new();
    loop {
        let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let len = lossy(&text[..digits]).parse().unwrap_or(0);
        let Some(record) = text.get(digits + 1..len) else {
            return records;
        };
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        let Some(equals) = record.iter().position(|&byte| byte == b'=') else {
            return records;
        };
        records.push((&record[..equals], &record[equals + 1..]));
        text = &text[len..];
    }
}

fn checksum_matches(header: &[u8; BLOCK_LEN]) -> bool {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, &byte)| {
            if (148..156).contains(&at) {
                32
            } else {
                u64::from(byte)
            }
        })
        .sum();
    number(&header[148..156]) == Some(sum)
}

/// Octal digits, or GNU's base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (head, tail) = field.split_at(field.len() - 8);
        let fits = head.iter().all(|&byte| matches!(byte, 0 | 0x80));
        return fits
            .then(|| tail.try_into().map(u64::from_be_bytes).ok())
            .flatten();
    }
    let digits = text(field);
    u64::from_str_radix(digits.trim(), 8).ok()
}

fn name(header: &[u8; BLOCK_LEN]) -> String {
    let name = text(&header[..100]);
    let prefix = if &header[257..262] == b"ustar" {
        text(&header[345..500])
    } else {
        String::new()
    };
    if prefix.is_empty() {
        name
    } else {
        format!("{prefix}/{name}")
    }
}

fn text(field: &[u8]) -> String {
    lossy(field.split(|&byte| byte == 0).next().unwrap_or_default())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn plain(name: &str) -> String {
    name.trim_start_matches("./")
        .trim_start_matches('/')
        .to_owned()
}

/// The name a symlink at `name` with this target leads to.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
        crate::layout::tar_entry(name, kind, link, data.len() as u64)
            .into_iter()
            .chain(data.iter().copied())
            .chain(vec![0; data.len().next_multiple_of(512) - data.len()])
            .collect()
    }

    fn archive(bytes: &[u8]) -> Result<BTreeMap<String, Window>, ArchiveError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        read(file.path())
    }

    fn content(window: &Window) -> Vec<u8> {
        let mut out = Vec::new();
        io::Read::read_to_end(&mut window.reader(), &mut out).unwrap();
        out
    }

    #[test]
    fn files_and_what_links_lead_to_are_found_by_name() {
        let bytes = [
            entry("./a/layer.tar", b'0', "", b"first"),
            entry("b/layer.tar", b'2', "../a/layer.tar", b""),
            entry("c", b'1', "a/layer.tar", b""),
            entry("long", b'L', "", b"some/longer/name\0"),
            entry("cut", b'0', "", &[7; 700]),
            entry("pax", b'x', "", b"17 path=pax/name\n"),
            entry("cut", b'0', "", b"last"),
            vec![0; 1024],
        ]
        .concat();
        let gzip = {
            let mut encoder =
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&bytes).unwrap();
            encoder.finish().unwrap()
        };
        for bytes in [bytes, gzip] {
            let files = archive(&bytes).unwrap();
            for name in ["a/layer.tar", "b/layer.tar", "c"] {
                assert_eq!(content(&files[name]), b"first");
            }
            assert_eq!(content(&files["some/longer/name"]), [7; 700]);
            assert_eq!(content(&files["pax/name"]), b"last");
        }
    }

    #[test]
    fn what_is_no_tar_or_is_cut_off_is_refused() {
        let whole = entry("a", b'0', "", &[1; 2000]);
        for bytes in [&b"no tar at all"[..], &[1; 512], &whole[..1000]] {
            assert!(matches!(
                archive(bytes),
                Err(ArchiveError::Malformed { .. })
            ));
        }
    }

    #[test]
    fn links_in_a_circle_lead_nowhere() {
        let bytes = [entry("a", b'2', "b", b""), entry("b", b'2', "a", b"")].concat();
        assert!(archive(&bytes).unwrap().is_empty());
    }
}
