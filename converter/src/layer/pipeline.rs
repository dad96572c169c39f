//! The stages of one layer's conversion, put together.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;

use bytes::Bytes;
use larder_proto::erofs;
use larder_proto::index::{Index, IndexParts, StoredIndex};
use larder_proto::scan::{ScanError, ScannedLayer};

use super::scanning::{Scanned, scan};
use super::tap::Tap;
use super::writing::BlobWriter;
use super::{ConvertedLayer, LayerError, LayerInput, LayerOutput, Outcome, Workers};
use crate::decode::decode;

/// Bytes of tar handed from the reading to the scanning stage at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// Such buffers that may wait: enough that inflating goes on while a cut is handed over.
const BUFFERS: usize = 4;

/// Frames that may wait for the writer; the budget of the workers bounds their bytes.
const FRAMES: usize = 1024;

/// Says that a conversion is to stop; checked at every buffer.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks for the stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// `Err` once the stop was asked for.
    pub fn check(&self) -> Result<(), LayerError> {
        if self.0.load(Ordering::Relaxed) {
            Err(LayerError::Cancelled)
        } else {
            Ok(())
        }
    }
}

/// Converts one layer into `output`; `advance` is told of source bytes read.
///
/// Blocks; memory is bounded by the workers' budget and the layer's tree.
pub fn convert_layer(
    input: LayerInput,
    workers: &Workers,
    output: LayerOutput,
    cancel: &Cancel,
    advance: &(dyn Fn(u64) + Sync),
) -> Result<Outcome, LayerError> {
    let LayerInput {
        digest: layer,
        size,
        diff_id,
        blob,
    } = input;
    let mut tap = Tap::new(blob);
    let write = |error| LayerError::Write { layer, error };
    let mut writer = BlobWriter::new(output).map_err(write)?;
    let (read, scanned, written) = std::thread::scope(|scope| {
        let (tar, tar_in) = sync_channel(BUFFERS);
        let (frames, frames_in) = sync_channel(FRAMES);
        let scan = scope.spawn(move || scan(&tar_in, workers, frames));
        let writer = &mut writer;
        let write = scope.spawn(move || writer.write_frames(&frames_in));
        let read = read_tar(&mut tap, &tar, cancel, advance);
        drop(tar);
        (read, join(scan), join(write))
    });
    cancel.check()?;
    written.map_err(write)?;
    // What the source is at fault for comes first: it explains whatever followed from it.
    tap.finish(layer, size, cancel)?;
    read.map_err(|error| LayerError::Encoding {
        layer,
        reason: error.to_string(),
    })?;
    let Scanned {
        diff_id: found,
        layer: scanned,
    } = scanned.ok_or(LayerError::Cancelled)?;
    if let Err(error @ ScanError::Malformed { .. }) = &scanned {
        return Err(LayerError::Malformed {
            layer,
            reason: error.to_string(),
        });
    }
    if found != diff_id {
        return Err(LayerError::DiffId {
            layer,
            expected: diff_id,
            found,
        });
    }
    match scanned {
        Ok(scanned) => seal(writer, &scanned, workers, (layer, diff_id)),
        Err(error) => Ok(Outcome::Unrepresentable(error.to_string())),
    }
}

/// Reads and decodes the blob until its end, or until the scan wants no more.
fn read_tar(
    tap: &mut Tap<Box<dyn Read + Send>>,
    tar: &SyncSender<Bytes>,
    cancel: &Cancel,
    advance: &dyn Fn(u64),
) -> io::Result<()> {
    let mut decoder = decode(Counted { tap, advance })?;
    loop {
        if cancel.check().is_err() {
            return Ok(());
        }
        let mut bytes = vec![0; BUFFER_BYTES];
        let mut filled = 0;
        while filled < bytes.len() {
            match decoder.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(filled);
        if filled == 0 || tar.send(bytes.into()).is_err() {
            return Ok(());
        }
    }
}

/// Reports what passes the tap.
struct Counted<'a> {
    tap: &'a mut Tap<Box<dyn Read + Send>>,
    advance: &'a dyn Fn(u64),
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.tap.read(buffer)?;
        (self.advance)(count as u64);
        Ok(count)
    }
}

/// Makes the index and appends it to the frames.
fn seal(
    mut writer: BlobWriter,
    scanned: &ScannedLayer,
    workers: &Workers,
    (layer, diff_id): (larder_proto::digest::Digest, larder_proto::digest::Digest),
) -> Result<Outcome, LayerError> {
    let metadata = match erofs::write(&scanned.tree, scanned.tar_len) {
        Ok(metadata) => metadata,
        Err(error) => return Ok(Outcome::Unrepresentable(error.to_string())),
    };
    let index = IndexParts {
        diff_id,
        tar_len: scanned.tar_len,
        chunk_target: workers.options().chunk_target(),
        algorithm: workers.options().algorithm(),
        metadata: &metadata,
        chunks: &writer.chunks,
        implied: &scanned.implied,
    }
    .encode();
    // A node would refuse what does not read back; better to find out here.
    let refuse = |reason: String| LayerError::Index { layer, reason };
    Index::open(&index).map_err(|error| refuse(error.to_string()))?;
    erofs::Image::open(&metadata, scanned.tar_len).map_err(|error| refuse(error.to_string()))?;
    let stored = match StoredIndex::seal(&index, writer.len()) {
        Ok(stored) => stored,
        Err(error) => return Ok(Outcome::Unrepresentable(error.to_string())),
    };
    let write = |error| LayerError::Write { layer, error };
    writer.write(&stored.tail).map_err(write)?;
    let chunks = writer.chunks.len();
    let (file, digest, size) = writer.finish().map_err(write)?;
    let (location, tar_len) = (stored.location, scanned.tar_len);
    Ok(Outcome::Converted(ConvertedLayer {
        file,
        digest,
        size,
        location,
        tar_len,
        chunks,
    }))
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
