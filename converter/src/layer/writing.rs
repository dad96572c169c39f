//! The stage that writes frames in tar order and keeps the chunk table.

use std::fs::File;
use std::io::{self, Write as _};
use std::sync::mpsc::Receiver;

use larder_proto::digest::Digest;
use larder_proto::index::Chunk;
use sha2::Digest as _;

use super::LayerOutput;
use super::flush::Flush;
use super::scanning::Pending;

/// The blob as far as it has been written.
pub(super) struct BlobWriter {
    file: File,
    pub(super) chunks: Vec<Chunk>,
    hasher: sha2::Sha256,
    len: u64,
    flush: Option<Flush>,
}

impl BlobWriter {
    pub(super) fn new(LayerOutput { file, stays }: LayerOutput) -> io::Result<Self> {
        let flush = stays.then(|| Flush::start(&file)).transpose()?;
        Ok(Self {
            file,
            chunks: Vec::new(),
            hasher: sha2::Sha256::new(),
            len: 0,
            flush,
        })
    }

    /// Writes every frame that comes.
    pub(super) fn write_frames(&mut self, frames: &Receiver<Pending>) -> io::Result<()> {
        for pending in frames {
            let frame = pending
                .recv()
                .map_err(|_| io::Error::other("a worker thread died"))??;
            let stored_len = u32::try_from(frame.stored.len());
            self.chunks.push(Chunk {
                offset: self.chunks.last().map_or(0, Chunk::end),
                len: frame.len,
                stored_offset: self.len,
                stored_len: stored_len.expect("FRAME_BYTES_MAX fits 32 bits"),
                frame: frame.stored_digest,
                content: frame.content_digest,
            });
            self.write(&frame.stored)?;
        }
        // The disk writes the last frames while the index is made.
        if let Some(flush) = &mut self.flush {
            flush.begin();
        }
        Ok(())
    }

    /// Appends bytes to the blob.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        let len = bytes.len() as u64;
        self.len += len;
        if let Some(flush) = &mut self.flush {
            flush.wrote(len);
        }
        Ok(())
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// The finished blob with its digest.
    pub(super) fn finish(self) -> io::Result<(File, Digest, u64)> {
        if let Some(flush) = self.flush {
            flush.finish()?;
        }
        let digest = Digest::from_bytes(self.hasher.finalize().into());
        Ok((self.file, digest, self.len))
    }
}
