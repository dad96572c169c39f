//! The push parser: bytes in, members out.

use std::collections::BTreeMap;

use super::TarError;
use super::header::{self, BLOCK, Header, Type};
use super::number::{Time, until_nul};
use super::pax::Records;
use super::sparse::{self, Description, Sparse};
use crate::limits;

/// A member of the archive, with everything its headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Offset of its first header or record in the tar.
    pub start: u64,
    /// Name, as written.
    pub name: Vec<u8>,
    /// Target of a symbolic link, or the name a hard link refers to; as written.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Type,
    /// All bits of the mode field.
    pub mode: i64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Modification time.
    pub mtime: Time,
    /// Device major number.
    pub device_major: i64,
    /// Device minor number.
    pub device_minor: i64,
    /// Extended attributes from PAX records.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Size of the file, holes included.
    pub size: u64,
    /// Offset of the payload in the tar.
    pub data_offset: u64,
    /// Bytes of the payload, without padding.
    pub data_len: u64,
    /// Whether the payload is the file itself.
    pub sparse: Sparse,
}

/// What the next bytes of the tar are.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The headers of a member are complete; its payload follows.
    Member(Box<Member>),
    /// The next bytes of the member's payload.
    Payload(&'a [u8]),
    /// The bytes that fill up the payload's last block.
    Padding(&'a [u8]),
    /// The two zero blocks that end the archive.
    End,
    /// Bytes after the end of the archive.
    Trailer(&'a [u8]),
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    /// Collecting records or a long name, then its padding.
    Records {
        flag: u8,
        left: u64,
        padding: u64,
    },
    Payload {
        left: u64,
        padding: u64,
    },
    SecondZeroBlock,
    Trailer,
}

/// Reads a tar from pieces of any size.
#[derive(Debug)]
pub struct Parser {
    offset: u64,
    state: State,
    block: Box<[u8; BLOCK]>,
    filled: usize,
    /// Where the headers of the current member began.
    start: u64,
    /// Where the current header began.
    header_at: u64,
    header: Header,
    buffer: Vec<u8>,
    records: Option<Records>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
    name: Vec<u8>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the beginning of a tar.
    pub fn new() -> Self {
        Self {
            offset: 0,
            state: State::Header,
            block: Box::new([0; BLOCK]),
            filled: 0,
            start: 0,
            header_at: 0,
            header: Header::default(),
            buffer: Vec::new(),
            records: None,
            long_name: Vec::new(),
            long_link: Vec::new(),
            name: Vec::new(),
        }
    }

    /// Bytes consumed so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Name of the latest member whose name is known, to name it in an error.
    pub fn latest_name(&self) -> &[u8] {
        &self.name
    }

    /// Consumes bytes from the front of `input` until there is something to report; `None` when
    /// `input` is used up.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, TarError> {
        loop {
            match self.state {
                State::Payload {
                    left: 0,
                    padding: 0,
                } => self.state = State::Header,
                State::Records {
                    flag,
                    left: 0,
                    padding: 0,
                } => {
                    self.state = State::Header;
                    if let Some(member) = self.finish_records(flag)? {
                        return Ok(Some(Event::Member(Box::new(member))));
                    }
                }
                _ if input.is_empty() => return Ok(None),
                State::Payload { left: 0, padding } => {
                    let bytes = self.take(input, padding);
                    let padding = padding - bytes.len() as u64;
                    self.state = State::Payload { left: 0, padding };
                    return Ok(Some(Event::Padding(bytes)));
                }
                State::Payload { left, padding } => {
                    let bytes = self.take(input, left);
                    let left = left - bytes.len() as u64;
                    self.state = State::Payload { left, padding };
                    return Ok(Some(Event::Payload(bytes)));
                }
                State::Records {
                    flag,
                    left: 0,
                    padding,
                } => {
                    let padding = padding - self.take(input, padding).len() as u64;
                    self.state = State::Records {
                        flag,
                        left: 0,
                        padding,
                    };
                }
                State::Records {
                    flag,
                    left,
                    padding,
                } => {
                    let bytes = self.take(input, left);
                    self.buffer.extend_from_slice(bytes);
                    let left = left - bytes.len() as u64;
                    self.state = State::Records {
                        flag,
                        left,
                        padding,
                    };
                }
                State::Trailer => return Ok(Some(Event::Trailer(self.take(input, u64::MAX)))),
                State::Header | State::SecondZeroBlock => {
                    if let Some(event) = self.block(input)? {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    /// The end of the tar: an error if it is cut off. Like Go's reader, accepts a tar without
    /// the zero blocks, with one of them, without the padding of the last member, and with
    /// records at the end that no header follows.
    pub fn finish(&self) -> Result<(), TarError> {
        let what = match self.state {
            _ if self.filled > 0 => "a header",
            State::Records { left: 1.., .. } => "the records of an entry",
            State::Payload { left: 1.., .. } => "the contents of a file",
            _ => return Ok(()),
        };
        Err(TarError::Truncated {
            at: self.offset,
            what,
        })
    }

    /// Splits up to `max` bytes off the front of `input`.
    fn take<'a>(&mut self, input: &mut &'a [u8], max: u64) -> &'a [u8] {
        let len = usize::try_from(max).map_or(input.len(), |max| max.min(input.len()));
        let (taken, rest) = input.split_at(len);
        *input = rest;
        self.offset += len as u64;
        taken
    }

    /// Fills a block and, when it is complete, reads it.
    fn block(&mut self, input: &mut &[u8]) -> Result<Option<Event<'static>>, TarError> {
        let wanted = BLOCK - self.filled;
        let bytes = self.take(input, wanted as u64);
        self.block[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
        if self.filled < BLOCK {
            return Ok(None);
        }
        self.filled = 0;
        let at = self.offset - BLOCK as u64;
        let is_zero = self.block.iter().all(|&b| b == 0);
        match (self.state, is_zero) {
            (State::SecondZeroBlock, true) => {
                self.state = State::Trailer;
                Ok(Some(Event::End))
            }
            (State::SecondZeroBlock, false) => Err(TarError::LoneZeroBlock {
                at: at - BLOCK as u64,
            }),
            (_, true) => {
                // Go's reader forgets records that no header follows; so do we.
                self.begin_group(self.offset);
                self.state = State::SecondZeroBlock;
                Ok(None)
            }
            (_, false) => self.header(at),
        }
    }

    fn begin_group(&mut self, start: u64) {
        self.start = start;
        self.records = None;
        self.long_name.clear();
        self.long_link.clear();
    }

    fn header(&mut self, at: u64) -> Result<Option<Event<'static>>, TarError> {
        self.header_at = at;
        self.header = header::parse(&self.block, at)?;
        let flag = self.header.type_flag;
        if !matches!(flag, b'x' | b'g' | b'L' | b'K') {
            return Ok(Some(Event::Member(Box::new(self.member()?))));
        }
        let len = u64::try_from(self.header.size).map_err(|_| TarError::NegativeSize { at })?;
        let group = (self.offset - self.start).saturating_add(len);
        if group > limits::TAR_MEMBER_HEADERS_BYTES_MAX {
            return Err(TarError::TooLong {
                what: "headers and records of one entry",
                len: group,
                max: limits::TAR_MEMBER_HEADERS_BYTES_MAX,
            });
        }
        if len > limits::TAR_RECORDS_BYTES_MAX {
            return Err(TarError::TooLong {
                what: "records",
                len,
                max: limits::TAR_RECORDS_BYTES_MAX,
            });
        }
        self.buffer.clear();
        self.state = State::Records {
            flag,
            left: len,
            padding: padding(len),
        };
        Ok(None)
    }

    /// The records are complete: keep them for the header that follows, or report global ones.
    fn finish_records(&mut self, flag: u8) -> Result<Option<Member>, TarError> {
        match flag {
            b'L' => self.long_name = until_nul(&self.buffer).to_vec(),
            b'K' => self.long_link = until_nul(&self.buffer).to_vec(),
            _ => {
                let records = Records::parse(&self.buffer, self.header_at)?;
                if flag == b'x' {
                    self.records = Some(records);
                } else {
                    return Ok(Some(self.global(&records)));
                }
            }
        }
        Ok(None)
    }

    fn global(&mut self, records: &Records) -> Member {
        let header = std::mem::take(&mut self.header);
        let name = records.get("path").map_or(header.name, <[u8]>::to_vec);
        self.name.clone_from(&name);
        let member = Member {
            start: self.start,
            name,
            link: Vec::new(),
            kind: Type::GlobalRecords,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            device_major: 0,
            device_minor: 0,
            xattrs: BTreeMap::new(),
            size: 0,
            data_offset: self.offset,
            data_len: 0,
            sparse: Sparse::No,
        };
        self.begin_group(self.offset);
        member
    }

    /// The header of a member is complete: combine it with the records before it.
    fn member(&mut self) -> Result<Member, TarError> {
        let mut header = std::mem::take(&mut self.header);
        let records = self.records.take().unwrap_or_default();
        self.rename(&mut header, &records);
        self.name.clone_from(&header.name);
        let kind = kind(header.type_flag, &header.name);
        let data_len = self.data_len(&header, &records, kind)?;
        let (sparse, size) = match Description::of(&records)? {
            None => (Sparse::No, data_len),
            Some(_) if kind.is_header_only() => {
                return Err(TarError::SparseMap("only a regular file can have one"));
            }
            Some(described) => {
                if let Some(name) = described.name {
                    self.name.clone_from(&name);
                    header.name = name;
                }
                let size = described.size.map_or(Ok(data_len), u64::try_from);
                let size = size.map_err(|_| TarError::NegativeSize { at: self.header_at })?;
                (checked(described.form, size, data_len)?, size)
            }
        };
        let member = Member {
            start: self.start,
            name: header.name,
            link: header.link,
            kind,
            mode: header.mode,
            uid: records.number("uid")?.unwrap_or(header.uid),
            gid: records.number("gid")?.unwrap_or(header.gid),
            mtime: records.mtime()?.unwrap_or(header.mtime),
            device_major: header.device_major,
            device_minor: header.device_minor,
            xattrs: records.xattrs,
            size,
            data_offset: self.offset,
            data_len,
            sparse,
        };
        self.begin_payload(data_len)?;
        Ok(member)
    }

    /// A GNU long name wins over a PAX path, and that over the header.
    fn rename(&mut self, header: &mut Header, records: &Records) {
        if !self.long_name.is_empty() {
            header.name = std::mem::take(&mut self.long_name);
        } else if let Some(path) = records.get("path") {
            header.name = path.to_vec();
        }
        if !self.long_link.is_empty() {
            header.link = std::mem::take(&mut self.long_link);
        } else if let Some(path) = records.get("linkpath") {
            header.link = path.to_vec();
        }
    }

    fn data_len(&self, header: &Header, records: &Records, kind: Type) -> Result<u64, TarError> {
        let stated = records.number("size")?.unwrap_or(header.size);
        if kind.is_header_only() {
            return Ok(0);
        }
        match (u64::try_from(header.size), u64::try_from(stated)) {
            (Ok(in_header), Ok(len)) => {
                refuse_contradiction(in_header, header.size_is_base256, len)?;
                Ok(len)
            }
            _ => Err(TarError::NegativeSize { at: self.header_at }),
        }
    }

    fn begin_payload(&mut self, len: u64) -> Result<(), TarError> {
        let padding = padding(len);
        // A tar that long does not exist; then it is cut off.
        let end = self
            .offset
            .checked_add(len)
            .and_then(|end| end.checked_add(padding));
        let end = end.ok_or(TarError::Truncated {
            at: self.offset,
            what: "the contents of a file",
        })?;
        self.begin_group(end);
        self.state = State::Payload { left: len, padding };
        Ok(())
    }
}

fn checked(form: Sparse, size: u64, data_len: u64) -> Result<Sparse, TarError> {
    Ok(match form {
        Sparse::Segments(mut segments) => {
            sparse::check(&mut segments, size, data_len)?;
            Sparse::Segments(segments)
        }
        Sparse::MapInPayload if data_len == 0 => {
            return Err(TarError::SparseMap("it is cut off"));
        }
        other => other,
    })
}

fn kind(flag: u8, name: &[u8]) -> Type {
    match flag {
        // Archives older than ustar mark directories by a slash alone.
        0 if name.ends_with(b"/") => Type::Directory,
        0 | b'0' => Type::Regular,
        b'1' => Type::HardLink,
        b'2' => Type::Symlink,
        b'3' => Type::CharDevice,
        b'4' => Type::BlockDevice,
        b'5' => Type::Directory,
        b'6' => Type::Fifo,
        other => Type::Other(other),
    }
}

/// Writers give a size in PAX records because the header has no room for it, and then leave 0 or
/// a clipped number there. Two different sizes that both had room are an attempt to show two
/// readers two different archives.
fn refuse_contradiction(header: u64, header_is_base256: bool, pax: u64) -> Result<(), TarError> {
    const OCTAL_MAX: u64 = 0o77_777_777_777;
    if header != 0 && header != pax && (header_is_base256 || pax <= OCTAL_MAX) {
        return Err(TarError::SizeContradiction { pax, header });
    }
    Ok(())
}

/// Bytes from the end of `len` bytes to the next block.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK as u64
}
