//! The threads that compress and digest chunks, shared by all layers of a conversion.

use std::io;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use larder_proto::digest::ChunkDigest;

use super::budget::{Budget, Share};
use super::options::LayerOptions;

/// Bytes of chunks in flight per worker: one in work, one waiting, at the largest usual size.
const FLIGHT_BYTES_PER_WORKER: usize = 2 << 20;

/// Bytes of chunks in flight whatever the number of workers: two chunks of the largest size.
const FLIGHT_BYTES_MIN: usize = 8 << 20;

/// A chunk in its stored form.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) stored: Vec<u8>,
    pub(super) len: u32,
    pub(super) stored_digest: ChunkDigest,
    pub(super) content_digest: ChunkDigest,
    _share: Share,
}

struct Job {
    chunk: Vec<u8>,
    share: Share,
    reply: SyncSender<io::Result<Frame>>,
}

/// A pool of threads that turn chunks into frames; they end when it is dropped.
#[derive(Debug)]
pub struct Workers {
    options: LayerOptions,
    jobs: NonZero<usize>,
    queue: Option<SyncSender<Job>>,
    budget: Arc<Budget>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts `jobs` threads. Their number decides how fast layers are converted, nothing else.
    pub fn start(options: LayerOptions, jobs: NonZero<usize>) -> io::Result<Self> {
        // The budget bounds what is in the queue; its own length only keeps workers from idling.
        let (queue, jobs_in) = sync_channel::<Job>(jobs.get() * 2);
        let jobs_in = Arc::new(Mutex::new(jobs_in));
        let spawn = |_| {
            let jobs_in = Arc::clone(&jobs_in);
            let builder = std::thread::Builder::new().name("compress".into());
            builder.spawn(move || work(options, &jobs_in))
        };
        let threads = (0..jobs.get()).map(spawn).collect::<io::Result<_>>()?;
        let limit = FLIGHT_BYTES_MIN.saturating_add(FLIGHT_BYTES_PER_WORKER * jobs.get());
        Ok(Self {
            options,
            jobs,
            queue: Some(queue),
            budget: Budget::new(limit),
            threads,
        })
    }

    /// What the workers were started with.
    pub fn options(&self) -> LayerOptions {
        self.options
    }

    /// How many there are.
    pub fn jobs(&self) -> NonZero<usize> {
        self.jobs
    }

    /// Hands over a chunk; its frame arrives at the returned receiver. Waits for the budget.
    pub(super) fn submit(&self, chunk: Vec<u8>) -> Receiver<io::Result<Frame>> {
        let share = self.budget.take(chunk.len());
        let (reply, receiver) = sync_channel(1);
        let queue = self.queue.as_ref().expect("the queue lives until drop");
        // A send fails only when every worker has died; the receiver then reports it.
        let _ = queue.send(Job {
            chunk,
            share,
            reply,
        });
        receiver
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(options: LayerOptions, jobs: &Mutex<Receiver<Job>>) {
    let mut encoder = encoder(options);
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        let frame = match &mut encoder {
            Ok(encoder) => frame(encoder, options, &job.chunk),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        let Job {
            chunk,
            share,
            reply,
        } = job;
        let result = frame.map(|(stored, stored_digest, content_digest)| Frame {
            stored,
            len: u32::try_from(chunk.len()).expect("CHUNK_BYTES_MAX fits 32 bits"),
            stored_digest,
            content_digest,
            _share: share,
        });
        // Nobody listens when the layer was given up; the frame is then of no use.
        let _ = reply.send(result);
    }
}

fn encoder(options: LayerOptions) -> io::Result<zstd::bulk::Compressor<'static>> {
    let mut encoder = zstd::bulk::Compressor::default();
    for parameter in options.level().parameters() {
        encoder.set_parameter(parameter)?;
    }
    Ok(encoder)
}

fn frame(
    encoder: &mut zstd::bulk::Compressor<'static>,
    options: LayerOptions,
    chunk: &[u8],
) -> io::Result<(Vec<u8>, ChunkDigest, ChunkDigest)> {
    let mut stored = encoder.compress(chunk)?;
    stored.shrink_to_fit();
    let algorithm = options.algorithm();
    let (frame, content) = (algorithm.digest(&stored), algorithm.digest(chunk));
    Ok((stored, frame, content))
}
