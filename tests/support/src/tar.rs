//! Hand-made tars, sound or odd, for tests of everything that reads one.

use std::fmt::Write as _;

/// Bytes of a tar block.
const BLOCK: usize = 512;

/// Puts a tar together entry by entry.
#[derive(Debug, Clone, Default)]
pub struct TarBuilder {
    bytes: Vec<u8>,
}

impl TarBuilder {
    /// A tar with no entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry.
    #[must_use]
    pub fn entry(mut self, entry: Entry) -> Self {
        entry.write(&mut self.bytes);
        self
    }

    /// Appends bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was appended.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The tar with the two zero blocks that end it.
    pub fn finish(self) -> Vec<u8> {
        self.raw(&[0; 2 * BLOCK]).bytes
    }

    /// The tar without anything at its end.
    pub fn unfinished(self) -> Vec<u8> {
        self.bytes
    }
}

/// One entry; begins as mode 0644 (directories 0755), owned by 0:0, with mtime 0, in ustar format
/// with PAX records where ustar has no room.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Type flag.
    pub flag: u8,
    /// Name.
    pub name: Vec<u8>,
    /// Link target.
    pub link: Vec<u8>,
    /// Mode field.
    pub mode: u64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Modification time, seconds.
    pub mtime: i64,
    /// Device number.
    pub device: (u32, u32),
    /// Payload.
    pub data: Vec<u8>,
    /// PAX records written before the header.
    pub records: Vec<(Vec<u8>, Vec<u8>)>,
    /// Size field, if it shall not be the payload's length.
    pub size: Option<u64>,
    /// Magic and version.
    pub magic: [u8; 8],
}

impl Entry {
    /// An entry of any type.
    pub fn new(flag: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            flag,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            mode: if flag == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: 0,
            device: (0, 0),
            data: Vec::new(),
            records: Vec::new(),
            size: None,
            magic: *b"ustar\x0000",
        }
    }

    /// A regular file.
    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self {
            data: data.as_ref().to_vec(),
            ..Self::new(b'0', name)
        }
    }

    /// A directory.
    pub fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    /// A symbolic link.
    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            ..Self::new(b'2', name)
        }
    }

    /// A hard link.
    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self {
            link: target.as_ref().to_vec(),
            ..Self::new(b'1', name)
        }
    }

    /// With this mode.
    #[must_use]
    pub fn mode(mut self, mode: u64) -> Self {
        self.mode = mode;
        self
    }

    /// Owned by `uid`:`gid`.
    #[must_use]
    pub fn owner(mut self, uid: i64, gid: i64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Modified at `seconds` after 1970.
    #[must_use]
    pub fn mtime(mut self, seconds: i64) -> Self {
        self.mtime = seconds;
        self
    }

    /// With this device number.
    #[must_use]
    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.device = (major, minor);
        self
    }

    /// With a PAX record.
    #[must_use]
    pub fn record(mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.records
            .push((key.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }

    /// With an extended attribute.
    #[must_use]
    pub fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.record(format!("SCHILY.xattr.{name}"), value)
    }

    /// With this number in the size field.
    #[must_use]
    pub fn size(mut self, size: u64) -> Self {
        self.size = Some(size);
        self
    }

    /// In GNU format: long names in entries of their own, large numbers in base 256.
    #[must_use]
    pub fn gnu(mut self) -> Self {
        self.magic = *b"ustar  \0";
        self
    }

    /// In the format from before ustar.
    #[must_use]
    pub fn v7(mut self) -> Self {
        self.magic = [0; 8];
        self
    }

    fn is_gnu(&self) -> bool {
        self.magic == *b"ustar  \0"
    }

    /// Appends records, header, payload and padding.
    fn write(mut self, out: &mut Vec<u8>) {
        let long = |text: &[u8]| text.len() > 100;
        if self.is_gnu() {
            for (flag, text) in [(b'L', &self.name), (b'K', &self.link)] {
                if long(text) {
                    let text = [text.as_slice(), &[0]].concat();
                    write_block(
                        out,
                        &Self {
                            data: text,
                            ..Self::new(flag, "././@LongLink").gnu()
                        },
                    );
                }
            }
        } else if self.magic != [0; 8] {
            for (key, text) in [("path", &self.name), ("linkpath", &self.link)] {
                if long(text) {
                    self.records.push((key.into(), text.clone()));
                }
            }
            for (key, number, max) in [
                ("uid", self.uid, 0o7_777_777),
                ("gid", self.gid, 0o7_777_777),
                ("mtime", self.mtime, 0o77_777_777_777),
            ] {
                if !(0..=max).contains(&number) {
                    self.records.push((key.into(), number.to_string().into()));
                }
            }
        }
        if !self.records.is_empty() {
            let records = records(&self.records);
            write_block(
                out,
                &Self {
                    data: records,
                    ..Self::new(b'x', "PaxHeaders/entry")
                },
            );
        }
        write_block(out, &self);
    }
}

/// PAX records in their wire form.
pub fn records(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let mut len = body + body.to_string().len();
        if len.to_string().len() > body.to_string().len() {
            len = body + len.to_string().len();
        }
        out.extend_from_slice(format!("{len} ").as_bytes());
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}

/// A header with its checksum, the payload and its padding.
fn write_block(out: &mut Vec<u8>, entry: &Entry) {
    let mut block = [0u8; BLOCK];
    let size = entry.size.unwrap_or(entry.data.len() as u64);
    put(&mut block[..100], &entry.name);
    number(
        &mut block[100..108],
        i64::try_from(entry.mode).expect("a mode"),
        entry,
    );
    number(&mut block[108..116], entry.uid, entry);
    number(&mut block[116..124], entry.gid, entry);
    number(
        &mut block[124..136],
        i64::try_from(size).expect("a size"),
        entry,
    );
    number(&mut block[136..148], entry.mtime, entry);
    block[156] = entry.flag;
    put(&mut block[157..257], &entry.link);
    block[257..265].copy_from_slice(&entry.magic);
    if entry.magic != [0; 8] {
        number(&mut block[329..337], entry.device.0.into(), entry);
        number(&mut block[337..345], entry.device.1.into(), entry);
    }
    set_checksum(&mut block);
    out.extend_from_slice(&block);
    out.extend_from_slice(&entry.data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

fn put(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// Octal where it fits; else base 256 in GNU format, and 0 in the others, whose records tell.
fn number(field: &mut [u8], value: i64, entry: &Entry) {
    let digits = field.len() - 1;
    if (0..1i64 << (3 * digits).min(62)).contains(&value) {
        let mut text = String::new();
        write!(text, "{value:0digits$o}").expect("writing to a string");
        put(field, text.as_bytes());
    } else if entry.is_gnu() {
        let bytes = value.to_be_bytes();
        let fill = if value < 0 { 0xff } else { 0 };
        for (i, byte) in field.iter_mut().rev().enumerate() {
            *byte = bytes.len().checked_sub(i + 1).map_or(fill, |at| bytes[at]);
        }
        field[0] |= 0x80;
    } else {
        put(field, "0".repeat(digits).as_bytes());
    }
}

/// Writes the checksum of a header into it.
pub fn set_checksum(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
