//! One pass over a layer's tar: where its chunks are cut, and the tree it unpacks to.
//!
//! The tree is the one containerd's overlayfs snapshotter would have on disk after unpacking the
//! layer, so that a container sees the same files whether its layer was unpacked or mounted. Where
//! containerd would refuse the layer, or where its result depends on more than the tar, the scan
//! says [`ScanError::Unrepresentable`] instead of guessing.

mod acl;
mod attributes;
mod build;
mod name;
mod resolve;

use std::borrow::Cow;

use crate::cut::Cutter;
use crate::limits;
use crate::tar::{Event, MapReader, Member, Parser, Segment, Sparse, TarError};
use crate::tree::Tree;
use build::Builder;

/// What a scan can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScanOptions {
    /// Size at which chunks are cut inside large files, and mean size of the others, bytes;
    /// [`limits::CHUNK_TARGET_MIN`] to [`limits::CHUNK_BYTES_MAX`], in whole blocks of 512.
    pub chunk_target: u32,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            chunk_target: limits::CHUNK_TARGET_DEFAULT,
        }
    }
}

/// Why a tar has no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// The bytes are not a sound tar; no tool should unpack them.
    #[error("broken tar, {entry}: {reason}")]
    Malformed {
        /// The entry where it shows, or the one before.
        entry: String,
        /// What is wrong.
        reason: Cow<'static, str>,
    },
    /// A sound tar, but containerd could not unpack it on overlayfs, or the format cannot hold it.
    #[error("cannot be mounted lazily, {entry}: {reason}")]
    Unrepresentable {
        /// The entry that cannot be represented.
        entry: String,
        /// Why not.
        reason: Cow<'static, str>,
    },
}

/// What a scan found.
#[derive(Debug, Clone)]
pub struct ScannedLayer {
    /// The layer's files.
    pub tree: Tree,
    /// Directories the tar does not list but has entries below, without leading `/`, sorted. The
    /// node gives them the attributes they have in the layers below.
    pub implied: Vec<Vec<u8>>,
    /// Length of the tar, bytes.
    pub tar_len: u64,
}

/// Parser, cutter and tree builder in one pass.
#[derive(Debug)]
pub struct LayerScan {
    parser: Parser,
    cutter: Cutter,
    builder: Builder,
    /// A sparse file whose map is being read from its payload.
    pending: Option<(Box<Member>, MapReader)>,
}

impl LayerScan {
    /// A scan at the beginning of a tar.
    pub fn new(options: ScanOptions) -> Self {
        Self {
            parser: Parser::new(),
            cutter: Cutter::new(options.chunk_target),
            builder: Builder::default(),
            pending: None,
        }
    }

    /// Feeds the next bytes of the tar; appends to `cuts` the tar offsets at which chunks end,
    /// ascending. A cut can lie up to [`crate::cut::CUT_LAG_MAX`] bytes before the bytes fed. After an
    /// error the scan is over.
    pub fn feed(&mut self, bytes: &[u8], cuts: &mut Vec<u64>) -> Result<(), ScanError> {
        let len = self.parser.offset() + bytes.len() as u64;
        if len > limits::TAR_BYTES_MAX {
            return Err(ScanError::Unrepresentable {
                entry: "the whole layer".into(),
                reason: format!("a tar of more than {} bytes", limits::TAR_BYTES_MAX).into(),
            });
        }
        let mut input = bytes;
        loop {
            let event = match self.parser.next(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.malformed(&error)),
            };
            match event {
                Event::Member(member) => self.member(member, cuts)?,
                Event::Payload(bytes) => {
                    self.cutter.bytes(bytes, cuts);
                    if self.pending.is_some() {
                        self.map_bytes(bytes)?;
                    }
                }
                Event::Padding(bytes) | Event::Trailer(bytes) => self.cutter.bytes(bytes, cuts),
                Event::End => self.cutter.archive_end(self.parser.offset()),
            }
        }
    }

    /// The end of the tar: appends the last cuts, of which the last is the tar's length, and
    /// returns the layer. What follows the two zero blocks belongs to the tar.
    pub fn finish(self, cuts: &mut Vec<u64>) -> Result<ScannedLayer, ScanError> {
        if let Err(error) = self.parser.finish() {
            return Err(self.malformed(&error));
        }
        let tar_len = self.parser.offset();
        self.cutter.finish(tar_len, cuts);
        let (tree, implied) = self.builder.finish()?;
        Ok(ScannedLayer {
            tree,
            implied,
            tar_len,
        })
    }

    fn member(&mut self, member: Box<Member>, cuts: &mut Vec<u64>) -> Result<(), ScanError> {
        self.cutter.entry(
            &name::clean(&member.name),
            member.start,
            member.data_offset,
            member.data_len,
            cuts,
        );
        if member.sparse == Sparse::MapInPayload {
            let map = MapReader::new(member.size, member.data_len);
            self.pending = Some((member, map));
            return Ok(());
        }
        self.builder.add(*member)
    }

    /// More of a payload that begins with the map of a sparse file.
    fn map_bytes(&mut self, bytes: &[u8]) -> Result<(), ScanError> {
        let Some((mut member, mut map)) = self.pending.take() else {
            return Ok(());
        };
        match map.push(bytes) {
            Err(error) => Err(self.malformed(&error)),
            Ok(None) => {
                self.pending = Some((member, map));
                Ok(())
            }
            Ok(Some((segments, map_len))) => {
                member.data_offset += map_len;
                member.data_len -= map_len;
                member.sparse = Sparse::Segments(segments);
                self.builder.add(*member)
            }
        }
    }

    fn malformed(&self, error: &TarError) -> ScanError {
        ScanError::Malformed {
            entry: match self.parser.latest_name() {
                b"" => "at the first entry".to_owned(),
                name => format!("at or after entry {}", name::shown(name)),
            },
            reason: error.to_string().into(),
        }
    }
}

/// The whole of a member that has no map in its payload as segments.
fn segments(member: &Member) -> Cow<'_, [Segment]> {
    match &member.sparse {
        Sparse::Segments(segments) => Cow::Borrowed(segments),
        _ if member.size == 0 => Cow::Borrowed(&[]),
        _ => Cow::Owned(vec![Segment {
            offset: 0,
            len: member.size,
        }]),
    }
}

#[cfg(test)]
mod tests;
