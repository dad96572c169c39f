//! The threads that compress and digest chunks, shared by all layers of a conversion.

use std::io;
use std::num::NonZero;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use larder_proto::digest::{Algorithm, ChunkDigest};

use super::budget::{Budget, Share};
use super::cutter::Chunk;
use super::options::LayerOptions;

/// Bytes of chunks in flight per worker: one in work, one waiting, at the largest usual size.
const FLIGHT_BYTES_PER_WORKER: usize = 2 << 20;

/// Bytes of chunks in flight whatever the number of workers: two chunks of the largest size.
const FLIGHT_BYTES_MIN: usize = 8 << 20;

/// A chunk in its stored form.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) stored: Box<[u8]>,
    pub(super) len: u32,
    pub(super) stored_digest: ChunkDigest,
    pub(super) content_digest: ChunkDigest,
    _share: Share,
}

struct Job {
    chunk: Chunk,
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
    pub(super) fn submit(&self, chunk: Chunk) -> Receiver<io::Result<Frame>> {
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
    let mut press = Press::new(options);
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job {
            chunk,
            share,
            reply,
        }) = job
        else {
            return;
        };
        let frame = match &mut press {
            Ok(press) => press.frame(&chunk, share),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        // Nobody listens when the layer was given up; the frame is then of no use.
        let _ = reply.send(frame);
    }
}

/// What one worker uses again for every chunk.
struct Press {
    encoder: zstd::bulk::Compressor<'static>,
    algorithm: Algorithm,
    content: Vec<u8>,
    stored: Vec<u8>,
}

impl Press {
    fn new(options: LayerOptions) -> io::Result<Self> {
        let mut encoder = zstd::bulk::Compressor::default();
        for parameter in options.level().parameters() {
            encoder.set_parameter(parameter)?;
        }
        Ok(Self {
            encoder,
            algorithm: options.algorithm(),
            content: Vec::new(),
            stored: Vec::new(),
        })
    }

    fn frame(&mut self, chunk: &Chunk, share: Share) -> io::Result<Frame> {
        let content = chunk.contiguous(&mut self.content);
        self.stored.clear();
        self.stored
            .reserve(zstd::zstd_safe::compress_bound(content.len()));
        self.encoder.compress_to_buffer(content, &mut self.stored)?;
        Ok(Frame {
            stored: self.stored.as_slice().into(),
            len: u32::try_from(content.len()).expect("CHUNK_BYTES_MAX fits 32 bits"),
            stored_digest: self.algorithm.digest(&self.stored),
            content_digest: self.algorithm.digest(content),
            _share: share,
        })
    }
}
