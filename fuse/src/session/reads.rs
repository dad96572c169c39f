//! Answering reads: at once from the store, or later from the fetcher.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use larder_proto::verified::Verified;

use crate::counts::ReadFailure;
use crate::fetch::{FetchError, Fetcher, Priority};
use crate::store::StoredLayer;

use super::slow;

/// Longest read the kernel is allowed to send, by the mount's `max_read`: the kernel's own default
/// limit of 256 pages. A reply that is shorter than its request would read as zeros behind.
pub(super) const READ_BYTES_MAX: u64 = 1 << 20;

thread_local! {
    /// The reply of the thread's current read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes to be read: runs of the device with zeros between them.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    len: usize,
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
struct Part {
    /// Place in the reply.
    at: usize,
    device: Range<u64>,
}

impl Wanted {
    /// `len` bytes, all zero so far.
    pub(super) fn new(len: u64) -> Self {
        Self {
            len: usize::try_from(len.min(READ_BYTES_MAX)).unwrap_or(0),
            parts: Vec::new(),
        }
    }

    /// Bytes of the reply.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The parts of the device that are read.
    pub(super) fn devices(&self) -> impl Iterator<Item = Range<u64>> {
        self.parts.iter().map(|part| part.device.clone())
    }

    /// Whether no zeros stand between or behind the bytes of the device.
    fn is_one_run(&self) -> bool {
        matches!(&self.parts[..], [part] if part.device.end - part.device.start == self.len as u64)
    }

    /// The bytes `device`, at `at` of the reply; what lies beyond the reply is cut off.
    pub(super) fn add(&mut self, at: u64, device: Range<u64>) {
        let room = (self.len as u64).saturating_sub(at);
        let len = room.min(device.end - device.start);
        if let (Ok(at), true) = (usize::try_from(at), len > 0) {
            let device = device.start..device.start + len;
            self.parts.push(Part { at, device });
        }
    }
}

/// A chunk that is in memory and not in the store.
type Held = HashMap<usize, Arc<Verified<Vec<u8>>>>;

/// Answers with the bytes, or with the reason why they cannot be had, which is logged already.
pub(super) fn answer<R>(fetcher: &Arc<Fetcher>, wanted: Wanted, reply: R)
where
    R: FnOnce(Result<&[u8], ()>) + Send + 'static,
{
    let began = Instant::now();
    let layer = fetcher.layer();
    let is_there = |part: &Part| layer.has(part.device.start, part.device.end);
    let mut reply = reply;
    if wanted.parts.iter().all(is_there) {
        let unanswered =
            BUFFER.with_borrow_mut(|buffer| match fill(layer, &wanted, &Held::new(), buffer) {
                Ok(()) => {
                    reply(Ok(&buffer[..wanted.len]));
                    None
                }
                Err(_) => Some(reply),
            });
        let Some(unanswered) = unanswered else {
            let took = began.elapsed();
            fetcher.context().counts.hit(took, wanted.len);
            if fetcher.context().slow.is_slow(took) {
                slow::report(fetcher, &wanted, took, None);
            }
            return;
        };
        // The disk failed on chunks that were there: verify them again, and fetch what is lost.
        doubt(layer, &wanted);
        reply = unanswered;
    }
    fetch(fetcher, wanted, began, reply);
}

fn doubt(layer: &StoredLayer, wanted: &Wanted) {
    for part in &wanted.parts {
        for row in layer.index().rows(part.device.clone()) {
            layer.presence().set_claimed(row);
        }
    }
}

fn fetch<R>(fetcher: &Arc<Fetcher>, wanted: Wanted, began: Instant, reply: R)
where
    R: FnOnce(Result<&[u8], ()>) + Send + 'static,
{
    let layer = fetcher.layer().clone();
    let waiting = fetcher.context().counts.wait();
    let rows = |part: &Part| layer.index().rows(part.device.clone());
    let landings: Vec<_> = wanted
        .parts
        .iter()
        .map(|part| fetcher.request(rows(part), Priority::Demand))
        .collect();
    let fetcher = fetcher.clone();
    fetcher.clone().runtime().spawn(async move {
        let mut held = Held::new();
        for landing in landings {
            match landing.all().await {
                Ok(chunks) => held.extend(chunks),
                Err(error) => {
                    reply(Err(()));
                    drop(waiting);
                    return ended(&fetcher, &wanted, began, Some(failure(&error)));
                }
            }
        }
        // Reading may wait for the disk, which the fetcher's own threads must not.
        let copied = tokio::task::spawn_blocking(move || {
            let failed =
                BUFFER.with_borrow_mut(|buffer| match fill(&layer, &wanted, &held, buffer) {
                    Ok(()) => {
                        reply(Ok(&buffer[..wanted.len]));
                        None
                    }
                    Err(error) => {
                        tracing::warn!(layer = %layer.directory().display(), %error,
                            "a read fails: the store's disk gave an error");
                        doubt(&layer, &wanted);
                        reply(Err(()));
                        Some(ReadFailure::Disk)
                    }
                });
            drop(waiting);
            ended(&fetcher, &wanted, began, failed);
        });
        // Only a shutdown keeps it from running; the reply's own destructor answers then.
        let _ = copied.await;
    });
}

/// Counts a read that had to wait, and reports it if it was slow. After its answer: nobody waits
/// for this.
fn ended(fetcher: &Arc<Fetcher>, wanted: &Wanted, began: Instant, failed: Option<ReadFailure>) {
    let took = began.elapsed();
    let context = fetcher.context();
    context
        .counts
        .missed(took, failed.map_or(Ok(wanted.len), Err));
    if context.slow.is_slow(took) {
        slow::report(fetcher, wanted, took, failed);
    }
}

const fn failure(error: &FetchError) -> ReadFailure {
    match error {
        FetchError::Deadline { .. } => ReadFailure::Deadline,
        FetchError::Refused { .. } => ReadFailure::Refused,
        FetchError::ShutDown => ReadFailure::ShutDown,
        FetchError::NoRoom { .. } => ReadFailure::Disk,
    }
}

fn fill(layer: &StoredLayer, wanted: &Wanted, held: &Held, buffer: &mut Vec<u8>) -> io::Result<()> {
    if buffer.len() < wanted.len {
        buffer.resize(wanted.len, 0);
    }
    let buffer = &mut buffer[..wanted.len];
    if !wanted.is_one_run() {
        buffer.fill(0);
    }
    for part in &wanted.parts {
        let len = usize::try_from(part.device.end - part.device.start).map_err(io::Error::other)?;
        let bytes = &mut buffer[part.at..part.at + len];
        if held.is_empty() {
            layer.read(bytes, part.device.start)?;
        } else {
            fill_mixed(layer, part, held, bytes)?;
        }
    }
    Ok(())
}

/// Chunk by chunk, from memory or from the store.
fn fill_mixed(layer: &StoredLayer, part: &Part, held: &Held, bytes: &mut [u8]) -> io::Result<()> {
    for row in layer.index().rows(part.device.clone()) {
        let Some(chunk) = layer.index().chunk(row) else {
            continue;
        };
        let start = chunk.offset.max(part.device.start);
        let end = chunk.end().min(part.device.end);
        let place = |offset: u64, base: u64| usize::try_from(offset - base).unwrap_or(usize::MAX);
        let to = &mut bytes[place(start, part.device.start)..place(end, part.device.start)];
        match held.get(&row) {
            Some(content) => to.copy_from_slice(
                &content.as_slice()[place(start, chunk.offset)..place(end, chunk.offset)],
            ),
            None => layer.read(to, start)?,
        }
    }
    Ok(())
}
