//! Answering reads: at once from the store, or later from the fetcher.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use larder_proto::verified::Verified;

use crate::counts::ReadFailure;
use crate::fetch::{Failed, FetchError, Fetcher, Landing, Priority};
use crate::store::{StoredLayer, There};

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

    /// The chunks that hold them.
    fn rows(&self, layer: &StoredLayer) -> impl Iterator<Item = usize> {
        let parts = self.parts.iter();
        parts.flat_map(|part| layer.index().rows(part.device.clone()))
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

/// How often a read whose chunks went before it had them asks again. A chunk stays for a second after it
/// came, and one that the disk cannot give back is not written there again: so once is rare.
const ATTEMPTS: usize = 4;

/// Answers with the bytes, or with the reason why they cannot be had, which is logged already.
pub(super) fn answer<R>(fetcher: &Arc<Fetcher>, wanted: Wanted, reply: R)
where
    R: FnOnce(Result<&[u8], ()>) + Send + 'static,
{
    if fetcher.is_barred() {
        return reply(Err(()));
    }
    let began = Instant::now();
    let layer = fetcher.layer();
    fetcher.listeners().read(wanted.rows(layer));
    let filled =
        BUFFER.with_borrow_mut(|buffer| match fill(layer, &wanted, &Held::new(), buffer) {
            Ok(true) => {
                reply(Ok(&buffer[..wanted.len]));
                Ok(())
            }
            Ok(false) => Err((reply, false)),
            Err(_) => Err((reply, true)),
        });
    let Err((reply, disk_failed)) = filled else {
        let took = began.elapsed();
        read_ahead(fetcher, &wanted);
        fetcher.context().counts.hit(took, wanted.len);
        if fetcher.context().slow.is_slow(took) {
            slow::report(fetcher, &wanted, took, None);
        }
        return;
    };
    if disk_failed {
        // On chunks that were there: verify them again, and fetch what is lost.
        doubt(layer, &wanted);
    }
    fetcher.tell_damage();
    fetch(fetcher, wanted, began, reply);
}

fn doubt(layer: &StoredLayer, wanted: &Wanted) {
    layer.read_failed();
    for row in wanted.rows(layer) {
        layer.presence().set_claimed(row);
    }
}

fn fetch<R>(fetcher: &Arc<Fetcher>, wanted: Wanted, began: Instant, reply: R)
where
    R: FnOnce(Result<&[u8], ()>) + Send + 'static,
{
    let waiting = fetcher.context().counts.wait();
    let until = tokio::time::Instant::now() + fetcher.context().deadline;
    let landings = request(fetcher, &wanted);
    read_ahead(fetcher, &wanted);
    let fetcher = fetcher.clone();
    fetcher.runtime().clone().spawn(async move {
        let (mut landings, mut asked) = (landings, (wanted, reply));
        for attempt in 0..ATTEMPTS {
            let landed = if attempt == 0 {
                landed(landings).await
            } else {
                landed_by(until, &fetcher, landings).await
            };
            let held = match landed {
                Ok(held) => held,
                Err(error) => {
                    let (wanted, reply) = asked;
                    reply(Err(()));
                    drop(waiting);
                    return ended(&fetcher, &wanted, began, Some(failure(&error)));
                }
            };
            let layer = fetcher.layer().clone();
            let (wanted, reply) = asked;
            // Reading may wait for the disk, which the fetcher's own threads must not.
            let copying = tokio::task::spawn_blocking(move || copy(&layer, wanted, &held, reply));
            asked = match copying.await {
                Ok(Err(again)) => again,
                Ok(Ok(wanted)) => {
                    drop(waiting);
                    return ended(&fetcher, &wanted, began, None);
                }
                // Only a shutdown keeps it from running; the reply's own destructor answers then.
                Err(_) => return,
            };
            landings = request(&fetcher, &asked.0);
        }
        fetcher.tell_failed(Failed::here(
            "the store lost its chunks before they could be read; is its disk broken, its limit far too \
             small, or this node overloaded?",
        ));
        let (wanted, reply) = asked;
        reply(Err(()));
        drop(waiting);
        ended(&fetcher, &wanted, began, Some(ReadFailure::Disk));
    });
}

/// After what is wanted itself was answered or asked for.
fn read_ahead(fetcher: &Arc<Fetcher>, wanted: &Wanted) {
    for part in &wanted.parts {
        fetcher.reading(&fetcher.layer().index().rows(part.device.clone()));
    }
}

fn request(fetcher: &Arc<Fetcher>, wanted: &Wanted) -> Vec<Landing> {
    let rows = |part: &Part| fetcher.layer().index().rows(part.device.clone());
    let parts = wanted.parts.iter();
    parts
        .map(|part| fetcher.request(rows(part), Priority::Demand))
        .collect()
}

/// Waits for all chunks; those that are not in the store.
async fn landed(landings: Vec<Landing>) -> Result<Held, Arc<FetchError>> {
    let mut held = Held::new();
    for landing in landings {
        held.extend(landing.all().await?);
    }
    Ok(held)
}

/// The same for chunks that are asked for again: their flights begin with a new deadline, and the read
/// has one for all of them.
async fn landed_by(
    until: tokio::time::Instant,
    fetcher: &Arc<Fetcher>,
    landings: Vec<Landing>,
) -> Result<Held, Arc<FetchError>> {
    let in_time = tokio::time::timeout_at(until, landed(landings)).await;
    in_time.unwrap_or_else(|_elapsed| {
        let layer = fetcher.blob();
        fetcher.tell_failed(Failed::here(
            "what the store lost of it did not come again in time",
        ));
        Err(Arc::new(FetchError::Lost { layer }))
    })
}

/// Answers, unless chunks were evicted meanwhile or the disk failed on them: then what was asked for
/// is given back.
fn copy<R>(
    layer: &StoredLayer,
    wanted: Wanted,
    held: &Held,
    reply: R,
) -> Result<Wanted, (Wanted, R)>
where
    R: FnOnce(Result<&[u8], ()>),
{
    BUFFER.with_borrow_mut(|buffer| match fill(layer, &wanted, held, buffer) {
        Ok(true) => {
            reply(Ok(&buffer[..wanted.len]));
            Ok(wanted)
        }
        Ok(false) => Err((wanted, reply)),
        Err(error) => {
            tracing::warn!(layer = %layer.directory().display(), %error,
                "the store's disk gave an error for what was just written; fetching it again");
            doubt(layer, &wanted);
            Err((wanted, reply))
        }
    })
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
        FetchError::Deadline { .. } | FetchError::Lost { .. } => ReadFailure::Deadline,
        FetchError::Refused { .. } => ReadFailure::Refused,
        FetchError::ShutDown | FetchError::Removed { .. } => ReadFailure::ShutDown,
        FetchError::NoRoom { .. } => ReadFailure::Disk,
    }
}

