//! Sending a file to the disk while it is still being written.

use std::fs::File;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Bytes written between two flushes: a tenth of a second of a fast conversion, and what is left
/// for the end takes a disk a few milliseconds.
const FLUSH_BYTES: u64 = 16 << 20;

/// A thread that flushes a file now and then.
#[derive(Debug)]
pub(super) struct Flush {
    wanted: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
    since: u64,
}

impl Flush {
    /// Starts to look after `file`.
    pub(super) fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (wanted, wants) = sync_channel(1);
        let builder = std::thread::Builder::new().name("flush".into());
        let thread = builder.spawn(move || wants.iter().try_for_each(|()| file.sync_data()))?;
        Ok(Self {
            wanted,
            thread,
            since: 0,
        })
    }

    /// `len` more bytes have been written.
    pub(super) fn wrote(&mut self, len: u64) {
        self.since += len;
        if self.since >= FLUSH_BYTES {
            self.begin();
        }
    }

    /// Starts to flush what has been written.
    pub(super) fn begin(&mut self) {
        self.since = 0;
        // A flush that is due already covers these bytes too; one that failed tells at the end.
        let _ = self.wanted.try_send(());
    }

    /// Waits for the last flush. An error would not be reported again by a later one.
    pub(super) fn finish(self) -> io::Result<()> {
        drop(self.wanted);
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
