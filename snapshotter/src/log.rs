//! The log: one line per event on standard error, for people or for programs.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_fuse::stderr::{self, Stderr};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogLevel};

static WARNINGS: AtomicU64 = AtomicU64::new(0);
static ERRORS: AtomicU64 = AtomicU64::new(0);

/// Lines logged by this process, of the levels an operator looks for.
pub(crate) fn counts() -> [(&'static str, u64); 2] {
    [("warn", &WARNINGS), ("error", &ERRORS)]
        .map(|(level, count)| (level, count.load(Ordering::Relaxed)))
}

/// Counts what is logged.
struct Counting;

impl<S: Subscriber> Layer<S> for Counting {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let count = match *event.metadata().level() {
            Level::WARN => &WARNINGS,
            Level::ERROR => &ERRORS,
            _ => return,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Logs to standard error from now on, and waits for nobody who reads it. Libraries are heard only when something is wrong with them.
pub(crate) fn start(level: LogLevel, format: LogFormat) {
    subscriber(level, format, || Stderr).init();
    stderr::tell_losses_by(|lines| tracing::warn!(lines, "{}", stderr::lost_words(lines)));
}

fn subscriber<W>(level: LogLevel, format: LogFormat, out: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let level = match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::new(format!(
        "{level},h2=warn,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,tonic=warn,tower=warn"
    ));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Told of by a print to the same place, which panics: a log that cannot be written, on a
        // full disk, must not fail the read that was to be logged.
        .log_internal_errors(false)
        .with_writer(out);
    match format {
        LogFormat::Text => {
            let colours = io::IsTerminal::is_terminal(&io::stderr());
            Box::new(builder.with_ansi(colours).finish().with(Counting))
        }
        // Flat: whoever searches logs names a field by its own name.
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true);
            let builder = builder.with_current_span(false).with_span_list(false);
            Box::new(builder.finish().with(Counting))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// What was written, line by line.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let out = lines.clone();
        let subscriber = subscriber(LogLevel::Info, format, move || out.clone());
        tracing::subscriber::with_default(subscriber, log);
        let written = lines.0.lock().unwrap().clone();
        String::from_utf8(written).unwrap()
    }

    /// Promise: with `format = "json"` an event is one line with one object; its fields stand beside
    /// time, level, target and message, whatever characters they hold.
    #[test]
    fn an_event_is_one_object_on_one_line() {
        let path = "a \"b\"\n\u{1b}[31m\u{2028}c";
        let text = logged(LogFormat::Json, || {
            tracing::warn!(path, seconds = 1.5, chunk = 7, "a read was slow");
            tracing::info!(error = %io::Error::other("disk\nfailed"), "second");
            tracing::debug!("not at this level");
        });
        let objects: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect();
        assert_eq!(objects.len(), 2, "{text}");
        let first = &objects[0];
        assert_eq!(first["message"], "a read was slow");
        assert_eq!(first["level"], "WARN");
        assert_eq!(first["path"], path);
        assert_eq!(first["seconds"], 1.5);
        assert_eq!(first["chunk"], 7);
        assert!(first["timestamp"].as_str().unwrap().ends_with('Z'));
        assert!(first["target"].as_str().unwrap().starts_with("larder"));
        assert_eq!(first.as_object().unwrap().len(), 7, "{first}");
        assert_eq!(objects[1]["error"], "disk\nfailed");
    }

    /// Promise: warnings and errors are counted, and nothing else.
    #[test]
    fn warnings_and_errors_are_counted() {
        let before = counts();
        logged(LogFormat::Text, || {
            tracing::warn!("one");
            tracing::error!("two");
            tracing::info!("three");
        });
        let after = counts();
        // Other tests log, too.
        assert!(after[0].1 > before[0].1 && after[1].1 > before[1].1);
    }
}