/// Fills `buffer`; false if chunks that are not held are not in the store, or not any more.
fn fill(
    layer: &StoredLayer,
    wanted: &Wanted,
    held: &Held,
    buffer: &mut Vec<u8>,
) -> io::Result<bool> {
    let from_store = wanted.rows(layer).filter(|row| !held.contains_key(row));
    layer.read_there(from_store, |there| {
        if buffer.len() < wanted.len {
            buffer.resize(wanted.len, 0);
        }
        let buffer = &mut buffer[..wanted.len];
        if !wanted.is_one_run() {
            buffer.fill(0);
        }
        for part in &wanted.parts {
            let len = part.device.end - part.device.start;
            let len = usize::try_from(len).map_err(io::Error::other)?;
            let bytes = &mut buffer[part.at..part.at + len];
            if held.is_empty() {
                there.read(bytes, part.device.start);
            } else {
                fill_mixed(layer, there, part, held, bytes)?;
            }
        }
        Ok(())
    })
}

/// Chunk by chunk, from memory or from the store.
fn fill_mixed(
    layer: &StoredLayer,
    there: &mut There<'_>,
    part: &Part,
    held: &Held,
    bytes: &mut [u8],
) -> io::Result<()> {
    for row in layer.index().rows(part.device.clone()) {
        let Some(chunk) = layer.index().chunk(row) else {
            continue;
        };
        let start = chunk.offset.max(part.device.start);
        let end = chunk.end().min(part.device.end);
        if start >= end || !layer.index().is_in_place(row) {
            return Err(io::Error::other("the index rots while it is mapped"));
        }
        let place = |offset: u64, base: u64| usize::try_from(offset - base).unwrap_or(usize::MAX);
        let to = &mut bytes[place(start, part.device.start)..place(end, part.device.start)];
        match held.get(&row) {
            Some(content) => to.copy_from_slice(
                &content.as_slice()[place(start, chunk.offset)..place(end, chunk.offset)],
            ),
            None => there.read(to, start),
        }
    }
    Ok(())
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::fetch::tests::{Mood, Scene};

    /// Promise: a read whose chunks the store lost before they could be read asks for them again, and
    /// waits no longer for that than it would have waited for the first ones.
    #[tokio::test(start_paused = true)]
    async fn what_is_asked_for_again_has_no_new_deadline() {
        let scene = Scene::new();
        scene.set(&[&scene.source("only", Mood::Stalls)]);
        let left = Duration::from_secs(7);
        let begun = tokio::time::Instant::now();
        let landings = vec![scene.fetcher.request(0..2, Priority::Demand)];
        let error = landed_by(begun + left, &scene.fetcher, landings).await;
        assert_eq!(begun.elapsed(), left);
        let error = error.err().unwrap();
        assert_eq!(failure(&error), ReadFailure::Deadline, "{error}");
    }
}
