//! What the data plane and the registry client log, for tests that read it.

use std::io;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use larder_proto::digest::Digest;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Collects what is logged from now on, by all tests of this process.
pub(crate) fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = "larder_fuse=trace,larder_registry=trace,reqwest=trace,hyper_util=debug,warn";
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_ansi(false)
            .with_writer(Lines)
            .init();
    });
}

/// The lines that `wanted` picks.
pub(crate) fn lines(wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = String::from_utf8_lossy(&lock()).into_owned();
    text.lines()
        .filter(|line| wanted(line))
        .map(String::from)
        .collect()
}

/// Warnings and errors about a layer.
pub(crate) fn complaints(layer: &Digest) -> Vec<String> {
    let layer = layer.to_string();
    lines(|line| is_complaint(line) && line.contains(&layer))
}

/// Whether a line is a warning or worse.
pub(crate) fn is_complaint(line: &str) -> bool {
    line.split_whitespace()
        .nth(1)
        .is_some_and(|level| matches!(level, "WARN" | "ERROR"))
}

fn lock() -> MutexGuard<'static, Vec<u8>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to [`LINES`].
struct Lines;

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
